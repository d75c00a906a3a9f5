"""What is differentiated: model output functions f(z; θ) and their loss weights."""

from trak_lightning.tasks.base import Task

__all__ = ["Task"]
