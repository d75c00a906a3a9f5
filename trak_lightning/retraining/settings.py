"""The settings of a run that need no torch to be read; the names are those of configuration files."""

from dataclasses import dataclass, field

from trak_lightning.errors import SettingsError


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
    """What `trak evaluate` does: the linear datamodeling score, and more where it is asked for.

    Args:
        models: how many models are retrained on random subsets that the ensemble did not use.
        fraction: of the training set in each subset.
        compare: names of further scorers to evaluate beside the one chosen, such as tracin or influence.
        ceiling: how many of the models are retrained with a second seed, for the score that a perfect prediction would get.
        counterfactual: how many targets have models retrained without their most helpful samples.
        brittleness: for how many targets the fewest removals are looked for that flip the prediction.
        leave_one_out: how many training samples are left out, one at a time.
        mislabeled: a .npy file with the positions of training samples that are known to be mislabelled, or ``data`` if the
            DataModule has them as ``mislabeled``: how early does self-influence find them?
        agreement: whether the scores of single checkpoints are compared with each other.
        repeats: models retrained with different seeds, and averaged, where single subsets matter.
        workers: processes that retrain at the same time.
    """

    models: int = 100
    fraction: float = 0.5
    compare: list[str] = field(default_factory=list)
    ceiling: int = 0
    counterfactual: int = 0
    brittleness: int = 0
    leave_one_out: int = 0
    mislabeled: str | None = None
    agreement: bool = False
    repeats: int = 3
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("ceiling", "counterfactual", "brittleness", "leave_one_out"):
            if getattr(self, name) < 0:
                raise SettingsError(
                    f"evaluation.{name} must be a number of models or samples ≥ 0, got {getattr(self, name)}"
                )
        for name in ("models", "repeats", "workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        if self.ceiling > self.models:
            raise SettingsError(
                f"evaluation.ceiling is {self.ceiling}, more than the {self.models} models there are to repeat"
            )

    @property
    def needs_data(self) -> bool:
        """Whether more than the outputs of models on random subsets is needed."""
        return bool(self.counterfactual or self.brittleness or self.leave_one_out or self.mislabeled or self.agreement)
