"""The size relative to which differences of outputs, loss weights and curvatures are measured. No torch."""

from trak_lightning.run.arrays import Array, rms

SMALLEST = 1e-3
"""Below this, differences are those of rounding in single precision: an output is the sum of larger numbers."""

ROUNDED = 1e-4
"""The same, relative to the outputs, of which a loss weight such as y − f is a small difference."""

COARSE = 5.0
"""In 16 bits an output has an error of up to 0.2, and a loss weight of the logistic loss as large a relative error."""


def error_scale(values: Array, output: Array, *, exact: bool) -> float:
    """Return a typical size of `values` (B,), at most 1: a loss weight of 0.001 that triples is a change, whatever its unit.

    Args:
        values: outputs, loss weights or curvatures of some samples.
        output: their outputs, (B,).
        exact: whether all was computed in at least single precision.
    """
    smallest = max(SMALLEST, ROUNDED * rms(output))
    return min(1.0, max(smallest, rms(values)) * (1.0 if exact else COARSE))
