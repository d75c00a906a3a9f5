"""Projectors: random linear maps that reduce gradients from p to k dimensions."""

from trak_lightning.projectors.base import BlockMap, BlockMaps, Projection, ProjectionSpec, Projector

__all__ = ["BlockMap", "BlockMaps", "Projection", "ProjectionSpec", "Projector"]
