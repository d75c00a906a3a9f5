"""Every registered projector obeys the laws, and a projector that breaks one is found out."""

import pytest
import torch

from trak_lightning import registry
from trak_lightning.projectors import Projector
from trak_lightning.testing import ProjectorConformance

for plugin in registry.scan()[0]:
    if plugin.kind == "projectors" and plugin.distribution == "trak-lightning":
        options = {"takes_dim": False, "random": False} if plugin.name == "identity" else {}
        globals()[f"Test{plugin.name.title()}"] = type(
            f"Test{plugin.name.title()}", (ProjectorConformance,), {"projector": plugin.load(), **options}
        )


class Dense(Projector):
    """Right: N(0, 1/k)."""

    def matrix(self, slot, seed):
        return torch.randn(slot.numel, self.dim, generator=torch.Generator().manual_seed(seed)) / self.dim**0.5

    def block(self, slot, *, seed, device):
        matrix = self.matrix(slot, seed)
        return lambda grad, out: out.add_(grad.to(out.dtype) @ matrix.to(out.dtype))


class Squares(Dense):
    def block(self, slot, *, seed, device):
        project = super().block(slot, seed=seed, device=device)
        return lambda grad, out: project(grad * grad.abs(), out)


class CentresTheBatch(Dense):
    def block(self, slot, *, seed, device):
        project = super().block(slot, seed=seed, device=device)
        return lambda grad, out: project(grad - grad.mean(0), out)


class ReadsGlobalRandomness(Dense):
    def matrix(self, slot, seed):
        return torch.randn(slot.numel, self.dim) / self.dim**0.5


class ForgetsTheScale(Dense):
    def matrix(self, slot, seed):
        return super().matrix(slot, seed) * self.dim**0.5


class ChangesItsInput(Dense):
    def block(self, slot, *, seed, device):
        project = super().block(slot, seed=seed, device=device)
        return lambda grad, out: project(grad.mul_(1.5).div_(1.5).add_(1e-9), out)


class OneBlockForAll(Dense):
    def matrix(self, slot, seed):
        return super().matrix(slot, 0)


class SumsInSixteenBits(Dense):
    def block(self, slot, *, seed, device):
        matrix = self.matrix(slot, seed)
        return lambda grad, out: out.add_((grad.bfloat16() @ matrix.bfloat16()).to(out.dtype))


def failures(projector):
    """The names of the laws that a projector breaks."""
    tests = type("TestWrong", (ProjectorConformance,), {"projector": projector})()
    broken = set()
    for name in dir(tests):
        if name.startswith("test_"):
            method = getattr(tests, name)
            marks = getattr(method, "pytestmark", [])
            for value in marks[0].args[1] if marks else [None]:
                try:
                    method(value) if marks else method()
                except AssertionError:
                    broken.add(name)
    return broken


def test_a_right_projector_breaks_no_law():
    assert failures(Dense) == set()


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (Squares, "test_it_is_linear"),
        (CentresTheBatch, "test_a_row_does_not_depend_on_its_batch"),
        (ReadsGlobalRandomness, "test_it_neither_reads_nor_changes_global_randomness"),
        (ForgetsTheScale, "test_it_keeps_inner_products_on_average_and_spreads_them_no_more_than_a_dense_matrix"),
        (ChangesItsInput, "test_it_does_not_change_the_gradient"),
        (OneBlockForAll, "test_seed_checkpoint_and_parameter_name_each_give_another_matrix"),
        (SumsInSixteenBits, "test_sixteen_bit_gradients_are_summed_in_float32"),
    ],
)
def test_a_wrong_projector_fails_the_law_that_it_breaks(wrong, law):
    assert law in failures(wrong)
