"""Feature sets on disk and in memory. Authors of other stores import from `trak_lightning.stores.authoring`."""

from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore

__all__ = ["FeatureRows", "FeatureSet", "FeatureSpec", "FeatureStore"]
