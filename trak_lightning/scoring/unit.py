"""Feature sets seen with every row at length 1."""

from dataclasses import dataclass, replace

from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.gradient_scorers import unit_rows
from trak_lightning.scoring.views import FeatureView
from trak_lightning.stores.base import FeatureRows, FeatureSet


@dataclass(frozen=True)
class _UnitNorm(FeatureView):
    def read_block(self, block: int) -> FeatureRows:
        rows = self.source.read_block(block)
        return replace(rows, features=unit_rows(rows.features).astype(rows.features.dtype))


def unit_norm(features: CheckpointFeatures) -> CheckpointFeatures:
    """The same checkpoint with features φ/‖φ‖; rows of zeros stay zero."""
    return replace(features, train=_view(features.train), targets=_view(features.targets))


def _view(source: FeatureSet) -> FeatureSet:
    return _UnitNorm(source, replace(source.spec, fingerprint={**source.spec.fingerprint, "normalize": "unit"}))
