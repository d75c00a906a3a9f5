"""Settings of the ensemble that `trak train` makes; the names are those of configuration files. No torch."""

from dataclasses import dataclass


@dataclass
class EnsembleSettings:
    """Checkpoints that `trak train` makes.

    Args:
        size: number of checkpoints.
        fraction: share of the training set that each checkpoint is trained on, drawn at random.
    """

    size: int = 10
    fraction: float = 0.5
