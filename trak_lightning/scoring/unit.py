"""Feature sets seen with every row at length 1."""

from dataclasses import dataclass, replace

from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.gradients import unit_rows
from trak_lightning.scoring.views import FeatureView
from trak_lightning.stores.base import FeatureRows


@dataclass(frozen=True)
class _UnitNorm(FeatureView):
    def read_block(self, block: int) -> FeatureRows:
        rows = self.source.read_block(block)
        return replace(rows, features=unit_rows(rows.features).astype(rows.features.dtype))


def unit_norm(features: CheckpointFeatures) -> CheckpointFeatures:
    """The same checkpoint with features φ/‖φ‖; rows of zeros stay zero."""
    views = {}
    for name in ("train", "targets"):
        source = getattr(features, name)
        spec = replace(source.spec, fingerprint={**source.spec.fingerprint, "normalize": "unit"})
        views[name] = _UnitNorm(source, spec)
    return replace(features, **views)
