"""What the page shows, as plain values."""

from dataclasses import dataclass, field

from trak_lightning.report.duplicates import Group, Pair
from trak_lightning.report.samples import Shown


@dataclass(frozen=True)
class Example:
    """A training sample beside a target."""

    index: int
    shown: Shown
    score: float
    spread: float | None
    """Standard error over checkpoints, where it is known."""


@dataclass(frozen=True)
class Target:
    """A target, what the model said of it, and why."""

    index: int
    shown: Shown
    output: float
    """f, averaged over checkpoints."""
    probability: float | None
    """Of the label, averaged over checkpoints."""
    prediction: str | None
    correct: bool | None
    helpful: tuple[Example, ...]
    harmful: tuple[Example, ...]


@dataclass(frozen=True)
class Suspect:
    """A training sample with large self-influence."""

    index: int
    shown: Shown
    self_influence: float
    leverage: float
    probability: float | None
    """Of its label, by the checkpoints that were not trained on it, or by all if that is not known or there are none."""


@dataclass(frozen=True)
class Fact:
    """One number of the run at a glance."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure with what it means. `svg` is made by us and is not escaped."""

    title: str
    text: str
    svg: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Report:
    """The page."""

    title: str
    facts: tuple[Fact, ...]
    targets: tuple[Target, ...]
    num_targets: int
    suspects: tuple[Suspect, ...]
    held_out: bool
    """Whether `Suspect.probability` is of checkpoints that did not see the sample."""
    evaluations: tuple[Figure, ...]
    settings: tuple[Fact, ...]
    groups: tuple[Group, ...] | None = None
    pairs: tuple[Pair, ...] | None = None
    twins: dict[str, Shown] = field(default_factory=dict)
    """How the samples of groups and pairs look, under ``train-3`` and ``target-3``."""
    notes: tuple[str, ...] = ()
    """What could not be shown, and why."""

    @property
    def leverage(self) -> bool:
        """Whether leverage says anything that self-influence does not."""
        return any(abs(each.leverage - each.self_influence) > 1e-6 * abs(each.leverage) for each in self.suspects)
