"""The whole test of a projector plug-in."""

from trak_lightning_example import CountSketch

from trak_lightning.testing import ProjectorConformance


class TestCountSketch(ProjectorConformance):
    projector = CountSketch
