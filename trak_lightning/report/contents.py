"""Contents of the page, as plain values."""

from dataclasses import dataclass, field

from trak_lightning.report.duplicates import Group, Pair
from trak_lightning.report.links import Effects
from trak_lightning.report.shown import Shown
from trak_lightning.report.tokens import TokenMarks
from trak_lightning.run.meaning import Meaning


@dataclass(frozen=True)
class Headline:
    """One sentence at the top of the page: what was found, with its number in front, and the section that shows it."""

    number: str
    text: str
    """Two or three lines of a card; what is longer is for the section."""
    section: str


@dataclass(frozen=True)
class Example:
    """A training sample next to a target."""

    index: int
    shown: Shown
    score: float
    spread: float | None
    """Standard error over checkpoints, if known."""
    tokens: TokenMarks | None = None
    """Which of its tokens moved which of the target's, if that was computed."""


@dataclass(frozen=True)
class Target:
    """A target, the prediction of the models, and the examples behind it."""

    index: int
    shown: Shown
    label: str | None
    facts: tuple[tuple[str, str], ...]
    """Names and values: the prediction, the probability of the label, the output."""
    error: float
    """Larger for targets that the models get more wrong."""
    correct: bool | None
    raises: str
    """What helpful examples do."""
    lowers: str
    helpful: tuple[Example, ...]
    harmful: tuple[Example, ...]


@dataclass(frozen=True)
class ShownSuspect:
    """A training sample that may be mislabeled."""

    index: int
    shown: Shown
    label: str | None
    says: str | None
    """What the models say, if that is not the label."""
    why: str
    likely: bool
    """Whether its label is likely wrong, and not just the next in line."""


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
    headlines: tuple[Headline, ...]
    meaning: Meaning
    targets: tuple[Target, ...]
    num_targets: int
    num_checkpoints: int
    suspects: tuple[ShownSuspect, ...]
    suspicion: tuple[str, str]
    """What was found, in sentences, and what the order of suspects is by."""
    evaluations: tuple[Panel, ...]
    expert: tuple[Panel, ...]
    """Plots that are folded."""
    settings: tuple[tuple[str, str], ...]
    """Names and values."""
    groups: tuple[Group, ...] | None = None
    pairs: tuple[Pair, ...] | None = None
    twins: dict[str, Shown] = field(default_factory=dict)
    """The samples of groups and pairs as shown, by ``train-3`` or ``target-3``."""
    effects: dict[int, Effects] = field(default_factory=dict)
    """The targets that each training sample on the page helps and harms."""
    trust: str = ""
    """How far to trust the scores, where nothing was evaluated."""
    notes: tuple[str, ...] = ()
    """What makes the page wrong, or empty in parts, for its top."""
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What a section does not show, and why, by the name of the section."""
