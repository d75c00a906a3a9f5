"""Scores of one recorded training, judged by repetitions of it without some samples. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError, IncompleteRunError, SettingsError
from trak_lightning.evaluation.lds_run import fixed_seed_folder, fixed_seed_retrainings
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.retraining.outputs import Retraining, missing, store_outputs
from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.run.directory import RunDirectory
from trak_lightning.runtime.progress import progress
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.score_run import load_features, made_from
from trak_lightning.scoring.scores import Scores, open_scores


def store_repetitions(
    scores: Scores,
    outputs: Callable[[npt.NDArray[np.int64]], npt.ArrayLike],
    models: int = 100,
    removed: float = 0.05,
    seed: int = 0,
) -> None:
    """Repeat a training without random samples, and keep the outputs for ``trak evaluate --name``.

    Models whose outputs are there are not trained again.

    Args:
        scores: what `write_matrix` returned, with ``repeated_by`` among its settings.
        outputs: ``outputs(subset)`` repeats the training with the samples at `subset` (s,) only, and returns the outputs (m,).
        models: number of repetitions.
        removed: share of the training samples that each of them leaves out.
        seed: draws them; the setting ``seed`` of `trak evaluate`.

    Raises:
        IncompatibleRunError: the folder holds outputs of another training.
        DataError: `removed` leaves out no sample.
    """
    settings = EvaluationSettings(models=models, protocol="fixed_seed", removed=removed)
    run = RunDirectory(scores.path.parents[1])
    plan = SubsetPlan("fixed_seed", scores.shape[1], 1 - removed, seed, scores.settings["request"])
    folder = fixed_seed_folder(run, removed, scores.path.stem)
    todo = missing(fixed_seed_retrainings(plan, folder, settings))
    plan.record(folder)
    with progress("retrain", len(todo)) as advance:
        for each in todo:
            store_outputs(each, np.asarray(outputs(each.subset), np.float32))
            advance(1)


@dataclass(frozen=True)
class RecordedRun(ScoredRun):
    """A score file about one recorded training, in place of a scorer; `target_split` is the name of the file.

    Args:
        compared_split: the split of the same targets, for the scorers to compare with, if it is featurized.
    """

    compared_split: str = "test"

    @cached_property
    def stored(self) -> Scores:
        """The score file.

        Raises:
            DataError: there is none of that name, or it is about models that `trak evaluate` trains itself.
        """
        found = open_scores(self.run, self.target_split)
        if "repeated_by" not in found.settings:
            raise DataError(
                f"{found.path} is not about a recorded training: leave out --name, and name its scorer with --scorer and its targets "
                f"with --target_split {found.target_split or found.path.stem}."
            )
        return found

    @cached_property
    def checkpoints(self) -> list[CheckpointFeatures]:
        """Those of the compared split; none if it is not featurized, or holds other targets."""
        try:
            found = load_features(self.run, self.store, targets=self.compared_split, train=self.train_split)
        except IncompleteRunError:
            return []
        shapes = {(each.targets.spec.num_samples, each.train.spec.num_samples) for each in found}
        return found if shapes == {self.stored.shape} else []

    @property
    def num_train(self) -> int:
        return self.stored.shape[1]

    @property
    def num_targets(self) -> int:
        return self.stored.shape[0]

    @cached_property
    def made_from(self) -> dict[str, Any]:
        return {
            "scores": self.stored.settings["request"],
            "features": self.checkpoints and made_from(self.scorer, self.checkpoints),
        }

    @property
    def rows(self) -> dict[str, Any]:
        return {}  # the recording names itself in its scores

    @cached_property
    def scores(self) -> Array:
        return self.stored.values

    @property
    def title(self) -> str:
        return self.target_split

    def require(self, settings: EvaluationSettings) -> None:
        """Check that `settings` ask for what can be said about one recorded training.

        Raises:
            SettingsError: another protocol, or another evaluation; names it.
            IncompleteRunError: there are no features for the scorers to compare with.
            DataError: there are no such scores.
        """
        usual = EvaluationSettings(settings.models, "fixed_seed", removed=settings.removed, compare=settings.compare)
        for each in fields(usual):
            if getattr(settings, each.name) != getattr(usual, each.name) and each.name != "fraction":
                raise SettingsError(
                    f"scores {self.stored.path.stem} are about one recorded training: evaluation.{each.name} must be "
                    f"{getattr(usual, each.name)}, got {getattr(settings, each.name)}"
                )

        if settings.compare and not self.checkpoints:
            raise IncompleteRunError(
                f"evaluation.compare needs features of the {self.num_targets} targets of scores {self.title}, and split "
                f"{self.compared_split} has none. Featurize them, and name their split with --target_split."
            )

    def retrain(self, plan: SubsetPlan, folder: Path, retrainings: Sequence[Retraining]) -> None:
        """See `trak_lightning.retraining.outputs.Retrain`; nothing is trained here, since only the recording can be repeated.

        Raises:
            IncompleteRunError: repetitions are missing; says how to make them.
            IncompatibleRunError: those that are there are not of this training.
        """
        if absent := len(missing(retrainings)):
            raise IncompleteRunError(
                f"{absent} of {len(retrainings)} repetitions of the recorded training are missing in {folder}. Make them with "
                f"{self.stored.settings['repeated_by']}."
            )
        if folder.exists():
            replace(plan, recipe=self.stored.settings["request"]).record(folder)
