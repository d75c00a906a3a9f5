"""Every registered extractor obeys the laws, and an extractor that breaks one is found out."""

import pytest
import torch
from torch import nn

from trak_lightning import TRAK, registry
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.functional import Functional
from trak_lightning.extractors.iterative import Iterative
from trak_lightning.gradients import DenseBlock
from trak_lightning.testing import ExtractorConformance
from trak_lightning.testing.models import CASES

REFUSES = {"functional": {"recurrent": "vmap cannot batch a GRU"}}
BUILT_IN = [
    plugin for plugin in registry.scan()[0] if plugin.kind == "extractors" and plugin.distribution == "trak-lightning"
]


def suite(name):
    return type(
        f"Test{name.title()}",
        (ExtractorConformance,),
        {"extractor": staticmethod(lambda: registry.create("extractors", name)), "refuses": REFUSES.get(name, {})},
    )


for plugin in BUILT_IN:
    globals()[f"Test{plugin.name.title()}"] = suite(plugin.name)


class DropsBiases(Iterative):
    def extract(self, model, task, batch, layout, sink):
        return super().extract(
            model, task, batch, layout, lambda block: None if block.name.endswith("bias") else sink(block)
        )


class MixesSamples(Functional):
    def extract(self, model, task, batch, layout, sink):
        return super().extract(
            model,
            task,
            batch,
            layout,
            lambda block: sink(DenseBlock(block.name, block.grad + 1e-6 * block.grad.mean(0, keepdim=True))),
        )


@pytest.mark.parametrize("wrong", [DropsBiases, MixesSamples])
def test_a_wrong_extractor_fails_the_suite(wrong):
    tests = type("TestWrong", (ExtractorConformance,), {"extractor": wrong})()
    with pytest.raises(AssertionError):
        tests.test_gradients_equal_the_autograd_loop(CASES[0], 2)


class Doubles(Functional):
    def extract(self, model, task, batch, layout, sink):
        return super().extract(model, task, batch, layout, lambda block: sink(DenseBlock(block.name, 2 * block.grad)))


def test_a_wrong_extractor_is_refused_by_its_own_name(tmp_path):
    data = [(torch.randn(3), index % 2) for index in range(6)]
    trak = TRAK(nn.Linear(3, 2).eval(), "image_classification", run_dir=tmp_path, extractor=Doubles())
    with pytest.raises(UnsupportedModelError, match="extractor 'doubles' computed wrong gradients"):
        trak.featurize(data)


class LeavesHooks(Iterative):
    def extract(self, model, task, batch, layout, sink):
        model.requires_grad_(False)
        try:
            return super().extract(model, task, batch, layout, sink)
        finally:
            model.requires_grad_(True)


def test_an_extractor_that_unfreezes_parameters_fails_the_suite():
    tests = type("TestWrong", (ExtractorConformance,), {"extractor": LeavesHooks})()
    with pytest.raises(AssertionError):
        tests.test_the_model_is_left_as_it_was()
    assert torch.is_grad_enabled()
