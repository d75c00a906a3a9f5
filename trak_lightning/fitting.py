"""What a projector has learned from the training set, kept in the run directory: one file a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trak_lightning.atomic import atomic_create
from trak_lightning.comparison import require_same
from trak_lightning.errors import CorruptFileError

_FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class FitFile:
    """A ``.npz`` file of float32 arrays, tied to what determines them.

    Every process reads the file that one of them wrote, and so does a run that goes on, so that all rows of a run are
    projected by the same bits.
    """

    path: Path
    fingerprint: Mapping[str, Any]

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, fitted: Mapping[str, Tensor]) -> None:
        arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in fitted.items()}
        arrays[_FINGERPRINT] = np.array(json.dumps(self.fingerprint))
        # The first one wins: jobs that know nothing of each other may fit at once.
        with atomic_create(self.path) as part, part.open("wb") as file:
            np.savez(file, **arrays)

    def load(self) -> dict[str, Tensor]:
        """What `save` was given.

        Raises:
            CorruptFileError: the file is not one of ours.
            IncompatibleRunError: it was made with other settings.
        """
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found = json.loads(str(file[_FINGERPRINT]))
                fitted = {name: torch.from_numpy(file[name]) for name in file.files if name != _FINGERPRINT}
        except (OSError, ValueError, KeyError) as error:
            raise CorruptFileError(
                f"{self.path} is not a fitted projection ({error}). Delete it and the features made with it."
            ) from error
        require_same(found, json.loads(json.dumps(self.fingerprint)), self.path)
        return fitted
