"""How early does self-influence find samples that are known to be mislabeled? No torch."""

from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.figures import Curves, Series
from trak_lightning.evaluation.result import Result
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.run.numpy_files import read_given
from trak_lightning.run.positions import some
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.held_out import held_out_probabilities
from trak_lightning.scoring.regularization import settings_of
from trak_lightning.scoring.self_influence import self_influence


def known_positions(source: str, datamodule: Any, num_samples: int) -> Array:
    """Read the positions of mislabeled training samples from a ``.npy`` file (integers, or a mask), or from the DataModule's
    attribute ``mislabeled`` if `source` is ``data``.

    Raises:
        DataError: there are none, or they belong to other data.
    """
    if source == "data":
        found = getattr(datamodule, "mislabeled", None)
        if found is None:
            raise DataError(
                f"{type(datamodule).__name__} has no attribute 'mislabeled' with the positions of mislabeled training samples; give it "
                "one, or name a .npy file under evaluation.mislabeled"
            )
    else:
        found = read_given(source, "evaluation.mislabeled must be a .npy file of positions or 'data'")
    return some(found, num_samples, "mislabeled sample")


def auc(suspicion: Array, positives: Array) -> float:
    """Area under the ROC curve: the probability that a sample of `positives` (mask) has a larger value than another sample;
    ties count half."""
    from scipy.stats import rankdata

    ranks, count = rankdata(suspicion), int(positives.sum())
    return float((ranks[positives].sum() - count * (count + 1) / 2) / (count * (len(suspicion) - count)))


def suspicions(scored: ScoredRun) -> dict[str, Array]:
    """Measures of how likely the label of each training sample is wrong: name → (n,), larger for more suspicious ones."""
    checkpoints = scored.checkpoints
    found = {"self-influence": self_influence(checkpoints, *settings_of(scored.scorer)).self_influence}
    meaning = scored.run.read().meaning
    probabilities, held_out = held_out_probabilities(checkpoints, meaning)
    if probabilities is not None:
        name = f"1 − {meaning.probability_name}"
        found[f"{name}, models not trained on it" if held_out else name] = 1 - probabilities
    found["loss gradient norm"] = np.mean([_gradient_norms(features) for features in checkpoints], axis=0)
    found["random"] = np.random.default_rng(scored.seed).random(scored.num_train)
    return found


def _gradient_norms(features: CheckpointFeatures) -> Array:
    """|q| ‖φ‖ of each training sample, (n,): the norm of the gradient of its loss."""
    return np.concatenate(
        [np.abs(rows.loss_weight) * np.linalg.norm(rows.features, axis=1) for rows in features.train.blocks()]
    )


def mislabeled(suspicion: dict[str, Array], positions: Array) -> Result:
    """Compute AUC and precision among the first k for each measure: name → (n,), larger for more suspicious samples."""
    n = len(next(iter(suspicion.values())))
    known = np.zeros(n, dtype=bool)
    known[positions] = True
    at = sorted({min(k, n) for k in (10, 50, len(positions))})
    rows, series, values = [], [], {}
    for name, of_sample in suspicion.items():
        hits = known[np.argsort(-of_sample, kind="stable")]
        area = auc(of_sample, known)
        precision = [float(hits[:k].mean()) for k in at]
        rows.append((name, f"{area:.3f}", *(f"{each:.2f}" for each in precision)))
        places = np.unique(np.linspace(0, n, 101).astype(int))
        series.append(
            Series(
                name,
                tuple(float(place / n) for place in places),
                tuple(float(hits[:place].sum() / known.sum()) for place in places),
            )
        )
        values[name] = {"auc": area, "precision": dict(zip(map(str, at), precision, strict=True))}
    return Result(
        "mislabeled",
        f"Mislabeled samples: {len(positions)} of {n} are known",
        "Training examples are inspected in the order of each measure, most suspicious first. AUC is the probability that a "
        "mislabeled example comes before a correct one; precision at k is the share of mislabeled ones among the first k. The curve "
        "shows the share of all mislabeled examples found after inspecting part of the training set.",
        f"AUC {rows[0][1]} by self-influence, precision {rows[0][2 + at.index(len(positions))]} at {len(positions)}",
        ("by", "AUC", *(f"precision at {k}" for k in at)),
        tuple(rows),
        values,
        Curves(tuple(series), "share of the training set inspected", "share of mislabeled examples found"),
    )
