"""Conformance suites: subclass one in your tests, say what to test, and every law of that plug-in point is checked.

>>> class TestMine(ProjectorConformance):
...     projector = MyProjector
"""

from trak_lightning.testing.extractors import ExtractorConformance
from trak_lightning.testing.projectors import ProjectorConformance
from trak_lightning.testing.scorers import ScorerConformance
from trak_lightning.testing.stores import StoreConformance
from trak_lightning.testing.tasks import TaskConformance

__all__ = ["ExtractorConformance", "ProjectorConformance", "ScorerConformance", "StoreConformance", "TaskConformance"]
