"""What is special to single projectors."""

import numpy as np
import pytest
import torch

from trak_lightning.errors import SettingsError
from trak_lightning.gradients import ParameterLayout, ParameterSlot
from trak_lightning.projectors.auto import Auto
from trak_lightning.projectors.base import Projection
from trak_lightning.projectors.dense import Gaussian, Rademacher
from trak_lightning.projectors.second_moment import SecondMoment
from trak_lightning.projectors.sparse_jl import SparseJL
from trak_lightning.projectors.two_sided import LowRank, TwoStage

SLOT, CPU = ParameterSlot("w", (100, 30), 0), torch.device("cpu")


def columns(projector):
    out = torch.zeros(SLOT.numel, projector.dim)
    projector.block(SLOT, seed=5, device=CPU)(torch.eye(SLOT.numel), out)
    return out


def test_sparse_jl_has_one_entry_of_size_one_a_column():
    matrix = columns(SparseJL(64))
    assert torch.equal((matrix != 0).sum(1), torch.ones(SLOT.numel, dtype=torch.long))
    assert torch.equal(matrix.abs().sum(1), torch.ones(SLOT.numel))


def test_sparse_jl_has_the_same_bits_with_one_thread_and_two():
    grad, found = torch.randn(16, SLOT.numel, generator=torch.Generator().manual_seed(0)), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = torch.zeros(16, 64)
            SparseJL(64).block(SLOT, seed=5, device=CPU)(grad, out)
            found.append(out)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("dense", [Rademacher, Gaussian])
def test_a_dense_matrix_is_the_same_kept_or_generated_tile_by_tile(dense):
    torch.testing.assert_close(columns(dense(64, memory_budget=0)), columns(dense(64)), rtol=0, atol=0)
    assert dense(64, memory_budget=0).state == dense(64).state


def test_rademacher_entries_are_plus_or_minus_one_over_root_k():
    assert set(columns(Rademacher(64)).unique().tolist()) == {-0.125, 0.125}


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (SparseJL, "nnz"),
        (LowRank, "rank"),
        (TwoStage, "sketch"),
        (Rademacher, "memory_budget"),
        (SecondMoment, "fit_samples"),
        (Auto, "dim"),
    ],
)
def test_integers_of_numpy_are_settings_and_other_numbers_are_not(make, option):
    assert repr(make(**{option: np.int64(2)}).state) == repr(make(**{option: 2}).state)
    for wrong in (1.5, True, -1):
        with pytest.raises(SettingsError, match=f"{option} must be .*, got {wrong}"):
            make(**{option: wrong})


def test_a_dimension_below_one_is_refused():
    with pytest.raises(SettingsError, match="dim must be a number of dimensions, 1 or more, got 0"):
        SparseJL(0)


@pytest.mark.parametrize("used", [True, False])
def test_a_projector_that_ignores_its_seed_is_named(used, caplog):
    class Mine(Gaussian):
        def block(self, slot, *, seed, device):
            return super().block(slot, seed=seed if used else 3, device=device)

    layout = ParameterLayout.of(torch.nn.Linear(3, 3))
    Projection(Mine(4), layout, seed=0, checkpoint="c", device=CPU)
    assert ("Mine ignores its seed" in caplog.text) != used
