"""Conformance tests for projectors: linear, deterministic, independent of how samples are batched."""

import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from trak_lightning.gradients import (
    ConvolutionBlock,
    DenseBlock,
    GradientBlock,
    OuterProductBlock,
    ParameterLayout,
    RowSparseBlock,
    Sink,
)
from trak_lightning.projectors.base import Projection, Projector
from trak_lightning.testing.memory import held_bytes, peak_allocated_bytes
from trak_lightning.testing.options import require_recorded_options

DIM = 24


class ProjectorConformance:
    """Subclass with ``projector``, a class or function that creates one from ``dim``; every law is checked.

    The oracle is the explicit matrix: the projection of the rows of the identity. If there is a GPU, the laws are checked
    there too, and the matrix must be the same.
    """

    projector: ClassVar[Callable[..., Projector]]
    takes_dim: ClassVar[bool] = True
    """False for a projector whose k is determined by the model (identity)."""
    random: ClassVar[bool] = True
    """False for a projector that does not depend on the seed."""
    unbiased: ClassVar[bool] = True
    """False for a projector that does not preserve inner products on average (one that is fitted to data)."""
    spread: ClassVar[float] = 1.6
    """The largest variance of ‖Pg‖² for a random unit vector g, as a multiple of that of a dense ±1 matrix."""

    @pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    def device(self, request: pytest.FixtureRequest) -> torch.device:
        return torch.device(request.param)

    def make(self, dim: int = DIM) -> Projector:
        return type(self).projector(dim=dim) if self.takes_dim else type(self).projector()

    def projection(
        self,
        layout: ParameterLayout,
        *,
        dim: int = DIM,
        seed: int = 0,
        checkpoint: str = "c",
        device: torch.device | str = "cpu",
    ) -> Projection:
        projector = self.make(dim)
        fitted = _fit(projector, layout, seed)
        return Projection(projector, layout, seed=seed, checkpoint=checkpoint, device=device, fitted=fitted)

    def project(
        self,
        layout: ParameterLayout,
        blocks: Iterable[GradientBlock],
        size: int,
        dtype: torch.dtype = torch.float64,
        **settings: Any,
    ) -> Tensor:
        """Return features (size, k) of a batch, accumulated in `dtype`; settings as for `projection`."""
        projection = self.projection(layout, **settings)
        out = projection.zeros(size, dtype)
        for block in blocks:
            projection.add(block, out)
        return out

    def matrix(self, layout: ParameterLayout, **settings: Any) -> Tensor:
        """Return P transposed, (p, k), in float64; settings as for `projection`."""
        identity = torch.eye(layout.numel, dtype=torch.float64, device=settings.get("device", "cpu"))
        return self.project(layout, split(layout, identity), layout.numel, **settings)

    @pytest.mark.parametrize("dim", [1, 7, DIM, 500])
    def test_it_is_the_matrix_that_it_makes_of_the_identity(self, dim: int, device: torch.device) -> None:
        layout, rows = example(5, device)
        expected = rows @ self.matrix(layout, dim=dim, device=device)
        found = self.project(layout, split(layout, rows), 5, dim=dim, device=device)
        assert found.shape == (5, self.make(dim).output_dim(layout))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_every_device_has_the_same_matrix(self, device: torch.device) -> None:
        layout, _ = example(1)
        found = self.matrix(layout, device=device).cpu()
        torch.testing.assert_close(found, self.matrix(layout), rtol=1e-6, atol=1e-7)

    def test_it_is_linear(self, device: torch.device) -> None:
        layout, rows = example(4, device)
        left, right = (self.project(layout, split(layout, part), 2, device=device) for part in (rows[:2], rows[2:]))
        mixed = self.project(layout, split(layout, 2 * rows[:2] - 3 * rows[2:]), 2, device=device)
        torch.testing.assert_close(mixed, 2 * left - 3 * right, rtol=1e-10, atol=1e-10)

    def test_a_row_does_not_depend_on_its_batch(self, device: torch.device) -> None:
        layout, rows = example(6, device)
        together = self.project(layout, split(layout, rows), 6, device=device)
        for row in range(6):
            alone = self.project(layout, split(layout, rows[row : row + 1]), 1, device=device)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)

    def test_the_order_of_blocks_does_not_matter(self, device: torch.device) -> None:
        layout, rows = example(3, device)
        blocks = split(layout, rows)
        turned = self.project(layout, reversed(blocks), 3, device=device)
        torch.testing.assert_close(turned, self.project(layout, blocks, 3, device=device), rtol=1e-12, atol=1e-12)

    def test_a_gradient_may_come_in_two_blocks(self, device: torch.device) -> None:
        layout, rows = example(3, device)
        whole = self.project(layout, split(layout, rows), 3, device=device)
        parts = split(layout, 0.25 * rows) + split(layout, 0.75 * rows)
        torch.testing.assert_close(self.project(layout, parts, 3, device=device), whole, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("dim", [1, DIM, 500])
    def test_factors_and_sparse_rows_give_what_the_dense_gradient_gives(
        self, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        layout, _ = example(1)
        rtol, out_dtype = (1e-10, torch.float64) if dtype == torch.float64 else (2e-2, torch.float32)
        for block in factored(dtype, device):
            found = self.project(layout, [block], 3, out_dtype, dim=dim, device=device)
            dense = DenseBlock(block.name, block.dense())
            expected = self.project(layout, [dense], 3, out_dtype, dim=dim, device=device)
            assert (found - expected).norm() <= rtol * expected.norm(), type(block).__name__

    def test_it_neither_reads_nor_changes_global_randomness(self) -> None:
        layout, _ = example(1)
        torch.manual_seed(1)
        before, first = torch.get_rng_state(), self.matrix(layout)
        remedy = "draw from torch.Generator().manual_seed(seed), with the seed that `block` is given"
        assert torch.equal(torch.get_rng_state(), before), f"it draws from the global generator: {remedy}"
        torch.manual_seed(2)
        assert torch.equal(self.matrix(layout), first), f"it depends on torch.manual_seed: {remedy}"

    def test_it_does_not_change_the_gradient(self) -> None:
        layout, rows = example(2)
        blocks = [*split(layout, rows), *factored(torch.float64)]
        kept = [block.dense().clone() for block in blocks]
        self.project(layout, blocks[: len(layout)], 2)
        self.project(layout, blocks[len(layout) :], 3)
        assert all(torch.equal(block.dense(), before) for block, before in zip(blocks, kept, strict=True))

    def test_seed_checkpoint_and_parameter_name_each_give_another_matrix(self) -> None:
        if not self.random:
            pytest.skip("not random")
        layout, _ = example(1)
        same = ParameterLayout.of(nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)]))
        whole, columns = self.matrix(same), self.make().columns(same)
        assert not torch.equal(whole[:64, columns["0.weight"]], whole[64:, columns["1.weight"]])
        assert not torch.equal(self.matrix(layout, seed=1), self.matrix(layout, seed=0))
        assert not torch.equal(self.matrix(layout, checkpoint="d"), self.matrix(layout, checkpoint="c"))

    def test_it_keeps_inner_products_on_average_and_spreads_them_no_more_than_a_dense_matrix(self) -> None:
        if not self.unbiased:
            pytest.skip("not unbiased")
        layout, rows = example(3)
        rows[2] = 1  # a projector without signs adds up what random gradients cancel
        rows /= rows.norm(dim=1, keepdim=True)
        projected = [self.project(layout, split(layout, rows), 3, seed=seed) for seed in range(100)]
        products = torch.stack([found @ found.T for found in projected])
        # A dense ±1 matrix has variance at most 2/k for each; six standard errors of 100 draws.
        bound = 6 * (self.spread * 2 / DIM / 100) ** 0.5
        off = products.mean(0) - rows @ rows.T
        assert (off.abs() < bound).all(), (
            f"mean inner products of two random gradients and a constant one are off by {off.tolist()}"
        )
        assert (products.diagonal(dim1=1, dim2=2).var(0) < self.spread * 2 / DIM).all()

    def test_every_part_of_a_large_parameter_counts(self) -> None:
        if not self.unbiased:
            pytest.skip("not unbiased")
        layout = ParameterLayout.of(nn.Linear(50, 40, bias=False))
        parts = torch.zeros(4, 4, layout.numel // 4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        for part in range(4):
            parts[part, part] = torch.randn(layout.numel // 4, generator=generator, dtype=torch.float64)
        rows = parts.flatten(1) / parts.flatten(1).norm(dim=1, keepdim=True)
        found = [self.project(layout, split(layout, rows), 4, seed=seed).square().sum(1) for seed in range(50)]
        norms = torch.stack(found).mean(0)
        assert ((norms > 0.5) & (norms < 1.5)).all(), (
            f"mean ‖Pg‖² of gradients in four parts of a parameter: {norms.tolist()}"
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_sixteen_bit_gradients_are_summed_in_float32(self, dtype: torch.dtype, device: torch.device) -> None:
        layout = ParameterLayout.of(nn.Linear(5000, 1, bias=False))
        rows = torch.ones(1, 5000, dtype=torch.float64, device=device)
        found = self.project(layout, split(layout, rows.to(dtype)), 1, torch.float32, device=device)
        # Sums of a hundred ones are exact in any type.
        parts = torch.eye(50, dtype=torch.float64, device=device).repeat_interleave(100, 1)
        expected = self.project(layout, split(layout, parts), 50, device=device).sum(0, keepdim=True)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)

    def test_autocast_does_not_lower_its_precision(self, device: torch.device) -> None:
        layout, rows = example(3, device)
        blocks = split(layout, rows.float())
        expected = self.project(layout, blocks, 3, torch.float32, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            found = self.project(layout, blocks, 3, torch.float32, device=device)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    def test_it_holds_no_more_memory_than_it_says(self) -> None:
        layout = ParameterLayout.of(nn.Sequential(nn.Linear(200, 120), nn.Embedding(250, 64)))
        projector = self.make(256)
        stated = projector.memory_bytes(layout)
        if stated is None:
            pytest.skip("memory_bytes does not say")
        blocks, fitted = split(layout, torch.ones(1, layout.numel)), _fit(projector, layout, 0)

        def use() -> Projection:
            projection = Projection(projector, layout, seed=0, checkpoint="c", device="cpu", fitted=fitted)
            out = projection.zeros(1)
            for block in blocks:
                projection.add(block, out)
            return projection

        features = 4 * projector.output_dim(layout)
        assert held_bytes(use) <= stated + 4 * features + 2**14
        # Working memory: some copies of the gradient, and tiles of what is generated on the fly.
        assert peak_allocated_bytes(use) <= stated + 4 * features + 16 * 4 * layout.numel + 2**24

    def test_its_state_is_json_and_does_not_change_by_use(self) -> None:
        layout, rows = example(2)
        projector = self.make()
        before = json.dumps(projector.state)
        fitted = _fit(projector, layout, 0)
        projection = Projection(projector, layout, seed=0, checkpoint="c", device="cpu", fitted=fitted)
        projection.add(split(layout, rows)[0], projection.zeros(2, torch.float64))
        assert json.dumps(projector.state) == before
        assert projector.state == self.make().state
        if self.takes_dim:
            assert projector.state != self.make(DIM * 4).state
        require_recorded_options(projector)


def example(size: int, device: torch.device | str = "cpu") -> tuple[ParameterLayout, Tensor]:
    """Return a layout with blocks longer and shorter than k, and gradients (size, p) in float64."""
    layout = ParameterLayout.of(
        nn.Sequential(nn.Linear(5, 6), nn.Embedding(9, 7), nn.LayerNorm(11), nn.Conv2d(6, 8, 2, bias=False))
    )
    rows = torch.randn(size, layout.numel, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return layout, rows.to(device)


def factored(dtype: torch.dtype, device: torch.device | str = "cpu") -> list[GradientBlock]:
    """Return blocks of three samples given as factors, for the parameters of `example`."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    rows = torch.randint(0, 9, (3, 4), generator=generator).to(device)
    return [
        OuterProductBlock("0.weight", draw(3, 4, 6), draw(3, 4, 5)),
        RowSparseBlock("1.weight", rows, draw(3, 4, 7), 9),
        ConvolutionBlock("3.weight", draw(3, 8, 3, 3), draw(3, 6, 4, 4), _correlate),
    ]


def _correlate(left: Tensor, right: Tensor) -> Tensor:
    """Compute the weight's gradient of a 2×2 convolution: (B, d_left, d_right, 2, 2) of (B, d_left, 3, 3), (B, d_right, 4, 4)."""
    windows = right.unfold(2, 3, 1).unfold(3, 3, 1)
    return torch.einsum("bohw,biklhw->boikl", left, windows)


def split(layout: ParameterLayout, rows: Tensor) -> list[GradientBlock]:
    """Split flattened gradients (B, p) into one block per parameter."""
    return [
        DenseBlock(slot.name, rows[:, slot.offset : slot.offset + slot.numel].contiguous().view(-1, *slot.shape))
        for slot in layout
    ]


def _fit(projector: Projector, layout: ParameterLayout, seed: int) -> dict[str, Tensor]:
    if not projector.fit_samples:
        return {}
    generator = torch.Generator().manual_seed(2)
    blocks = split(layout, torch.randn(projector.fit_samples, layout.numel, generator=generator))

    def push(sink: Sink) -> None:
        for block in blocks:
            sink(block)

    return projector.fit(layout, push, seed=seed)
