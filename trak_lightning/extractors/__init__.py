"""Compute per-sample gradients: extractors, and the rules for layers that they use."""

from trak_lightning.extractors.base import GradientExtractor

__all__ = ["GradientExtractor"]
