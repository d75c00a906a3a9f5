"""Random subsets of the training set, one for each retrained model, and the folder that records them. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError, StaleRowsError
from trak_lightning.run.atomic import atomic_create
from trak_lightning.run.directory import read_json
from trak_lightning.run.same_settings import require_same
from trak_lightning.scoring.same_rows import difference
from trak_lightning.seeds import derive_seed


@dataclass(frozen=True)
class SubsetPlan:
    """The random subset and the seed that each model of an ensemble is trained with.

    Args:
        purpose: distinguishes the ensembles of a run, so that their subsets are independent.
        num_samples: n, the size of the training set.
        fraction: share of the training set in each subset.
        seed: seed of the run.
        recipe: what else determines the models: class, data and Trainer settings. JSON.
        rows: what the outputs of the models are of, see `trak_lightning.scoring.same_rows.described`; empty if they are not compared with stored rows.

    Raises:
        DataError: `fraction` is not in (0, 1], or leaves no sample.
    """

    purpose: str
    num_samples: int
    fraction: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1 or round(self.fraction * self.num_samples) < 1:
            raise DataError(
                f"fraction must lie in (0, 1] and leave at least one of {self.num_samples} training samples, got "
                f"{self.fraction}"
            )

    def subset(self, member: int) -> npt.NDArray[np.int64]:
        """Positions (s,), sorted, of ``round(fraction · n)`` training samples drawn without replacement."""
        generator = np.random.default_rng(derive_seed(self.seed, self.purpose, "subset", member))
        order = generator.permutation(self.num_samples)
        return np.sort(order[: round(self.fraction * self.num_samples)]).astype(np.int64)

    def training_seed(self, member: int) -> int:
        """Seed for initialization and batch order: 32 bits, as ``lightning.seed_everything`` accepts."""
        return derive_seed(self.seed, self.purpose, "training", member) % 2**32

    def record(self, folder: Path) -> None:
        """Tie `folder` to this plan.

        Raises:
            IncompatibleRunError: the folder holds models trained with another plan; names the setting and both values.
            StaleRowsError: it holds outputs of models on other samples, or of another function.
        """
        path = folder / PLAN
        plan = json.loads(json.dumps(asdict(self), default=str))  # settings may be paths, dtypes, enumerations
        if not path.exists():
            with atomic_create(path) as part:
                part.write_text(json.dumps({**plan, "made": uuid4().hex}, indent=1))
        recorded = read_json(path)  # another process may have written it first
        # Checkpoints are registered in the run: without them, there would be nothing to go on with.
        start_over = "" if self.purpose == ENSEMBLE else f"delete {folder}, so that all its models are trained again"
        require_same(_settings(recorded), _settings(plan), folder, start_over=start_over)
        _require_same_rows(recorded.get("rows"), self.rows, folder)

    def require_same_rows(self, folder: Path) -> None:
        """Refuse models of `folder` whose outputs are those of other samples, or of another function, than the stored rows.

        Raises:
            StaleRowsError: they are.
        """
        _require_same_rows((recorded_plan(folder) or {}).get("rows"), self.rows, folder)


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name not in ("rows", "made")}


def _require_same_rows(then: Mapping[str, Any] | None, now: Mapping[str, Any], folder: Path) -> None:
    if not then or not now:  # folders of earlier versions have none
        return
    if (what := difference(then, now)) is not None:
        raise StaleRowsError(
            f"the stored rows are of {what} than the models in {folder}, whose outputs scores would be compared with. Use another run "
            f"directory, restore what there was, or delete {folder}, so that all its models are trained again."
        )


ENSEMBLE, SINGLE = "ensemble", "retrained"
"""The purposes of the checkpoints that `trak train` makes, and of models without certain samples; others are of `evaluation.models`."""

PLAN = "plan.json"


def recorded_plan(folder: Path) -> dict[str, Any] | None:
    """The plan that `SubsetPlan.record` wrote to `folder`, or None.

    Raises:
        CorruptFileError: the file is not JSON.
    """
    path = folder / PLAN
    return read_json(path) if path.exists() else None
