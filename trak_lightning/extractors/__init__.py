"""How per-sample gradients are computed."""

from trak_lightning.extractors.base import GradientExtractor

__all__ = ["GradientExtractor"]
