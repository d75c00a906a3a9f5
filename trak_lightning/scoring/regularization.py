"""Choosing λ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.lds import mean_spearman
from trak_lightning.scoring.base import Array, CheckpointFeatures, Problem, weighting
from trak_lightning.scoring.spectrum import Spectrum

GRID = np.logspace(-1, -6, 26)
"""Candidates for λ, in units of trace(ΦᵀWΦ): of each checkpoint its own."""

FALLBACK = 1e-3
"""λ/trace where nothing is known that could choose it."""

ENOUGH = 50
"""Held-out samples from which their mean loss is trusted."""

MAX_ROWS = 8192
"""Training samples whose leave-one-out loss is computed; beyond that, evenly spaced ones stand for all."""


@dataclass(frozen=True)
class Choice:
    """λ of every checkpoint, and how it was chosen."""

    values: tuple[float, ...]
    settings: dict[str, Any]


def parse(regularization: float | str) -> float | str:
    """A number, ``auto`` or ``calibrate``; numbers may come as text from a command line.

    Raises:
        ValueError: anything else.
    """
    if regularization in ("auto", "calibrate"):
        return regularization
    try:
        value = float(regularization)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ValueError(f"regularization must be a number λ ≥ 0, 'auto' or 'calibrate', got {regularization!r}")
    return value


def choose(regularization: float | str, problem: Problem, spectra: Sequence[Spectrum], weights: str) -> Choice:
    """λ of every checkpoint."""
    if regularization == "calibrate":
        return calibrate(problem, spectra)
    if regularization == "auto":
        return automatic(problem, spectra, weights)
    value = float(regularization)
    return _choice("number", [value] * len(spectra), spectra)


def automatic(problem: Problem, spectra: Sequence[Spectrum], weights: str) -> Choice:
    """The λ at which leaving a training sample out would cost what held-out samples cost.

    ``f_i − h_i q_i / (1 − h_i w_i)`` with ``h_i = φ_iᵀ(ΦᵀWΦ + λI)⁻¹φ_i`` predicts the output for a training sample had it not
    been trained on: the smaller λ, the worse. Its mean loss over the samples trained on is matched to the mean loss that
    the checkpoint has on samples it was not trained on: those outside its recorded subset, or else the targets. Where
    neither is known (no subset, few targets, another loss than the logistic) λ = `FALLBACK` · trace.
    """
    relative = [_match_held_out(features, spectrum, weights) for features, spectrum in zip(problem.checkpoints, spectra, strict=True)]
    known = [value for value in relative if value is not None]
    # One λ/trace for all checkpoints, which differ by chance only: the median is the steadier estimate.
    chosen = float(np.exp(np.median(np.log(known)))) if known else FALLBACK
    rule = "auto: leave-one-out loss equals held-out loss" if known else f"auto: nothing held out, {FALLBACK} · trace"
    return _choice(rule, [chosen * spectrum.trace for spectrum in spectra], spectra)


def _match_held_out(features: CheckpointFeatures, spectrum: Spectrum, weights: str) -> float | None:
    if features.train.spec.fingerprint.get("loss_function") != "logistic":
        return None
    output = features.train.column("output").astype(np.float64)
    trained = np.ones(len(output), dtype=bool)
    held_out = features.targets.column("output").astype(np.float64)
    if features.subset is not None:
        trained[:] = False
        trained[features.subset] = True
        held_out = output[~trained]
    if len(held_out) < ENOUGH or not trained.any():
        return None
    goal = _logistic_loss(held_out).mean()
    step = -(-int(trained.sum()) // MAX_ROWS)
    sampled = set(np.flatnonzero(trained)[::step].tolist())
    losses = []
    for rows in features.train.blocks():
        chosen = np.array([index in sampled for index in rows.index.tolist()])
        leverage = spectrum.quadratic(rows.features[chosen], GRID * spectrum.trace)
        q = rows.loss_weight[chosen, None].astype(np.float64)
        remaining = np.maximum(1 - leverage * weighting(rows, weights)[chosen, None], 1e-3)
        losses.append(_logistic_loss(rows.output[chosen, None] - leverage * q / remaining))
    curve = np.concatenate(losses).mean(axis=0)
    if curve[0] >= goal:
        return float(GRID[0])
    above = np.flatnonzero(curve >= goal)
    if not len(above):
        return float(GRID[-1])
    right = int(above[0])
    fraction = (goal - curve[right - 1]) / (curve[right] - curve[right - 1])
    return float(np.exp(np.interp(fraction, [0, 1], np.log(GRID[right - 1 : right + 1]))))


def calibrate(problem: Problem, spectra: Sequence[Spectrum]) -> Choice:
    """The λ whose scores best predict the checkpoints themselves.

    Every checkpoint j was trained on a recorded subset S_j, and its outputs on the targets are stored: scores made from
    the other checkpoints are summed over S_j and compared with them, by Spearman correlation over j, averaged over targets.

    Raises:
        DataError: fewer than four checkpoints, or unknown subsets.
    """
    checkpoints = problem.checkpoints
    unknown = sum(features.subset is None for features in checkpoints)
    if len(checkpoints) < 4 or unknown:
        raise DataError(
            f"regularization='calibrate' needs at least 4 checkpoints, each with the subset it was trained on; there are "
            f"{len(checkpoints)}, {unknown} of them without. Give subsets=…, train the checkpoints with trak train, or use "
            "regularization='auto'."
        )
    sums = _subset_sums(problem)
    outputs = np.stack([features.targets.column("output") for features in checkpoints]).astype(np.float64)
    predicted = np.zeros((len(GRID), *outputs.shape))
    for m, (features, spectrum) in enumerate(zip(checkpoints, spectra, strict=True)):
        targets = np.concatenate([rows.features for rows in features.targets.blocks()])
        others = [j for j in range(len(checkpoints)) if j != m]
        for position, relative in enumerate(GRID):
            scores = spectrum.solve(targets, relative * spectrum.trace) @ sums[m]
            predicted[position, others] += scores[:, others].T
    curve = [mean_spearman(prediction, outputs) for prediction in predicted]
    best = float(GRID[int(np.argmax(curve))])
    choice = _choice("calibrate", [best * spectrum.trace for spectrum in spectra], spectra)
    choice.settings["curve"] = {"relative": GRID.tolist(), "lds": [float(value) for value in curve]}
    return choice


def _subset_sums(problem: Problem) -> list[Array]:
    """Φ_mᵀ(1_{S_j} ∘ Q̄ without j) for every pair of checkpoints: one (k, M) matrix for each m."""
    checkpoints = problem.checkpoints
    M = len(checkpoints)
    masks = np.zeros((problem.loss_weight.size, M))
    for j, features in enumerate(checkpoints):
        others = (M * problem.loss_weight - features.train.column("loss_weight")) / (M - 1)
        masks[features.subset, j] = others[features.subset]
    sums = []
    for features in checkpoints:
        total = np.zeros((features.train.spec.dim, M))
        for rows in features.train.blocks():
            total += rows.features.astype(np.float64).T @ masks[rows.index]
        sums.append(total)
    return sums


def _choice(rule: str, values: Sequence[float], spectra: Sequence[Spectrum]) -> Choice:
    return Choice(
        tuple(values),
        {
            "rule": rule,
            "regularization": list(values),
            "trace": [spectrum.trace for spectrum in spectra],
            "rank": [int(spectrum.values.size) for spectrum in spectra],
        },
    )


def _logistic_loss(output: Array) -> Array:
    return np.logaddexp(0, -output)
