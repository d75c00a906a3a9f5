"""Where features live."""

from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore

__all__ = ["FeatureRows", "FeatureSet", "FeatureSpec", "FeatureStore"]
