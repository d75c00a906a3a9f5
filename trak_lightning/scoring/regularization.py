"""Choosing λ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.errors import DataError, SettingsError
from trak_lightning.evaluation.lds import mean_spearman
from trak_lightning.scoring.base import Array, Problem
from trak_lightning.scoring.spectrum import Spectrum

GRID = np.logspace(-1, -6, 26)
"""Candidates for λ, in units of trace(ΦᵀWΦ): of each checkpoint its own."""

AUTOMATIC = 1 / 1500
"""λ/trace of ``auto``. The best λ lay between trace/600 and trace/2500 on every problem that was tried, and the curve is
flat there: see docs/regularization.md."""


@dataclass(frozen=True)
class Choice:
    """λ of every checkpoint, and how it was chosen."""

    values: tuple[float, ...]
    settings: dict[str, Any]


def parse(regularization: float | str) -> float | str:
    """A number, ``auto`` or ``calibrate``; numbers may come as text from a command line.

    Raises:
        SettingsError: anything else.
    """
    if regularization in ("auto", "calibrate"):
        return regularization
    try:
        value = float(regularization)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise SettingsError(f"regularization must be a number λ ≥ 0, 'auto' or 'calibrate', got {regularization!r}")
    return value


def choose(regularization: float | str, problem: Problem, spectra: Sequence[Spectrum]) -> Choice:
    """λ of every checkpoint: the number given, `AUTOMATIC` · trace(ΦᵀWΦ), or what `calibrate` finds."""
    if regularization == "calibrate":
        return calibrate(problem, spectra)
    if regularization == "auto":
        return _choice(
            f"auto: trace/{1 / AUTOMATIC:.0f}", [AUTOMATIC * spectrum.trace for spectrum in spectra], spectra
        )
    value = float(regularization)
    return _choice("number", [value] * len(spectra), spectra)


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
