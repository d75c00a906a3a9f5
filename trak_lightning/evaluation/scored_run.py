"""The scores to evaluate: a scorer on the features of a run. No torch."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer
from trak_lightning.scoring.gradient_scorers import GradientCosine
from trak_lightning.scoring.same_rows import described
from trak_lightning.scoring.score_run import load_features, made_from, score_run
from trak_lightning.scoring.views import some_targets
from trak_lightning.stores.base import FeatureStore


@dataclass(frozen=True)
class ScoredRun:
    """A scorer on the features of a run; features are loaded, and scores computed or read, when first used.

    Args:
        run: the run directory.
        store: where its features are.
        scorer: turns them into scores.
        target_split: name of the targets' split.
        train_split: name of the training samples' split.
        seed: of subsets, random baselines and bootstrap intervals.

    Raises:
        IncompleteRunError: nothing was featurized, or rows are missing.
    """

    run: RunDirectory
    store: FeatureStore
    scorer: Scorer
    target_split: str
    train_split: str = "train"
    seed: int = 0

    @cached_property
    def checkpoints(self) -> list[CheckpointFeatures]:
        """Feature sets of both splits, per checkpoint."""
        return load_features(self.run, self.store, targets=self.target_split, train=self.train_split)

    @property
    def num_train(self) -> int:
        """n, the number of training samples."""
        return self.checkpoints[0].train.spec.num_samples

    @property
    def num_targets(self) -> int:
        """m, the number of targets."""
        return self.checkpoints[0].targets.spec.num_samples

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """Everything that determines the scores. JSON."""
        return made_from(self.scorer, self.checkpoints)

    @cached_property
    def rows(self) -> dict[str, Any]:
        """What the stored rows are of, see `described`; for `SubsetPlan.rows`."""
        return described(self.checkpoints[0].train, self.checkpoints[0].targets)

    @cached_property
    def scores(self) -> Array:
        """The scores, (m, n)."""
        return score_run(self.run, self.store, self.scorer, targets=self.target_split, train=self.train_split)[0].values

    @cached_property
    def outputs(self) -> Array:
        """Output f of each target, averaged over checkpoints: (m,)."""
        outputs: Array = np.mean([features.targets.column("output") for features in self.checkpoints], axis=0)
        return outputs

    @property
    def title(self) -> str:
        """What the scores are called in results: the scorer with those settings that differ from its defaults."""
        defaults = {
            name: parameter.default for name, parameter in inspect.signature(type(self.scorer)).parameters.items()
        }
        settings = {
            key: value for key, value in self.scorer.state.items() if key != "class" and defaults.get(key) != value
        }
        return f"{type(self.scorer).__name__}({', '.join(f'{key}={value}' for key, value in settings.items())})"

    def gradient_similarity(self, targets: Array) -> Array:
        """Cosine of the projected gradients of these targets and of all training samples: (len(targets), n)."""
        scoring = GradientCosine().fit([some_targets(features, targets) for features in self.checkpoints])
        return np.concatenate(list(scoring.blocks()))
