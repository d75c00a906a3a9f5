"""Reading what retrained models said. No torch."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, IncompleteRunError
from trak_lightning.rundir import UNREADABLE


def output_path(folder: Path, model: int) -> Path:
    """The file of one retrained model: its ``subset`` (s,) and its ``outputs`` (m,) on the targets."""
    return folder / f"{model:04d}.npz"


def read_outputs(
    folder: Path, models: int, *, num_samples: int, num_targets: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Subsets (S, n) as masks and outputs (S, m) of the first `models` retrained models.

    Raises:
        IncompleteRunError: some have not been retrained yet.
        CorruptFileError: a file holds something else, or belongs to other data.
    """
    missing = [model for model in range(models) if not output_path(folder, model).exists()]
    if missing:
        raise IncompleteRunError(f"{len(missing)} of {models} models have yet to be retrained in {folder}")
    subsets = np.zeros((models, num_samples), dtype=bool)
    outputs = np.empty((models, num_targets))
    for model in range(models):
        path = output_path(folder, model)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                subsets[model, found["subset"]] = True
                outputs[model] = found["outputs"]
        except UNREADABLE as error:
            raise CorruptFileError(
                f"{path} does not hold a subset of {num_samples} samples and {num_targets} outputs: {error}. Delete it and "
                "run trak evaluate again."
            ) from error
    return subsets, outputs
