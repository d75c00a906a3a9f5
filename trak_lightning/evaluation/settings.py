"""Settings of `trak evaluate`; the names are those of configuration files. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from trak_lightning.errors import SettingsError

MODELS = 100
"""How many models judge scores where nobody says."""


@dataclass
class EvaluationSettings:
    """What `trak evaluate` measures: the linear datamodeling score (LDS), and more on request.

    Args:
        models: number of models to retrain on random subsets that the ensemble did not use, for the LDS; 0 for no LDS. Default: 100, and
            none in `trak run` where checkpoints are named.
        protocol: ``halves`` to train every model on another random subset with another seed; ``fixed_seed`` to repeat one
            training, with the same initialization and batches, each time without a few random samples.
        fraction: share of the training set in each subset of protocol ``halves``.
        removed: share of the training set that each model of protocol ``fixed_seed`` is trained without.
        compare: names of further scorers to compare the chosen one with, such as tracin or influence, each with its default settings;
            for other settings, evaluate with that scorer, which retrains nothing.
        ceiling: number of these models to retrain with a second seed, to estimate the LDS of a perfect prediction.
        counterfactual: number of targets to retrain models for without their most helpful samples.
        brittleness: number of targets to search for the smallest prediction-flipping removal.
        leave_one_out: number of training samples to leave out, one at a time.
        mislabeled: a .npy file with the positions of training samples known to be mislabeled, or ``data`` to read them
            from the DataModule's attribute ``mislabeled``: how early does self-influence find them?
        agreement: whether to compare the scores of single checkpoints with each other.
        repeats: number of models to train with different seeds, and to average, wherever single subsets matter.
        workers: number of processes that retrain at the same time.
    """

    models: int = None  # type: ignore[assignment]  # so that a configuration keeps that nobody chose a number
    protocol: Literal["halves", "fixed_seed"] = "halves"
    fraction: float = 0.5
    removed: float = 0.05
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
        if self.models is None:
            self.models = MODELS
        for name in ("models", "ceiling", "counterfactual", "brittleness", "leave_one_out"):
            if getattr(self, name) < 0:
                raise SettingsError(
                    f"evaluation.{name} must be a number of models or samples ≥ 0, got {getattr(self, name)}"
                )
        for name in ("models", "ceiling", "leave_one_out"):
            if getattr(self, name) == 1:
                raise SettingsError(
                    f"evaluation.{name} must be 0 or at least 2, got 1: a rank correlation of one value is none"
                )
        for name in ("repeats", "workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise SettingsError(f"evaluation.fraction must lie in (0, 1], got {self.fraction}")
        if not 0 < self.removed < 1:
            raise SettingsError(f"evaluation.removed must lie in (0, 1), got {self.removed}")
        if self.protocol == "fixed_seed" and self.ceiling:
            raise SettingsError(
                f"evaluation.ceiling must be 0 with evaluation.protocol fixed_seed, got {self.ceiling}: the ceiling measures the "
                "noise of other seeds, and here all models have the same"
            )
        if self.ceiling > self.models:
            raise SettingsError(
                f"evaluation.ceiling is {self.ceiling}, more than the {self.models} models there are to repeat"
            )

    @property
    def retrains(self) -> bool:
        """Whether models are trained for what is asked."""
        return any((self.models, self.counterfactual, self.brittleness, self.leave_one_out))
