"""Some of the targets, as if there were no others: all of them are then scored in one pass over the training features."""

from dataclasses import dataclass, replace

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.views import FeatureView
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureRows, concatenate


@dataclass(frozen=True)
class _Some(FeatureView):
    """The rows at some positions, in one block."""

    positions: Array

    def read_block(self, block: int) -> FeatureRows:
        rows = concatenate([self.source.rows(int(position), int(position) + 1) for position in self.positions])
        return replace(rows, index=np.arange(len(rows)))


def some_targets(features: CheckpointFeatures, positions: Array) -> CheckpointFeatures:
    """The same checkpoint with the targets at `positions` (t,), in that order, and no others."""
    spec = features.targets.spec
    chosen = replace(
        spec,
        num_samples=len(positions),
        block_size=len(positions),
        fingerprint={**spec.fingerprint, "positions": fingerprint(positions.tolist())},
    )
    return replace(features, targets=_Some(features.targets, chosen, positions))
