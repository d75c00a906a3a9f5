"""How gradients get small: random linear maps from p to k dimensions."""

from trak_lightning.projectors.base import BlockMap, Projection, Projector

__all__ = ["BlockMap", "Projection", "Projector"]
