"""Evaluations beside the linear datamodeling score, each only where it is asked for. No torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trak_lightning.evaluation.agreement import agreement
from trak_lightning.evaluation.leave_one_out import choose_samples, leave_one_out
from trak_lightning.evaluation.mislabeled import mislabeled, read_positions
from trak_lightning.evaluation.removal import brittleness, choose_correct, counterfactual, rankings
from trak_lightning.evaluation.result import Result, read_result
from trak_lightning.retraining.outputs import Retrained, Retraining
from trak_lightning.retraining.settings import EvaluationSettings
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer
from trak_lightning.scoring.gradient_scorers import GradientCosine, GradientDot
from trak_lightning.scoring.score_run import load_features, made_from, score_run
from trak_lightning.scoring.self_influence import held_out_probabilities, self_influence
from trak_lightning.scoring.views import some_targets
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureStore


@dataclass(frozen=True)
class Further:
    """What they need in common.

    Args:
        datamodule: may know which training samples are mislabelled.
        retrain: trains models and stores their outputs.
    """

    run: RunDirectory
    store: FeatureStore
    scorer: Scorer
    settings: EvaluationSettings
    train: str
    targets: str
    seed: int
    datamodule: Any
    retrain: Callable[[Sequence[Retraining]], Any]

    def results(self) -> Iterator[Result]:
        """The results that the settings ask for; those of the same request are read."""
        asked = {
            "counterfactual": (self.settings.counterfactual, self._counterfactual),
            "brittleness": (self.settings.brittleness, self._brittleness),
            "leave-one-out": (self.settings.leave_one_out, self._leave_one_out),
            "mislabeled": (self.settings.mislabeled, self._mislabeled),
            "agreement": (self.settings.agreement, self._agreement),
        }
        for kind, (size, compute) in asked.items():
            if size:
                yield self._kept(kind, size, compute)

    def _kept(self, kind: str, size: Any, compute: Callable[[dict[str, Any]], Result]) -> Result:
        request = {
            **made_from(self.scorer, self._checkpoints),
            "size": size,
            "repeats": self.settings.repeats,
            "seed": self.seed,
        }
        if kind == "mislabeled":
            request["positions"] = fingerprint(self._known.tolist())
        path = self.run.evaluation / f"{kind}-{self.targets}.json"
        if path.exists() and (found := read_result(path)).request == request:
            return found
        result = compute(request)
        result.write(path)
        return result

    def _counterfactual(self, request: dict[str, Any]) -> Result:
        targets = choose_correct(self._outputs, self.settings.counterfactual)
        return counterfactual(self._rankings(targets), targets, self._retrained, request, seed=self.seed)

    def _brittleness(self, request: dict[str, Any]) -> Result:
        targets = choose_correct(self._outputs, self.settings.brittleness)
        return brittleness(self._rankings(targets), targets, self._retrained, request)

    def _leave_one_out(self, request: dict[str, Any]) -> Result:
        values = np.asarray(self._scores)
        samples = choose_samples(values, self.settings.leave_one_out)
        dots = np.concatenate([block[:, samples] for block in GradientDot().fit(self._checkpoints).blocks()])
        noise = np.random.default_rng(self.seed).standard_normal(dots.shape)
        compared = {"scores": values[:, samples], "gradient dot product": dots, "random": noise}
        return leave_one_out(compared, samples, self._retrained, request, seed=self.seed)

    def _mislabeled(self, request: dict[str, Any]) -> Result:
        settings = self.scorer.state
        found = self_influence(
            self._checkpoints, settings.get("regularization", "auto"), settings.get("weights", "auto")
        ).self_influence
        probabilities, held_out = held_out_probabilities(self._checkpoints)
        norms = np.mean([_gradient_norms(features) for features in self._checkpoints], axis=0)
        name = "1 − p(label), models not trained on it" if held_out else "1 − p(label)"
        random = np.random.default_rng(self.seed).random(len(found))
        suspicion = {"self-influence": found, name: 1 - probabilities, "loss gradient norm": norms, "random": random}
        return mislabeled(suspicion, self._known, request)

    def _agreement(self, request: dict[str, Any]) -> Result:
        return agreement(self.scorer, self._checkpoints, request)

    @cached_property
    def _checkpoints(self) -> list[CheckpointFeatures]:
        return load_features(self.run, self.store, targets=self.targets, train=self.train)

    @cached_property
    def _scores(self) -> Array:
        return score_run(self.run, self.store, self.scorer, targets=self.targets, train=self.train)[0].values

    @cached_property
    def _outputs(self) -> Array:
        """f of every target, averaged over checkpoints: (m,)."""
        outputs: Array = np.mean([features.targets.column("output") for features in self._checkpoints], axis=0)
        return outputs

    @cached_property
    def _known(self) -> Array:
        size = self._checkpoints[0].train.spec.num_samples
        return read_positions(str(self.settings.mislabeled), self.datamodule, size)

    @cached_property
    def _retrained(self) -> Retrained:
        first = self._checkpoints[0]
        return Retrained(
            self.run.evaluation / "retrained",
            first.train.spec.num_samples,
            first.targets.spec.num_samples,
            self.seed,
            self.settings.repeats,
            self.retrain,
        )

    def _rankings(self, targets: Array) -> dict[str, Array]:
        scoring = GradientCosine().fit([some_targets(features, targets) for features in self._checkpoints])
        similarity = np.concatenate(list(scoring.blocks()))
        return rankings(np.asarray(self._scores[targets]), similarity, self.seed)


def _gradient_norms(features: CheckpointFeatures) -> Array:
    """|q| ‖φ‖ of every training sample, (n,): the norm of the gradient of its loss."""
    return np.concatenate(
        [np.abs(rows.loss_weight) * np.linalg.norm(rows.features, axis=1) for rows in features.train.blocks()]
    )
