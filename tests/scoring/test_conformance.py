"""Every registered scorer obeys the laws, and a wrong scorer fails the laws that it breaks."""

import numpy as np
import pytest

from trak_lightning import registry
from trak_lightning.scoring.gradient_scorers import GradientDot
from trak_lightning.scoring.inner_products import InnerProducts, Part
from trak_lightning.scoring.trak import Trak
from trak_lightning.testing import ScorerConformance

for plugin in registry.scan()[0]:
    if plugin.kind == "scorers" and plugin.distribution == "trak-lightning":
        name = f"Test{plugin.name.title().replace('_', '')}"
        globals()[name] = type(name, (ScorerConformance,), {"scorer": plugin.load()})


class TestSoftThreshold(ScorerConformance):
    scorer = staticmethod(lambda: Trak("trace/100", threshold=1e-3))


class WrongSign(GradientDot):
    """Says harmful for helpful."""

    def fit(self, checkpoints):
        return InnerProducts(checkpoints, [Part(np.negative)] * len(checkpoints))


class ForgetsCheckpoints(GradientDot):
    """Scores with the first checkpoint only."""

    def fit(self, checkpoints):
        return super().fit(checkpoints[:1])


class CentresTargets(GradientDot):
    """A target's scores depend on the others of its block."""

    def fit(self, checkpoints):
        return InnerProducts(checkpoints, [Part(lambda phi: phi - phi.mean(0))] * len(checkpoints))


class CountsWithinABlock(GradientDot):
    """Takes the place in a block for the place in the dataset."""

    def fit(self, checkpoints):
        return InnerProducts(
            checkpoints, [Part(coefficient=lambda rows: 1.0 + np.arange(len(rows)))] * len(checkpoints)
        )


class HidesAnOption(GradientDot):
    """Scores of one power would be taken for those of another."""

    def __init__(self, power=1.0):
        self._power = power


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (WrongSign, "test_a_sample_that_is_the_target_itself_helps_it"),
        (ForgetsCheckpoints, "test_scores_do_not_depend_on_the_order_of_checkpoints"),
        (CentresTargets, "test_targets_do_not_depend_on_each_other"),
        (CountsWithinABlock, "test_scores_do_not_depend_on_the_size_of_blocks"),
        (HidesAnOption, "test_settings_are_json"),
    ],
)
def test_a_wrong_scorer_fails_the_law_that_it_breaks(wrong, law):
    tests = type("TestWrong", (ScorerConformance,), {"scorer": wrong})()
    with pytest.raises(AssertionError):
        getattr(tests, law)()
