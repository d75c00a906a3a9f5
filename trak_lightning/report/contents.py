"""Contents of the page, as plain values."""

from dataclasses import dataclass, field

from trak_lightning.report.duplicates import Group, Pair
from trak_lightning.report.samples import Shown


@dataclass(frozen=True)
class Example:
    """A training sample next to a target."""

    index: int
    shown: Shown
    score: float
    spread: float | None
    """Standard error over checkpoints, if known."""


@dataclass(frozen=True)
class Target:
    """A target, the prediction of the model, and the examples behind it."""

    index: int
    shown: Shown
    output: float
    """f, averaged over checkpoints."""
    probability: float | None
    """Probability of the label, averaged over checkpoints."""
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
    """Probability of its label under the checkpoints that were not trained on it, or under all if there are none or this is unknown."""


@dataclass(frozen=True)
class Fact:
    """One fact about the run."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """A figure, a table, and what they mean. `svg` is made by us and is not escaped."""

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
    """Whether `Suspect.probability` is from checkpoints that were not trained on the sample."""
    evaluations: tuple[Panel, ...]
    settings: tuple[Fact, ...]
    groups: tuple[Group, ...] | None = None
    pairs: tuple[Pair, ...] | None = None
    twins: dict[str, Shown] = field(default_factory=dict)
    """The samples of groups and pairs as shown, by ``train-3`` or ``target-3``."""
    notes: tuple[str, ...] = ()
    """What could not be shown, and why."""

    @property
    def leverage(self) -> bool:
        """Whether leverage differs from self-influence."""
        return any(abs(each.leverage - each.self_influence) > 1e-6 * abs(each.leverage) for each in self.suspects)
