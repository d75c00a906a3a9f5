"""Choose λ, and the Gram weighting."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.errors import SettingsError, as_number, require_option
from trak_lightning.scoring.base import CheckpointFeatures, Scorer
from trak_lightning.scoring.calibration import GRID, JUDGES, calibration, require_calibration
from trak_lightning.scoring.generalization_gap import observed_gap, regularization_for, with_own_leverage
from trak_lightning.scoring.gram import WEIGHTINGS, is_squared
from trak_lightning.scoring.linear_system import System

DEFAULT_WEIGHTING, SQUARED_WEIGHTING = "residual", "gauss_newton"
"""W of ``auto``, and for the squared loss; see docs/regularization.md."""
WEIGHTING_CHOICES = ("auto", *WEIGHTINGS)


PROJECTION = 0.7
SEEN = 4.0
RULE = 0.3
SMALLEST = 0.01
"""Constants of `automatic` and `problem`, found by experiment: see docs/regularization.md."""


def automatic(k: int, M: int, problem: float) -> float:
    """Return λ/trace of ``auto``, the sum of two parts: ``(0.7/k + problem) / M^¼``.

    The first is what the projection causes. What k dimensions have no room for is spread over all of them, so that
    eigenvalues below their mean, trace/k, are noise of the projection. Averaging over checkpoints removes some of what either
    part is for.

    Args:
        k: number of dimensions.
        M: number of checkpoints.
        problem: what the problem causes, as `problem` returns it.
    """
    return (PROJECTION / k + problem) / M**0.25


def problem(systems: Sequence[System]) -> float:
    """Return the part of λ/trace that the problem causes, whatever k: label noise, early stopping, weight decay.

    Without recorded subsets it is 1/n. With them, let λ₁ be such that scores, with the correction for leverage, predict a
    quarter of the observed effect of training on a sample on its own loss weight, and e the relative standard error of that observation. The result is
    ``λ₁^(1 − s) · (1/n)^s`` with s = (0.3 + e²)/(1 + e²): shrunk towards the rule for checkpoints without subsets. It is the
    geometric mean over checkpoints; λ₁ is at least 1/(100·n).
    """
    return float(np.exp(np.mean([np.log(_problem(system)) for system in systems])))


def _problem(system: System) -> float:
    rule = 1 / system.features.train.spec.num_samples
    seen = observed_gap(system.features)
    if seen is None or seen.value <= 0:
        return rule
    smallest = SMALLEST * rule * system.trace
    wanted = with_own_leverage(seen.value / SEEN / system.unit, system.features, system.weighting)
    found = regularization_for(wanted, system.own_effects(), smallest, system.trace) / system.trace
    error = (seen.error / seen.value) ** 2
    share = (RULE + error) / (1 + error)
    return float(found ** (1 - share) * rule**share)


@dataclass(frozen=True)
class RegularizedSystems:
    """The system and λ of every checkpoint, and how they were chosen."""

    systems: tuple[System, ...]
    values: tuple[float, ...]
    settings: dict[str, Any]


def parse(regularization: float | str) -> float | str:
    """Return a number, ``trace/N``, ``auto`` or ``calibrate``; numbers may come as text from a command line.

    Raises:
        SettingsError: it is none of these.
    """
    if regularization in ("auto", "calibrate"):
        return regularization
    if isinstance(regularization, str) and (_divisor(regularization) or 0) > 0:
        return regularization
    value = as_number(regularization)
    if not 0 <= value < float("inf"):
        raise SettingsError(
            f"regularization must be a number λ ≥ 0, 'trace/N', 'auto' or 'calibrate', got {regularization!r}"
        )
    return value


def choose(
    regularization: float | str, weighting: str, checkpoints: Sequence[CheckpointFeatures]
) -> RegularizedSystems:
    """Choose λ of every checkpoint by the given rule, and the Gram weighting if that is ``auto``.

    Raises:
        SettingsError: there is no such rule or weighting.
        DataError: ``calibrate`` without recorded subsets.
    """
    regularization, weighting = parse(regularization), require_option("weights", weighting, WEIGHTING_CHOICES)
    chosen = _default_weighting(checkpoints) if weighting == "auto" else weighting
    curve: dict[str, Any] = {}
    if regularization == "calibrate":
        require_calibration(checkpoints)
        found = calibration(checkpoints, WEIGHTINGS if weighting == "auto" else (chosen,))
        chosen, relative, rule, curve = found.weighting, found.relative, "calibrate", found.settings
    elif isinstance(regularization, str) and regularization != "auto":
        relative, rule = 1 / (_divisor(regularization) or 1), ""
    else:
        relative, rule = None, str(regularization)
    systems = tuple(System(features, chosen) for features in checkpoints)
    any(system.warn_of_outliers() for system in systems)  # of one checkpoint
    if regularization == "auto":
        k = checkpoints[0].train.spec.dim
        relative, rule = automatic(k, len(systems), problem(systems)), "auto"
    traces = [system.trace for system in systems]
    values = [float(regularization)] * len(systems) if relative is None else [relative * trace for trace in traces]
    if relative is not None:
        rule = f"{rule}: trace/{1 / relative:.0f}".removeprefix(": ")
    settings = {"rule": rule, "weights": chosen, "regularization": values, "trace": traces, **curve}
    return RegularizedSystems(systems, tuple(values), settings)


def settings_of(scorer: Scorer) -> tuple[float | str, str]:
    """Return how a scorer chooses λ and the Gram weighting, ``auto`` where it has no such option."""
    return scorer.state.get("regularization", "auto"), scorer.state.get("weights", "auto")


def rules(regularization: float | str, weighting: str) -> dict[str, Any]:
    """Return the constants that `choose` decides by under these settings, for `Scorer.rules`."""
    found: dict[str, Any] = {}
    if regularization == "auto":
        found["regularization"] = [PROJECTION, SEEN, RULE, SMALLEST, "leave-one-out"]
    elif regularization == "calibrate":
        found["regularization"] = [GRID.tolist(), JUDGES]
    elif parse(regularization) == 0:
        found["regularization"] = "solved in float64"
    if weighting in ("auto", "residual", "fisher"):
        found["unit"] = "that of f"
    if weighting == "auto":
        found["weights"] = list(WEIGHTINGS) if regularization == "calibrate" else [DEFAULT_WEIGHTING, SQUARED_WEIGHTING]
    return found


def _default_weighting(checkpoints: Sequence[CheckpointFeatures]) -> str:
    squared = all(is_squared(features.train.column("curvature")) for features in checkpoints)
    return SQUARED_WEIGHTING if squared else DEFAULT_WEIGHTING


def _divisor(text: str) -> float | None:
    found = re.fullmatch(r"trace/(\d+(?:\.\d*)?(?:e\d+)?)", text)
    return float(found[1]) if found else None
