"""Which training samples are worth keeping for a set of targets? Chosen one by one, each given those before it. No torch.

Shapes: n training samples, m targets, b chosen samples, c candidates, K = M·k dimensions of all M checkpoints together.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from trak_lightning.errors import DataError, SettingsError, is_integer, needed_for
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.meaning import Meaning
from trak_lightning.run.numpy_files import write_npy
from trak_lightning.scoring.base import Array, CheckpointFeatures, evenly, require_compatible
from trak_lightning.scoring.held_out import held_out, held_out_mean, output_and_loss_weight
from trak_lightning.scoring.regularization import choose
from trak_lightning.scoring.rows import as_computed

MEMORY = 2**31
"""Bytes for candidates. A larger pool is cut into random parts, and a share of the budget is chosen from each."""

MOST_TARGETS = 1000
"""Of more targets, so many are chosen for, evenly spaced."""


@dataclass(frozen=True)
class Selection:
    """Training samples in the order in which they were chosen, the most useful one first."""

    indices: Array
    """(b,) positions in the training set; any first part is a selection for a smaller budget."""
    gain: Array
    """(b,) by how much each lowers the mean loss of the targets, given those before it, as predicted."""
    weights: Array | None
    """(b,) by what to multiply the loss of each, 1 on average, for all b together. None if the task predicts a number."""
    num_train: int
    num_targets: int
    groups: Array | None = None
    """(n,) the group of every training sample, if groups keep their shares."""

    def __len__(self) -> int:
        return len(self.indices)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.indices, dtype=dtype) if copy else np.asarray(self.indices, dtype=dtype)

    def __repr__(self) -> str:
        return f"Selection of {self.describe()}"

    @property
    def half(self) -> int:
        """How many of the samples, the first ones, bring half of the predicted gain."""
        return int(np.searchsorted(np.cumsum(self.gain), self.gain.sum() / 2)) + 1

    def describe(self) -> str:
        """Say in one sentence what was chosen."""
        b, n = len(self), self.num_train
        grouped = "" if self.groups is None else f", {len(np.unique(self.groups))} groups in their shares"
        return (
            f"{b} of {n} training samples ({100 * b / n:.3g} %) for {self.num_targets} targets{grouped}; "
            f"{'the first brings' if self.half == 1 else f'the first {self.half} bring'} half of the predicted gain"
        )

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each sample, in the order of the choice: index, gain, and weight and group where there are any.

        Raises:
            DataError: pandas is not installed.
        """
        with needed_for("to_frame", "pandas"):
            import pandas as pd
        return pd.DataFrame(self._columns())

    def _columns(self) -> dict[str, Array]:
        columns = {"index": self.indices, "gain": self.gain}
        if self.weights is not None:
            columns["weight"] = self.weights
        if self.groups is not None:
            columns["group"] = self.groups[self.indices]
        return columns

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        found = {"indices": self.indices.tolist(), "gain": self.gain.tolist()}
        if self.weights is not None:
            found["weights"] = self.weights.tolist()
        if self.groups is not None:
            found["group"] = [str(group) for group in self.groups[self.indices]]
        return {**found, "num_train": self.num_train, "num_targets": self.num_targets, "sentence": self.describe()}

    def write(self, folder: Path) -> None:
        """Write ``indices.npy``, ``weights.npy`` if there are weights, ``selection.csv`` and ``selection.json``."""
        rounded = {
            name: [f"{value:.6g}" for value in values] if values.dtype.kind == "f" else values
            for name, values in self._columns().items()
        }
        (folder / "weights.npy").unlink(missing_ok=True)  # of an earlier selection
        for name, values in (("indices", self.indices), ("weights", self.weights)):
            if values is not None:
                write_npy(folder / f"{name}.npy", values)
        with atomic_write(folder / "selection.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(rounded)
            writer.writerows(zip(*rounded.values(), strict=True))
        with atomic_write(folder / "selection.json") as part:
            part.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")


def select_samples(
    checkpoints: Sequence[CheckpointFeatures],
    meaning: Meaning,
    budget: float,
    *,
    groups: npt.ArrayLike | None = None,
    regularization: float | str = "auto",
) -> Selection:
    """Choose the training samples with which the targets are predicted best, one by one.

    The model is taken to be linear in the features of all checkpoints together, with λ, and is refitted, from 0, to the
    samples that were chosen: the block step of `WhatIf`, for samples that are added. Each time, that sample is chosen with which
    the mean loss of the targets falls most. A sample that resembles one already chosen adds little, and targets that are predicted
    well already count less.

    Training samples have the weight |q|, from the checkpoints that were not trained on them, so that samples from which nothing is
    left to be learned count little, and the response 1: raise the output. A task that predicts a number has weight 1, the
    response y, and squared error.

    Weights for the losses of the chosen samples make their summed gradient that of the targets; see `matching_weights`.

    Args:
        checkpoints: the stored features.
        meaning: what the output of the task means.
        budget: number of samples to choose, or a share of the training set: 1 is one sample, and 1.0 all.
        groups: (n,) the group of every training sample; each keeps its share of the pool in what is chosen.
        regularization: λ, as for the ``trak`` scorer.

    Raises:
        SettingsError: there is no such budget, or no such rule for λ.
        DataError: the groups are not n labels.
    """
    require_compatible(checkpoints)
    n, m = checkpoints[0].train.spec.num_samples, checkpoints[0].targets.spec.num_samples
    count, named = _count(budget, n), None if groups is None else _groups(groups, n)
    pool = _Pool(checkpoints, meaning, regularization, evenly(m, MOST_TARGETS), count)
    codes = np.zeros(n, np.int64) if named is None else np.unique(named, return_inverse=True)[1]
    indices, gain, weights = _chosen(pool, np.arange(n), count, codes)
    return Selection(indices, gain, None if meaning.number else weights, n, m, named)


def matching_weights(gradients: Array, wanted: Array) -> Array:
    """Return the weights ≥ 0 with which a sum of gradients is most like a wanted one, 1 on average: (b,).

    They minimize ``‖Σ_i v_i·g_i − c·wanted‖² + r·‖v − 1‖²``, before they are divided by their mean, where c gives both sums the same length at v = 1,
    and r, the mean ‖g_i‖², keeps them near 1: weights that vary are worth fewer samples.

    Args:
        gradients: g of every sample, (b, K).
        wanted: (K,).
    """
    ridge = float(np.einsum("bk,bk->", gradients, gradients)) / len(gradients)
    length = np.linalg.norm(wanted)
    if not ridge or not length:
        return np.ones(len(gradients))
    wanted = wanted * (np.linalg.norm(gradients.sum(0)) / length)

    def objective(weights: Array) -> tuple[float, Array]:
        missing, change = weights @ gradients - wanted, weights - 1
        return (missing @ missing / ridge + change @ change) / 2, (gradients @ missing) / ridge + change

    found: Array = minimize(
        objective,
        np.ones(len(gradients)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(gradients),
        options={"maxiter": 1000},
    ).x
    return found / found.mean() if found.any() else np.ones(len(found))


def _chosen(pool: "_Pool", candidates: Array, budget: int, codes: Array) -> tuple[Array, Array, Array]:
    """The positions of the best candidates, their gains and weights (b,). More than there is memory for are cut into parts: of each,
    the whole budget is chosen and then the best of these, or, for a large budget, a share of it."""
    parts = -(-len(candidates) // pool.room)
    if parts == 1:
        return _greedy(pool, candidates, budget, codes[candidates], 1.0)
    cut = np.array_split(np.random.default_rng(0).permutation(candidates), parts)
    if budget * parts <= pool.room:
        found = [_greedy(pool, part, min(budget, len(part)), codes[part], 1.0)[0] for part in cut]
        return _greedy(pool, np.concatenate(found), budget, codes[np.concatenate(found)], 1.0)
    edges = np.round(np.cumsum([0, *map(len, cut)]) * budget / len(candidates)).astype(int)
    shares = [
        _greedy(pool, part, size, codes[part], size / budget) for part, size in zip(cut, np.diff(edges), strict=True)
    ]
    indices, gain, weights = (np.concatenate(each) for each in zip(*shares, strict=True))
    gain /= parts  # each part is a selection of its own
    order = np.argsort(-gain, kind="stable")
    return indices[order], gain[order], weights[order]


def _greedy(pool: "_Pool", candidates: Array, budget: int, codes: Array, share: float) -> tuple[Array, Array, Array]:
    """Choose by the model that is fitted to a `share` of the budget."""
    left = quotas(codes, budget)
    samples, targets = pool.samples(candidates, share), pool.targets / share**0.5
    model = Refit(*samples, targets, budget)
    wanted = -pool.slopes(model.outputs)[0].astype(targets.dtype) @ targets
    free, chosen, gains = left[codes] > 0, [], []
    for _ in range(budget):
        gain = np.where(free, model.gain(*pool.slopes(model.outputs)), -np.inf)
        best = int(gain.argmax())
        chosen.append(best)
        gains.append(gain[best] / len(model.outputs))
        model.add(best)
        left[codes[best]] -= 1
        free[best] = False
        if not left[codes[best]]:
            free &= codes != codes[best]
    gradients = samples.features[chosen] * (samples.weights * samples.responses)[chosen, None]
    return candidates[chosen], np.array(gains), matching_weights(gradients, wanted)


class Refit:
    """A linear model that is refitted after every sample added to it, and what each further one would change.

    With A = I + Φ_SᵀW_SΦ_S, θ = A⁻¹Φ_SᵀW_S y_S. Adding sample i changes it by ``A⁻¹φ_i (y_i − φ_iᵀθ) / (1/w_i + φ_iᵀA⁻¹φ_i)``.

    Args:
        features: of the candidates, (c, K), in units of λ^½.
        weights: W of the candidates, (c,), above 0.
        responses: y of the candidates, (c,).
        targets: their features, (m, K), in the same units.
        budget: how many samples may be added.
    """

    def __init__(self, features: Array, weights: Array, responses: Array, targets: Array, budget: int) -> None:
        self._features, self._noise, self._responses = features, 1 / weights, responses
        self._own = np.einsum("ck,ck->c", features, features, dtype=np.float64)  # φ_iᵀA⁻¹φ_i
        self._cross = targets @ features.T  # φ(z)ᵀA⁻¹φ_i, (m, c)
        self._factors = np.empty((budget, len(features)), features.dtype)
        self._added = 0
        self._fit = np.zeros(len(features))
        self.outputs = np.zeros(len(targets))
        """φ(z)ᵀθ of the targets (m,)."""

    def gain(self, slope: Array, curvature: Array) -> Array:
        """Return by how much adding each candidate lowers a loss whose derivatives at the outputs of the targets are given, to
        second order: (c,)."""
        step = (self._responses - self._fit) / (self._noise + self._own)
        dtype = self._cross.dtype
        first = slope.astype(dtype) @ self._cross
        second = np.einsum("m,mc,mc->c", curvature.astype(dtype), self._cross, self._cross)
        found: Array = -step * first - step**2 * second / 2
        return found

    def add(self, sample: int) -> None:
        """Refit the model with a candidate in addition."""
        done = self._factors[: self._added]
        shared = self._features @ self._features[sample] - done[:, sample] @ done  # φ_iᵀA⁻¹φ_sample
        variance = self._noise[sample] + self._own[sample]
        step, reach = (self._responses[sample] - self._fit[sample]) / variance, self._cross[:, sample].copy()
        self._factors[self._added] = shared / variance**0.5
        self._added += 1
        self._fit += step * shared
        self._own -= shared.astype(np.float64) ** 2 / variance
        self.outputs += step * reach
        self._cross -= np.outer(reach, shared / variance).astype(self._cross.dtype)


class _Samples(NamedTuple):
    features: Array
    weights: Array
    responses: Array


class _Pool:
    """Training samples and targets as `Refit` needs them: features of all checkpoints side by side, divided by √(λM)."""

    def __init__(
        self,
        checkpoints: Sequence[CheckpointFeatures],
        meaning: Meaning,
        regularization: float | str,
        targets: Array,
        budget: int,
    ) -> None:
        self._checkpoints = checkpoints
        chosen = choose(regularization, "none" if meaning.number else "residual", checkpoints)
        unseen = held_out(checkpoints)
        f, q = (
            held_out_mean(np.stack(each), unseen)
            for each in zip(*(output_and_loss_weight(features.train) for features in checkpoints), strict=True)
        )
        fz, qz = (
            np.mean(each, 0)[targets]
            for each in zip(*(output_and_loss_weight(features.targets) for features in checkpoints), strict=True)
        )
        if meaning.number:
            middle = (f + q).mean()
            self._weights, self._responses, self._wanted = np.ones(len(q)), f + q - middle, fz + qz - middle
            self.slopes = self._squared_error
        else:
            self._weights = np.maximum(np.abs(q), 1e-6)
            self._responses, self._wanted = np.where(q < 0, -1.0, 1.0), np.where(qz < 0, -1.0, 1.0)
            self.slopes = self._logistic
        M = len(checkpoints)
        ratios = np.divide(chosen.values, [system.trace for system in chosen.systems])
        self._scales = [
            (M * max(ratio * self._trace(features), np.finfo(np.float64).tiny)) ** -0.5
            for ratio, features in zip(ratios, checkpoints, strict=True)
        ]
        self.targets = self._side_by_side([features.targets.take(targets) for features in checkpoints])
        self.room = max(2, MEMORY // (self.targets.itemsize * (self.targets.shape[1] + len(targets) + budget)))
        """How many candidates there is memory for."""

    slopes: Callable[[Array], tuple[Array, Array]]
    """First and second derivative of the loss of the targets at their outputs (m,)."""

    def samples(self, positions: Array, share: float) -> _Samples:
        """Return the samples at some positions; λ is a `share` of itself for a model that is fitted to a share of the budget."""
        features = self._side_by_side([each.train.take(positions) for each in self._checkpoints])
        return _Samples(features / share**0.5, self._weights[positions], self._responses[positions])

    def _side_by_side(self, features: list[Array]) -> Array:
        parts = [as_computed(each) for each in features]
        return np.concatenate(
            [each * each.dtype.type(scale) for each, scale in zip(parts, self._scales, strict=True)], 1
        )

    def _trace(self, features: CheckpointFeatures) -> float:
        """trace(ΦᵀWΦ) under the weights from held-out checkpoints."""
        return sum(
            float(self._weights[rows.index] @ np.einsum("bk,bk->b", rows.features, rows.features, dtype=np.float64))
            for rows in features.train.blocks()
        )

    def _logistic(self, outputs: Array) -> tuple[Array, Array]:
        p = expit(-self._wanted * outputs)
        return -self._wanted * p, p * (1 - p)

    def _squared_error(self, outputs: Array) -> tuple[Array, Array]:
        return 2 * (outputs - self._wanted), np.full(len(outputs), 2.0)


def quotas(codes: Array, budget: int) -> Array:
    """Return how many samples of each group 0 … G − 1 make up the budget: its share of `codes` (c,), the largest remainders
    rounded up."""
    exact = np.bincount(codes) * budget / len(codes)
    found: Array = np.floor(exact).astype(int)
    found[np.argsort(found - exact, kind="stable")[: budget - found.sum()]] += 1
    return found


def _count(budget: float, n: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.integer | np.floating):
        raise SettingsError(f"budget must be a number of samples or a share of the training set, got {budget!r}")
    share = not is_integer(budget) and budget <= 1
    count = round(budget * n) if share else budget
    if not 0 < count <= n or count != int(count):
        raise SettingsError(
            f"budget must be a whole number of samples between 1 and {n}, or a share between {1 / n:.1g} and 1.0, which is all; got "
            f"{budget:g}"
        )
    return int(count)


def _groups(groups: npt.ArrayLike, n: int) -> Array:
    found = np.asarray(groups)
    if isinstance(groups, str):
        raise DataError(
            f"groups must be {n} labels, integers or text, one per training sample; got the name {groups!r}. Give the values of that column: "
            "groups=[dataset[i][1] for i in range(len(dataset))]"
        )
    if found.dtype == object and all(isinstance(label, str) for label in found.flat):  # a column of pandas
        found = found.astype(str)
    if found.shape != (n,) or found.dtype.kind not in "iubUS":
        raise DataError(
            f"groups must be {n} labels, integers or text, one per training sample; got {found.dtype} of shape {found.shape}"
        )
    return found
