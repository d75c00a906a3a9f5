"""The settings that determine a feature, in addition to the weights and the sample."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors.base import Projector
from trak_lightning.stores.base import draw_of
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.drawn import DrawnLabels


@dataclass(frozen=True)
class FeaturizeSpec:
    """The settings of featurizing.

    Args:
        task: the model output function.
        extractor: how per-sample gradients are computed; exact, so it is not part of the fingerprint.
        projector: how they are projected to k dimensions.
        layout: the parameters attributed to.
        seed: the seed of the projection.
        precision: the precision of the Trainer, such as ``32-true``.
        curvature_draws: how many times labels are drawn from the model for each training sample, for rows of the Gram matrix.
    """

    task: Task
    extractor: GradientExtractor
    projector: Projector
    layout: ParameterLayout
    seed: int = 0
    precision: str = "32-true"
    curvature_draws: int = 0

    def __post_init__(self) -> None:
        if self.curvature_draws:
            self.task.require_class_problems()

    def of_split(self, split: str) -> "FeaturizeSpec":
        """Return the settings of a split: with drawn labels, if it is one of these."""
        number = draw_of(split)
        return (
            self if number is None else replace(self, task=DrawnLabels(self.task, number, self.seed), curvature_draws=0)
        )

    def for_run(self, num_samples: int, stored: Mapping[str, Any] | None) -> "FeaturizeSpec":
        """Return the settings of a run with n training samples: those of the projector that are chosen from data are fixed.

        Args:
            num_samples: n.
            stored: the fingerprint of a feature set of the run; None if there is none yet.
        """
        projector = self.projector.for_run(self.layout, num_samples, stored and stored.get("projector"))
        return replace(self, projector=projector)

    @property
    def dim(self) -> int:
        """k, the number of features of one sample."""
        return self.projector.output_dim(self.layout)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON values that two feature sets must share before their rows can be compared."""
        return {
            "parameters": self.layout.fingerprint,
            "task": self.task.state,
            "loss_function": self.task.loss_function,
            "projector": self.projector.state,
            "seed": self.seed,
            "precision": self.precision,
        }
