"""A score as a sum over pairs of tokens: which tokens of a training sample moved which tokens of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trak_lightning.errors import SettingsError, StaleRowsError
from trak_lightning.scoring.base import Array, Scoring
from trak_lightning.scoring.inner_products import InnerProducts

TOLERANCE = 1e-3
"""The difference of a row from the sum over its tokens, relative to the norms of these, that rounding may cause in float32."""


@dataclass(frozen=True)
class TokenScores:
    """The score of one training sample for one target, token by token.

    Attributes:
        target: position of the target.
        example: position of the training sample.
        values: (T, U), whose sum is the score: positive where the training sample's token made the target's token more likely.
        target_positions: (T,) positions of the target's tokens among its labels.
        example_positions: (U,) positions of the training sample's tokens among its labels.
    """

    target: int
    example: int
    values: Array
    target_positions: Array
    example_positions: Array

    def __repr__(self) -> str:
        row, column = np.unravel_index(np.abs(self.values).argmax(), self.values.shape)
        return (
            f"TokenScores of target {self.target} and training sample {self.example}: {self.score:+.4g} = sum over "
            f"{self.values.shape[0]} × {self.values.shape[1]} tokens; the strongest: {self.values[row, column]:+.3g} of the training sample's "
            f"token at {self.example_positions[column]} for the target's at {self.target_positions[row]}"
        )

    @property
    def score(self) -> float:
        """The score of the pair."""
        return float(self.values.sum())


def token_values(
    scoring: Scoring,
    target: int,
    examples: Sequence[int],
    of_target: Sequence[Array],
    of_examples: Sequence[Sequence[Array]],
) -> list[Array]:
    """Split the scores of a target and some training samples: (T, U) of each, in float64.

    Scores are bilinear in the features of target and training sample, which are sums over their tokens: `of_target` (T, k) and, of each
    example, `of_examples` (U, k), under each checkpoint.

    Raises:
        SettingsError: the scorer is not linear in the features of a sample.
        StaleRowsError: a stored row is not the sum over the tokens.
    """
    if not isinstance(scoring, InnerProducts):
        raise SettingsError(
            f"scores of {type(scoring).__name__} are no sums over tokens: use scorer trak without a threshold"
        )
    products: list[list[Array]] = [[] for _ in examples]
    coefficients: list[list[float]] = [[] for _ in examples]
    for checkpoint, (part, features, left) in enumerate(
        zip(scoring.parts, scoring.checkpoints, of_target, strict=True)
    ):
        row = features.targets.rows(target, target + 1).features[0]
        left = left * _scale(left, row, "target", target)
        both = part.left(np.concatenate([left, left.sum(0, keepdims=True)]))  # in one call, which may read every row
        solved, whole = both[:-1].astype(np.float64), both[-1]
        if not np.allclose(solved.sum(0), whole, rtol=0, atol=TOLERANCE * np.abs(solved).sum(0).max()):
            raise SettingsError(
                "scores of this scorer are no sums over tokens, since it scales each row: use trak or tracin"
            )
        for place, example in enumerate(examples):
            stored = features.train.rows(example, example + 1)
            right = of_examples[place][checkpoint].astype(np.float64)
            right *= _scale(right, stored.features[0], "training sample", example)
            products[place].append(solved @ right.T)
            coefficients[place].append(float(part.coefficient(stored)[0]))
    if scoring.average == "factors":
        return [np.mean(each, axis=0) * np.mean(q) for each, q in zip(products, coefficients, strict=True)]
    return [
        np.mean([q * product for q, product in zip(qs, each, strict=True)], axis=0)
        for each, qs in zip(products, coefficients, strict=True)
    ]


def _scale(tokens: Array, row: Array, what: str, position: int) -> float:
    """What the sum over tokens must be multiplied by to be the row: 1, or less where rows are scaled to unit length."""
    total = tokens.sum(0, dtype=np.float64)
    scale = float(row @ total / max(total @ total, np.finfo(np.float64).tiny))
    difference = np.linalg.norm(row - scale * total)
    if difference > TOLERANCE * abs(scale) * np.linalg.norm(tokens, axis=1).sum():
        raise StaleRowsError(
            f"the stored row of {what} {position} is not the sum over its tokens (it differs by {difference:.3g}): data, model or "
            "code has changed since it was computed. Featurize again with repair=True."
        )
    return scale
