"""The scores to evaluate: a scorer on the features of a run. No torch."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from trak_lightning.featurize.reuse import LOW_PRECISION_TOLERANCE, TOLERANCE
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, evenly
from trak_lightning.scoring.gradient_scorers import GradientCosine
from trak_lightning.scoring.score_run import load_features, made_from, score_run
from trak_lightning.scoring.views import some_targets
from trak_lightning.stores.base import FeatureSet, FeatureStore

OUTPUTS = 100
"""How many outputs say which function the models are judged by."""


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
        """What the stored rows are of, as `SubsetPlan.rows`: hashes of the samples, and outputs of one checkpoint on some targets. JSON."""
        train, targets = self.checkpoints[0].train, self.checkpoints[0].targets
        exact = targets.spec.fingerprint.get("precision") in ("32-true", "64-true")
        some = evenly(self.num_targets, OUTPUTS)
        return {
            "training samples": _content(train),
            "targets": _content(targets),
            "checkpoint": targets.spec.checkpoint,
            "outputs": targets.column("output")[some].tolist(),
            "tolerance": TOLERANCE if exact else LOW_PRECISION_TOLERANCE,
        }

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


def _content(features: FeatureSet) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(features.column("content")).data)
