"""From the feature sets of a run directory to a score file."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError, IncompleteRunError, require_integer
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.meaning import Meaning
from trak_lightning.run.same_settings import current
from trak_lightning.scoring.backend import LOCAL, Backend
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, require_compatible
from trak_lightning.scoring.held_out import target_outputs
from trak_lightning.scoring.predicted_lds import predicted_lds, unpredictable
from trak_lightning.scoring.same_rows import described
from trak_lightning.scoring.scores import Scores, write_scores
from trak_lightning.scoring.views import Reduction, group_targets, with_drawn
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureStore
from trak_lightning.stores.job_shards import unfinished

log = logging.getLogger(__name__)


def score_run(
    run: RunDirectory,
    store: FeatureStore,
    scorer: Scorer,
    *,
    targets: str,
    train: str = "train",
    top: int | None = None,
    groups: npt.ArrayLike | None = None,
    reduction: Reduction = "mean",
    coefficients: npt.ArrayLike | None = None,
    group_names: Sequence[str] | None = None,
    name: str | None = None,
    backend: Backend = LOCAL,
) -> tuple[Scores, bool]:
    """Score the split `targets` against the split `train`, over all checkpoints of the run.

    `top`, `groups`, `reduction` and `coefficients` are those of `trak_lightning.TRAK.score`; `group_names` are kept with the scores. The score file is `name`, by default
    the target split, with the reduction for groups: ``test-mean``. All processes of the `backend` call this.

    Returns:
        The scores, and whether they were computed now, not read from a file with the same features and settings.

    Raises:
        IncompleteRunError: nothing was featurized, or rows are missing.
    """
    top = None if top is None else require_integer("top", top, 1, "a number of training samples")
    checkpoints = load_features(run, store, targets=targets, train=train, backend=backend)
    first = checkpoints[0]
    if groups is not None:
        checkpoints = [group_targets(features, groups, reduction, coefficients) for features in checkpoints]
    elif coefficients is not None:
        raise DataError("coefficients are those of targets in their groups: give groups too")
    require_compatible(checkpoints)
    request = {**made_from(scorer, checkpoints), "top": top}
    if group_names is not None:
        request["group_names"] = list(group_names)
    path = run.scores(name or (targets if groups is None else f"{targets}-{reduction}"))
    known = current(Scores(path).settings.get("request")) if path.exists() else None
    if backend.broadcast(known == current(request)):
        return Scores(path), False
    before, now = (_method(each) for each in (known, current(request)))
    if known and before != now and backend.rank == 0:
        log.warning("score      %s: scores by %s replace those by %s; another name keeps both", path.name, now, before)
    fitted = scorer.fit(checkpoints)
    trust = predicted_lds(fitted, checkpoints)
    meaning = run.read().meaning
    settings = {
        "request": request,
        "rows": described(first.train, first.targets),
        "trust": None if trust is None else trust.to_json(),
        "trust_unknown": unpredictable(fitted, checkpoints),
        "meaning": asdict(meaning),
        "checkpoints": len(checkpoints),
        "target_split": targets,
        "train_split": train,
        "grouped": groups is not None,
    }
    outputs = {} if groups is not None else _outputs(checkpoints, meaning)
    return write_scores(path, fitted, settings, top=top, outputs=outputs), True


def _outputs(checkpoints: Sequence[CheckpointFeatures], meaning: Meaning) -> dict[str, Array]:
    """What `Scores.outputs` tells; the probability is NaN where no label counts, so that f and q are 0. Nothing where both are 0 of all
    targets, as of those of traker, which does not store them."""
    output, loss_weight, probability = target_outputs(checkpoints, meaning)
    if not (output.any() or loss_weight.any()):
        return {}
    if probability is None:
        return {"output": output}
    return {"output": output, "probability": np.where((output != 0) | (loss_weight != 0), probability, np.nan)}


def _method(request: Any) -> str:
    """The scorer that scores were asked of, in a word."""
    known = isinstance(request, dict) and isinstance(request.get("scorer"), dict)
    return str(request["scorer"].get("class")).rpartition(".")[2] if known else "other means"


def load_features(
    run: RunDirectory, store: FeatureStore, *, targets: str, train: str = "train", backend: Backend = LOCAL
) -> list[CheckpointFeatures]:
    """Open the feature sets of both splits under every checkpoint of the run, with its training subset if known.

    Raises:
        IncompleteRunError: nothing was featurized, or shards are unfinished.
    """
    for split in (train, targets):
        if missing := unfinished(run, store, split):
            raise IncompleteRunError(
                f"features of {split!r} are missing: {missing}. Run trak featurize --shard with these again; they resume where "
                "they stopped."
            )
    return [
        CheckpointFeatures(
            train=(rows := store.open(train, checkpoint.id)),
            targets=store.open(targets, checkpoint.id),
            subset=run.read_subset(checkpoint.id),
            cache=run.path / "factors" / train / checkpoint.id,
            backend=backend,
            with_drawn=with_drawn(rows, store),
        )
        for checkpoint in run.require_checkpoints()
    ]


def made_from(scorer: Scorer, checkpoints: Sequence[CheckpointFeatures]) -> dict[str, Any]:
    """Return everything that determines the scores: if it agrees, they need not be computed again. JSON values."""
    described: list[Any] = [
        [
            features.gram_identity,
            features.targets.spec.fingerprint,
            features.targets.digest(),
            None if features.subset is None else features.subset.tolist(),
        ]
        for features in checkpoints
    ]
    return {"scorer": scorer.state, "rules": scorer.rules(checkpoints), "features": fingerprint(described)}
