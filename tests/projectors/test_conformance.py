"""Every registered projector obeys the laws, and a projector that breaks one is found out."""

from math import isqrt

import pytest
import torch
from _pytest.outcomes import Skipped

from trak_lightning import registry
from trak_lightning.projectors import Projector
from trak_lightning.projectors.chain import Chain
from trak_lightning.projectors.dense import Rademacher
from trak_lightning.projectors.random_mask import RandomMask
from trak_lightning.projectors.second_moment import SecondMoment
from trak_lightning.projectors.sparse_jl import SparseJL
from trak_lightning.projectors.two_sided import LowRank, TwoStage
from trak_lightning.testing import ProjectorConformance


def lowrank(dim, init="random"):
    return LowRank(rank=isqrt(dim - 1) + 1, init=init)


def grass(dim):
    return Chain([RandomMask(4 * dim), SparseJL(dim)])


VARIANTS = {
    # A sketch of either side adds a variance of 2/r.
    "Lowrank": {"projector": staticmethod(lowrank), "spread": 12},
    "LowrankPCA": {
        "projector": staticmethod(lambda dim: lowrank(dim, "pca")),
        "random": False,
        "unbiased": False,
    },
    "Chain": {"projector": staticmethod(grass), "spread": 2},
    "ChainOfLowrankPCA": {
        "projector": staticmethod(lambda dim: Chain([LowRank(8, "pca"), SparseJL(dim)])),
        "unbiased": False,
    },
    "ChainPerLayer": {
        "projector": staticmethod(lambda dim: Chain([SparseJL(4 * dim, per="layer"), Rademacher(dim)])),
        "spread": 2,
    },
    "SparseJLOfSeveral": {"projector": staticmethod(lambda dim: SparseJL(dim, nnz=min(dim, 3)))},
    "Identity": {"projector": registry.find("projectors", "identity").load(), "takes_dim": False, "random": False},
    "Second_Moment": {
        "projector": staticmethod(lambda dim: SecondMoment(SparseJL(dim), fit_samples=4)),
        "unbiased": False,
    },
    "SecondMomentOfTwoStage": {
        "projector": staticmethod(lambda dim: SecondMoment(TwoStage(dim), fit_samples=4)),
        "unbiased": False,
    },
    "RademacherInTiles": {"projector": staticmethod(lambda dim: Rademacher(dim, memory_budget=0))},
    "TwoStageSketched": {"projector": staticmethod(lambda dim: TwoStage(dim, sketch=6)), "spread": 4},
} | {
    f"{projector.__name__}PerLayer": {"projector": staticmethod(lambda dim, make=projector: make(dim, per="layer"))}
    for projector in (SparseJL, RandomMask)  # which has code of its own for layers
}

for plugin in registry.scan()[0]:
    # auto is one of the others, as soon as it knows the training set.
    if plugin.kind == "projectors" and plugin.distribution == "trak-lightning" and plugin.name != "auto":
        title = plugin.name.title()
        VARIANTS.setdefault(title, {"projector": plugin.load()})

for title, options in VARIANTS.items():
    globals()[f"Test{title}"] = type(f"Test{title}", (ProjectorConformance,), options)


@pytest.mark.parametrize(
    "name", [name for name in registry.names("projectors") if name not in ("auto", "count_sketch")]
)
def test_every_built_in_says_how_much_memory_it_holds(name):
    cls = registry.find("projectors", name).load()
    assert cls.memory_bytes is not Projector.memory_bytes
    assert "Memory:" in cls.__doc__


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


class SeedsByTheBatch(Dense):
    """Another matrix for every size of a batch."""

    def block(self, slot, *, seed, device):
        block = super().block
        return lambda grad, out: block(slot, seed=seed % 2**62 + len(grad), device=device)(grad, out)


class LeaksTheLastBatch(Dense):
    """Adds a little of what it saw before."""

    def block(self, slot, *, seed, device):
        project, before = super().block(slot, seed=seed, device=device), []

        def leaky(grad, out):
            project(grad, out)
            for seen in before:
                project(1e-6 * seen[:1].expand_as(grad).to(grad.dtype), out)
            before[:] = [grad.clone()]

        return leaky


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


class WrongFactors(Dense):
    class Map:
        def __init__(self, project):
            self.project = project

        def __call__(self, grad, out):
            self.project(grad, out)

        def outer(self, block, out):
            self.project(block.dense().transpose(1, 2).flatten(1), out)

    def block(self, slot, *, seed, device):
        return self.Map(super().block(slot, seed=seed, device=device))


class UnderstatesItsMemory(Dense):
    def memory_bytes(self, layout):
        return layout.numel


class HidesItsSettings(Dense):
    @property
    def state(self):
        return {"class": "HidesItsSettings"}


class HidesAnOption(Dense):
    def __init__(self, dim=24, scale=1.0):
        super().__init__(dim)
        self._scale = scale


class LeavesOutTheEnd(Dense):
    """Uses the first half of a parameter of more than 1,000 entries."""

    def matrix(self, slot, seed):
        matrix = super().matrix(slot, seed)
        if len(matrix) > 1000:
            matrix[len(matrix) // 2 :] = 0
        return matrix


def failures(projector):
    """The names of the laws that a projector breaks."""
    tests = type("TestWrong", (ProjectorConformance,), {"projector": projector})()
    broken = set()
    for name in dir(tests):
        if name.startswith("test_"):
            method = getattr(tests, name)
            arguments = [{}]
            for mark in getattr(method, "pytestmark", []):
                arguments = [{**known, mark.args[0]: value} for known in arguments for value in mark.args[1]]
            for chosen in arguments:
                if "device" in method.__code__.co_varnames[: method.__code__.co_argcount]:
                    chosen["device"] = torch.device("cpu")
                try:
                    method(**chosen)
                except AssertionError:
                    broken.add(name)
                except Skipped:
                    pass
    return broken


def test_a_right_projector_breaks_no_law():
    assert failures(Dense) == set()


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (Squares, "test_it_is_linear"),
        (CentresTheBatch, "test_a_row_does_not_depend_on_its_batch"),
        (SeedsByTheBatch, "test_a_row_does_not_depend_on_its_batch"),
        (LeaksTheLastBatch, "test_a_gradient_may_come_in_two_blocks"),
        (ReadsGlobalRandomness, "test_it_neither_reads_nor_changes_global_randomness"),
        (ForgetsTheScale, "test_it_keeps_inner_products_on_average_and_spreads_them_no_more_than_a_dense_matrix"),
        (ChangesItsInput, "test_it_does_not_change_the_gradient"),
        (OneBlockForAll, "test_seed_checkpoint_and_parameter_name_each_give_another_matrix"),
        (SumsInSixteenBits, "test_sixteen_bit_gradients_are_summed_in_float32"),
        (WrongFactors, "test_factors_and_sparse_rows_give_what_the_dense_gradient_gives"),
        (UnderstatesItsMemory, "test_it_holds_no_more_memory_than_it_says"),
        (HidesItsSettings, "test_its_state_is_json_and_does_not_change_by_use"),
        (HidesAnOption, "test_its_state_is_json_and_does_not_change_by_use"),
        (LeavesOutTheEnd, "test_every_part_of_a_large_parameter_counts"),
    ],
)
def test_a_wrong_projector_fails_the_law_that_it_breaks(wrong, law):
    assert law in failures(wrong)
