"""The hooks extractor: per-sample gradients from one forward and one backward pass of the whole batch."""

from trak_lightning.extractors.hooks.extractor import Hooks

__all__ = ["Hooks"]
