"""Model output functions f(z; θ), which are differentiated, and their loss weights."""

from trak_lightning.tasks.base import Task

__all__ = ["Task"]
