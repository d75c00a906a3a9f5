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
        order = np.argsort(self.positions, kind="stable")
        size = self.source.spec.block_size
        blocks, starts = np.unique(self.positions[order] // size, return_index=True)
        found = []
        for number, members in zip(blocks, np.split(order, starts[1:]), strict=True):
            rows = self.source.read_block(int(number))  # once, however many of its rows are wanted
            found.append(rows.at(self.positions[members] - number * size))
        rows = concatenate(found).at(np.argsort(order, kind="stable"))
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
