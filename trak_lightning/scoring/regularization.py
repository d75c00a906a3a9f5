"""Choose λ, and the Gram weighting."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trak_lightning.errors import SettingsError
from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.calibration import GRID, JUDGES, calibration, require_calibration
from trak_lightning.scoring.gram import WEIGHTINGS
from trak_lightning.scoring.system import System

DEFAULT_WEIGHTING = "residual"


def automatic(n: int, k: int, M: int) -> float:
    """Return λ/trace of ``auto``: ``1.25 / ( √(n·min(k, 4n)) · M^¼ )`` for n samples, k dimensions and M checkpoints.

    The random projection changes an inner product of two features by about ‖φ‖²/√k, and so adds noise to the n × n Gram
    matrix whose eigenvalues are of the order of trace/√(nk). λ suppresses that noise. Beyond k = 4n the noise is no longer
    what limits λ, and averaging over checkpoints removes part of it. The constants were found by experiment: see
    docs/regularization.md.
    """
    return 1.25 / ((n * min(k, 4 * n)) ** 0.5 * M**0.25)


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
    try:
        value = float(regularization)
    except (TypeError, ValueError):
        value = float("nan")
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
        DataError: ``calibrate`` without recorded subsets.
    """
    chosen = DEFAULT_WEIGHTING if weighting == "auto" else weighting
    curve: dict[str, Any] = {}
    if regularization == "calibrate":
        require_calibration(checkpoints)
        found = calibration(checkpoints, WEIGHTINGS if weighting == "auto" else (chosen,))
        chosen, relative, rule, curve = found.weighting, found.relative, "calibrate", found.settings
    elif regularization == "auto":
        relative, rule = _automatic(checkpoints), "auto"
    elif isinstance(regularization, str):
        relative, rule = 1 / (_divisor(regularization) or 1), ""
    else:
        relative, rule = None, "number"
    systems = tuple(System(features, chosen) for features in checkpoints)
    traces = [system.trace for system in systems]
    values = [float(regularization)] * len(systems) if relative is None else [relative * trace for trace in traces]
    if relative is not None:
        rule = f"{rule}: trace/{1 / relative:.0f}".removeprefix(": ")
    settings = {"rule": rule, "weights": chosen, "regularization": values, "trace": traces, **curve}
    return RegularizedSystems(systems, tuple(values), settings)


def rules(regularization: float | str, weighting: str, checkpoints: Sequence[CheckpointFeatures]) -> dict[str, Any]:
    """Return what `choose` decides, or decides by, beyond the settings: other values give other scores. JSON values."""
    found: dict[str, Any] = {}
    if regularization == "auto":
        found["regularization"] = _automatic(checkpoints)
    elif regularization == "calibrate":
        found["regularization"] = [GRID.tolist(), JUDGES]
    if weighting == "auto":
        found["weights"] = list(WEIGHTINGS) if regularization == "calibrate" else DEFAULT_WEIGHTING
    return found


def _automatic(checkpoints: Sequence[CheckpointFeatures]) -> float:
    spec = checkpoints[0].train.spec
    return automatic(spec.num_samples, spec.dim, len(checkpoints))


def _divisor(text: str) -> float | None:
    found = re.fullmatch(r"trace/(\d+(?:\.\d*)?(?:e\d+)?)", text)
    return float(found[1]) if found else None
