"""The laws of projectors."""

import json
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from trak_lightning.gradients import DenseBlock, OuterProductBlock, ParameterLayout, RowSparseBlock
from trak_lightning.projectors.base import Projection, Projector

DIM = 24


class ProjectorConformance:
    """Subclass with ``projector``, a class or function that makes one from ``dim``; every law is checked.

    The oracle is the explicit matrix: what the projector makes of the rows of the identity.
    """

    projector: ClassVar[Callable[..., Projector]]
    takes_dim: ClassVar[bool] = True
    """False for a projector whose k follows from the model (identity)."""
    random: ClassVar[bool] = True
    """False for a projector that does not depend on the seed."""

    def make(self, dim: int = DIM) -> Projector:
        return type(self).projector(dim=dim) if self.takes_dim else type(self).projector()

    def project(self, layout: ParameterLayout, grads: dict[str, Tensor], *, dim: int = DIM, seed: int = 0) -> Tensor:
        projection = Projection(self.make(dim), layout, seed=seed, checkpoint="c", device="cpu")
        first = next(iter(grads.values()))
        out = projection.zeros(len(first), torch.float64 if first.dtype == torch.float64 else torch.float32)
        for name, grad in grads.items():
            projection.add(DenseBlock(name, grad), out)
        return out

    def matrix(self, layout: ParameterLayout, *, dim: int = DIM, seed: int = 0) -> Tensor:
        """P transposed, (p, k), in float64."""
        return self.project(layout, split(layout, torch.eye(layout.numel, dtype=torch.float64)), dim=dim, seed=seed)

    @pytest.mark.parametrize("dim", [1, 7, DIM, 500])
    def test_it_is_the_matrix_that_it_makes_of_the_identity(self, dim: int) -> None:
        layout, rows = example(5)
        expected = rows @ self.matrix(layout, dim=dim)
        found = self.project(layout, split(layout, rows), dim=dim)
        assert found.shape == (5, self.make(dim).output_dim(layout))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_it_is_linear(self) -> None:
        layout, rows = example(4)
        left, right = rows[:2], rows[2:]
        mixed = self.project(layout, split(layout, 2 * left - 3 * right))
        apart = 2 * self.project(layout, split(layout, left)) - 3 * self.project(layout, split(layout, right))
        torch.testing.assert_close(mixed, apart, rtol=1e-10, atol=1e-10)

    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        layout, rows = example(6)
        together = self.project(layout, split(layout, rows))
        for row in range(6):
            alone = self.project(layout, split(layout, rows[row : row + 1]))
            torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)

    def test_the_order_of_blocks_does_not_matter(self) -> None:
        layout, rows = example(3)
        grads = split(layout, rows)
        turned = self.project(layout, dict(reversed(grads.items())))
        torch.testing.assert_close(turned, self.project(layout, grads), rtol=1e-12, atol=1e-12)

    def test_a_gradient_may_come_in_two_blocks(self) -> None:
        layout, rows = example(3)
        whole = self.project(layout, split(layout, rows))
        projection = Projection(self.make(), layout, seed=0, checkpoint="c", device="cpu")
        out = projection.zeros(3, torch.float64)
        for part in (0.25 * rows, 0.75 * rows):
            for name, grad in split(layout, part).items():
                projection.add(DenseBlock(name, grad), out)
        torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)

    def test_factors_and_sparse_rows_give_what_the_dense_gradient_gives(self) -> None:
        layout, _ = example(1)
        generator = torch.Generator().manual_seed(1)
        outer = OuterProductBlock(
            "0.weight",
            torch.randn(3, 4, 6, generator=generator, dtype=torch.float64),
            torch.randn(3, 4, 5, generator=generator, dtype=torch.float64),
        )
        rows = torch.randint(0, 9, (3, 4), generator=generator)
        sparse = RowSparseBlock("1.weight", rows, torch.randn(3, 4, 7, generator=generator, dtype=torch.float64), 9)
        projection = Projection(self.make(), layout, seed=0, checkpoint="c", device="cpu")
        for block in (outer, sparse):
            found, expected = projection.zeros(3, torch.float64), projection.zeros(3, torch.float64)
            projection.add(block, found)
            projection.add(DenseBlock(block.name, block.dense()), expected)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_it_neither_reads_nor_changes_global_randomness(self) -> None:
        layout, _ = example(1)
        torch.manual_seed(1)
        before, first = torch.get_rng_state(), self.matrix(layout)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(self.matrix(layout), first)

    def test_it_does_not_change_the_gradient(self) -> None:
        layout, rows = example(2)
        grads = split(layout, rows)
        kept = {name: grad.clone() for name, grad in grads.items()}
        self.project(layout, grads)
        assert all(torch.equal(grads[name], kept[name]) for name in kept)

    def test_seed_checkpoint_and_parameter_name_each_give_another_matrix(self) -> None:
        if not self.random:
            return
        layout, _ = example(1)
        same = ParameterLayout.of(nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)]))
        whole = self.matrix(same)
        assert not torch.equal(whole[:64], whole[64:])
        assert not torch.equal(self.matrix(layout, seed=1), self.matrix(layout, seed=0))
        other = Projection(self.make(), layout, seed=0, checkpoint="d", device="cpu")
        out = other.zeros(layout.numel, torch.float64)
        for name, grad in split(layout, torch.eye(layout.numel, dtype=torch.float64)).items():
            other.add(DenseBlock(name, grad), out)
        assert not torch.equal(out, self.matrix(layout))

    def test_it_keeps_inner_products_on_average_and_spreads_them_no_more_than_a_dense_matrix(self) -> None:
        layout, rows = example(2)
        first, second = rows[0] / rows[0].norm(), rows[1] / rows[1].norm()
        pair = split(layout, torch.stack([first, second]))
        projected = [self.project(layout, pair, seed=seed) for seed in range(200)]
        norms = torch.stack([found[0].square().sum() for found in projected])
        products = torch.stack([found[0] @ found[1] for found in projected])
        # A dense ±1 matrix has variance at most 2/k for either; six standard errors of 200 draws.
        bound = 6 * (2 / DIM / 200) ** 0.5
        assert abs(float(norms.mean()) - 1) < bound
        assert abs(float(products.mean()) - float(first @ second)) < bound
        assert float(norms.var()) < 1.6 * 2 / DIM

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_sixteen_bit_gradients_are_summed_in_float32(self, dtype: torch.dtype) -> None:
        layout = ParameterLayout.of(nn.Linear(5000, 1, bias=False))
        rows = torch.ones(1, 5000, dtype=torch.float64)
        found = self.project(layout, split(layout, rows.to(dtype)))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), rows @ self.matrix(layout), rtol=1e-4, atol=1e-3)

    def test_its_state_is_json_and_does_not_change_by_use(self) -> None:
        layout, rows = example(2)
        projector = self.make()
        before = json.dumps(projector.state)
        Projection(projector, layout, seed=0, checkpoint="c", device="cpu").add(
            DenseBlock("0.weight", split(layout, rows)["0.weight"]),
            torch.zeros(2, projector.output_dim(layout), dtype=torch.float64),
        )
        assert json.dumps(projector.state) == before


def example(size: int) -> tuple[ParameterLayout, Tensor]:
    """A layout with blocks longer and shorter than k, and gradients (size, p) in float64."""
    layout = ParameterLayout.of(nn.Sequential(nn.Linear(5, 6), nn.Embedding(9, 7), nn.LayerNorm(11)))
    rows = torch.randn(size, layout.numel, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return layout, rows


def split(layout: ParameterLayout, rows: Tensor) -> dict[str, Tensor]:
    """Flattened gradients (B, p) as one (B, *shape) tensor a parameter."""
    return {
        slot.name: rows[:, slot.offset : slot.offset + slot.numel].contiguous().view(-1, *slot.shape) for slot in layout
    }
