"""The settings of a run that need no torch to be read; the names are those of configuration files."""

from dataclasses import dataclass, field


@dataclass
class EnsembleSettings:
    """The checkpoints that `trak train` makes.

    Args:
        size: how many.
        fraction: of the training set that each is trained on, drawn at random.
    """

    size: int = 10
    fraction: float = 0.5


@dataclass
class EvaluationSettings:
    """The linear datamodeling score that `trak evaluate` computes.

    Args:
        models: how many models are retrained on random subsets that the ensemble did not use.
        fraction: of the training set in each subset.
        compare: names of further scorers to evaluate beside the one chosen, such as tracin or influence.
    """

    models: int = 100
    fraction: float = 0.5
    compare: list[str] = field(default_factory=list)
