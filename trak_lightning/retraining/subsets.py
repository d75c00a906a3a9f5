"""Random subsets of the training set, one for each retrained model, and the folder that records them. No torch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError
from trak_lightning.run.atomic import atomic_create
from trak_lightning.run.directory import read_json
from trak_lightning.run.same_settings import require_same
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

    Raises:
        DataError: `fraction` is not in (0, 1], or leaves no sample.
    """

    purpose: str
    num_samples: int
    fraction: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)

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
        """
        path = folder / PLAN
        plan = json.dumps(asdict(self), indent=1, default=str)  # settings may be paths, dtypes, enumerations
        if not path.exists():
            with atomic_create(path) as part:
                part.write_text(plan)
        require_same(read_json(path), json.loads(plan), folder)  # another process may have written it first


PLAN = "plan.json"


def recorded_plan(folder: Path) -> dict[str, Any] | None:
    """The plan that `SubsetPlan.record` wrote to `folder`, or None.

    Raises:
        CorruptFileError: the file is not JSON.
    """
    path = folder / PLAN
    return read_json(path) if path.exists() else None
