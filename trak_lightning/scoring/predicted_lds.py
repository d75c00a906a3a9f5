"""How well would scores predict retrained models? Judged by the checkpoints themselves; nothing is retrained.

Shapes: M checkpoints, n training samples, t targets, k dimensions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import hyp2f1, stdtrit

from trak_lightning.errors import docs_page
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scoring, evenly
from trak_lightning.scoring.calibration import (
    FEWEST,
    correlations,
    knows_subsets,
    masks,
    trained_on_part,
    weighted_sums,
)
from trak_lightning.scoring.inner_products import InnerProducts
from trak_lightning.scoring.lds_in_words import CHANCE, UNCERTAIN, UNKNOWN, WORDS, in_words
from trak_lightning.scoring.views import some_targets

JUDGED = 500
"""Number of targets, evenly spaced, that scores are judged on."""

MORE = 3
"""The number of further checkpoints whose gain is stated."""

TELLING = 8
"""Of so many checkpoints, intervals had a width of 0.2 to 0.5 in simulations, and of four, of 0.7 to 2 (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Trust:
    """The linear datamodeling score that retraining would give, as predicted from the checkpoints of the run."""

    lds: float
    low: float
    high: float
    """95 % interval, by the jackknife over checkpoints; it does not know by how much the prediction itself is biased."""
    gain: float
    """What `MORE` further checkpoints would add."""
    checkpoints: int

    @property
    def sentence(self) -> str:
        word = in_words(self.lds, self.low, self.high)
        if word == UNKNOWN:
            more = max(TELLING, 2 * self.checkpoints) - self.checkpoints
            return (
                f"{word}: the rank correlation with retrained models (LDS) is anywhere in [{self.low:.2f}, {self.high:.2f}]; about {more} more "
                "checkpoints would narrow this"
            )
        found = f"{word}: sums of scores would predict retrained models with a rank correlation (LDS) of about {self.lds:.2f} [{self.low:.2f}, {self.high:.2f}]"
        gain = f"{max(self.gain, 0):.2f}"
        if gain == "0.00" or word in (UNCERTAIN, CHANCE, WORDS[0][1]):  # the gain is known no better than the LDS
            return found
        return f"{found}; {MORE} more checkpoints would bring about {gain}"

    def to_json(self) -> dict[str, Any]:
        """Return the numbers and the sentence."""
        return asdict(self) | {"sentence": self.sentence}


def _page() -> str:
    return docs_page("evaluation", "Models that you train yourself")


def unpredictable(scoring: Scoring, checkpoints: Sequence[CheckpointFeatures]) -> str | None:
    """Say why the checkpoints cannot judge these scores; None if they can."""
    if not isinstance(scoring, InnerProducts):
        return f"unknown: scores of this kind cannot be summed over other subsets; retrained models tell: {_page()}"
    if knows_subsets(checkpoints):
        return None
    M = len(checkpoints)
    parts = sum(map(trained_on_part, checkpoints))
    if parts == M:
        return f"unknown: needs {FEWEST} checkpoints, has {M}; train more: --ensemble.size {FEWEST}"
    whole = sum(features.subset is not None for features in checkpoints) - parts
    others = f"; the recorded subsets of {whole} are the whole training set" if whole else ""
    return f"unknown: needs {FEWEST} checkpoints trained on recorded parts of the data, has {parts}{others} ({_page()})"


def predicted_lds(scoring: Scoring, checkpoints: Sequence[CheckpointFeatures]) -> Trust | None:
    """Let checkpoints with recorded training subsets S_j judge scores that are made from the others.

    Scores from the checkpoints other than j are summed over S_j and correlated with f(z; θ_j) over j, for each target z.
    The correlation over few models is biased towards 0 and is corrected for that, and for the checkpoint that is missing
    from each sum: independent noise in the scores of a checkpoint makes the correlation grow as √(M/(M + c)), and c follows
    from how much better the sums over M − 1 checkpoints do than single ones.

    Returns:
        None with fewer than four checkpoints, without recorded subsets, or for scores that are no sums of inner products.
    """
    if not isinstance(scoring, InnerProducts) or unpredictable(scoring, checkpoints):
        return None
    M = len(checkpoints)
    predicted, outputs = _predictions(scoring, checkpoints)
    whole = _estimate(predicted, outputs, range(M))
    left_out = np.array([_estimate(predicted, outputs, [j for j in range(M) if j != i]) for i in range(M)])
    error = float(stdtrit(M - 1, 0.975) * np.sqrt((M - 1) / M * ((left_out - left_out.mean(0)) ** 2).sum(0))[0])
    lds, gain = (float(value) for value in whole)
    return Trust(lds, max(lds - error, -1.0), min(lds + error, 1.0), gain, M)


def _predictions(scoring: InnerProducts, checkpoints: Sequence[CheckpointFeatures]) -> tuple[Array, Array]:
    """Outputs of model j on target z, (M, t), and what scores of checkpoint m say of them, (m, j, t)."""
    chosen = evenly(checkpoints[0].targets.spec.num_samples, JUDGED)
    coefficients = np.stack(
        [
            np.concatenate([part.coefficient(rows) for rows in features.train.blocks()])
            for part, features in zip(scoring.parts, checkpoints, strict=True)
        ],
        axis=1,
    )
    subsets = masks(checkpoints, coefficients.astype(np.float64))
    predicted, outputs = [], []
    for part, features in zip(scoring.parts, checkpoints, strict=True):
        rows = some_targets(features, chosen).targets.read_block(0)
        left = np.asarray(part.left(rows.features), dtype=np.float64)
        predicted.append(weighted_sums(features, subsets) @ left.T)
        outputs.append(rows.output.astype(np.float64))
    return np.stack(predicted), np.stack(outputs)


def _estimate(predicted: Array, outputs: Array, models: Sequence[int]) -> Array:
    """The predicted LDS of all these checkpoints, and what further ones would add: (2,)."""
    M = len(models)
    kept, observed = predicted[np.ix_(models, models)], outputs[list(models)]
    others = 1 - np.eye(M)
    together = _correlation(np.einsum("mj,mjt->jt", others, kept), observed)
    single = float(np.mean([_correlation(np.delete(kept[m], m, 0), np.delete(observed, m, 0)) for m in range(M)]))
    noise = _noise(single, together, M - 1)

    def with_checkpoints(count: int) -> float:
        correlation = together * np.sqrt((M - 1 + noise) / (M - 1) * count / (count + noise))
        return float(6 / np.pi * np.arcsin(np.clip(correlation, -1, 1) / 2))

    now = with_checkpoints(M)
    return np.array([now, with_checkpoints(M + MORE) - now])


def _noise(single: float, together: float, M: int) -> float:
    """c in √(M/(M + c)), from the correlations of one checkpoint and of M; 0 if more do not help."""
    if not 0 < single < together:
        return 0.0
    ratio = (together / single) ** 2
    return float((ratio - 1) / (1 - ratio / M)) if ratio < 0.9 * M else 10.0 * M


def _correlation(predicted: Array, observed: Array) -> float:
    """Mean over targets of the correlation over models of (S, t) arrays, corrected for its bias (Olkin and Pratt 1958)."""
    found = correlations(predicted, observed)
    found = found[~np.isnan(found)]
    # Over few models the correction is large, and infinite over two: no correlation is beyond ±1.
    unbiased = np.clip(found * hyp2f1(0.5, 0.5, (len(predicted) - 2) / 2, 1 - found**2), -1, 1)
    return float(unbiased.mean()) if len(found) else 0.0
