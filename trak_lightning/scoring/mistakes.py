"""Targets whose label is not what the models say. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, Protocol, overload

import numpy as np

from trak_lightning.errors import needed_for
from trak_lightning.run.formatting import format_percent
from trak_lightning.scoring.base import Array

HALF = 0.5 + 5e-3
"""Up to which p(label) another class may be more probable, by as much as may differ what is computed in the precision of the features."""


@dataclass(frozen=True)
class Mistake:
    """A target, its label, and what the models say instead: means over checkpoints."""

    target: int
    """Position of the target in its dataset."""
    label: str | None
    """The class, or the number y; None if the target shows none."""
    says: str
    """The most probable class, or the number that is predicted; of several labels, those that differ, each with its probability."""
    says_probability: float | None
    """Probability of that class; None for numbers and several labels."""
    probability: float | None
    """Probability of the label, of several labels the mean; None for numbers."""
    error: float | None
    """|y − f| of a number; None for classes."""

    @property
    def said(self) -> str:
        """What the models say and how surely: ``Shirt (88 %)``."""
        return self.says if self.says_probability is None else f"{self.says} ({format_percent(self.says_probability)})"

    def __repr__(self) -> str:
        return f"target {self.target}{'' if self.label is None else f' labeled {self.label}'}: models say {self.said}"


@dataclass(frozen=True)
class Mistakes(Sequence[Mistake]):
    """The targets whose label is not the most probable class, worst first: ascending p(label). Of a task that predicts numbers, all
    targets, those with the largest error first."""

    found: tuple[Mistake, ...]
    num_targets: int
    number: bool = False
    """Whether the task predicts numbers."""

    @property
    def indices(self) -> Array:
        """(r,) positions of these targets, worst first."""
        return np.array([each.target for each in self.found], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, place: int) -> Mistake: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Mistake, ...]: ...
    def __getitem__(self, place: int | slice) -> Mistake | tuple[Mistake, ...]:
        return self.found[place]

    def describe(self) -> str:
        """Say in one sentence what was found."""
        if self.number:
            return f"{self.num_targets:,} targets, largest errors first"
        return (
            f"{len(self):,} of {self.num_targets:,} targets, worst first: the models say another class than the label"
        )

    def __repr__(self) -> str:
        more = [f"… {len(self) - 10:,} more"] if len(self) > 10 else []
        return "\n".join([self.describe(), *map(repr, self.found[:10]), *more])

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each mistake, worst first, and the columns of `Mistake`.

        Raises:
            DataError: pandas is not installed.
        """
        with needed_for("to_frame", "pandas"):
            import pandas as pd
        return pd.DataFrame([asdict(each) for each in self.found], columns=[each.name for each in fields(Mistake)])

    def to_kept(self) -> dict[str, Any]:
        """Return all as JSON values, for `from_kept`."""
        return {"num_targets": self.num_targets, "number": self.number, "found": [astuple(each) for each in self.found]}

    @classmethod
    def from_kept(cls, kept: Mapping[str, Any]) -> "Mistakes":
        return cls(tuple(Mistake(*each) for each in kept["found"]), kept["num_targets"], kept["number"])

    def to_json(self, count: int) -> dict[str, Any]:
        """Return the first `count` as JSON values, with the positions of all."""
        return {
            "found": self.describe(),
            "num_targets": self.num_targets,
            "indices": self.indices.tolist(),
            "mistakes": [asdict(each) for each in self.found[:count]],
        }


class PredictsTargets(Protocol):
    """Predicts scored targets with the checkpoints when it is asked to, such as `trak_lightning.decisions.target_predictor.TargetPredictor`."""

    def mistakes(self) -> Mistakes: ...

    def says(self, target: int) -> str | None:
        """What the models say of a target where that is not its label; None if it is, or is not known."""
