"""What the audit lets pass."""

import pytest
import torch
from torch import nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.audit import Audit, added, audit_coefficients, halves, reference
from trak_lightning.extractors.rules.convolution import convolution
from trak_lightning.gradients import DenseBlock, OuterProductBlock, ParameterLayout, RowSparseBlock
from trak_lightning.testing.extractors import autograd_loop
from trak_lightning.testing.models import Sum


class InSinglePrecision(nn.Module):
    """As the norms of T5 and Llama."""

    def forward(self, x):
        return (x.float() * x.float().pow(2).mean(-1, keepdim=True).rsqrt()).to(x.dtype)


@pytest.mark.parametrize(
    ("between", "dtype", "passes", "refused"),
    [
        (nn.Tanh(), torch.float64, 1e-10, 1e-6),
        (InSinglePrecision(), torch.float64, 1e-6, 1e-2),
        (nn.Tanh(), torch.float32, 1e-6, 1e-2),
        (nn.Tanh(), torch.bfloat16, 1e-2, 0.5),
    ],
    ids=["float64", "float64 with a layer in float32", "float32", "bfloat16"],
)
def test_errors_are_distinguished_from_rounding_in_the_precision_of_the_model(between, dtype, passes, refused):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), between, nn.Linear(8, 3)).to(dtype)
    batch = torch.randn(5, 6, dtype=dtype)
    layout = ParameterLayout.of(model)
    grads = autograd_loop(model, Sum(), batch, 5)[1]
    for measure in (True, False):
        for error, wrong in ((0.0, set()), (passes, set()), (refused, {"0.weight"})):
            expected = reference(model, Sum(), SampleBatch.of_rows(batch, 5), layout)
            audit = Audit(layout, expected, audit_coefficients(5), measure=measure)
            for name, grad in grads.items():
                audit(DenseBlock(name, grad * (1 + error) if name == "0.weight" else grad))
            assert audit.wrong().keys() == wrong, (error, measure)


def test_two_halves_of_a_batch_have_the_gradient_of_the_whole():
    torch.manual_seed(0)
    model, rows = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(7, 6).double()
    layout, batch, weights = ParameterLayout.of(model), SampleBatch.of_rows(rows, 7), audit_coefficients(7)
    parts = halves(7, seed=3)
    assert sorted([*parts[0], *parts[1]]) == list(range(7))
    assert all(part == sorted(part) for part in parts)
    found = added([reference(model, Sum(), batch.fetch(part), layout, weights[part]) for part in parts])
    expected = reference(model, Sum(), batch, layout)
    torch.testing.assert_close(found.output, expected.output[[*parts[0], *parts[1]]])
    for name, grad in expected.grads.items():
        torch.testing.assert_close(found.grads[name], grad)


def convolved(**options):
    module = nn.Conv2d(4, 6, 3, **options)
    input = torch.randn(5, 4, 8, 8)
    (block,) = convolution(module, {"weight": "weight"}, input, torch.randn_like(module(input)))
    return block


BLOCKS = {
    "a matrix per sample": lambda: DenseBlock("weight", torch.randn(5, 4, 3)),
    "a number per sample": lambda: DenseBlock("scale", torch.randn(5)),
    "outer products": lambda: OuterProductBlock("weight", torch.randn(5, 7, 4), torch.randn(5, 7, 3)),
    "rows of a table": lambda: RowSparseBlock("weight", torch.randint(0, 6, (5, 7)), torch.randn(5, 7, 3), 6),
    "a convolution": convolved,
    "a convolution in groups": lambda: convolved(groups=2, stride=2, padding=1),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_weighted_sum_of_samples_is_that_of_their_dense_gradients(kind):
    block, weights = BLOCKS[kind](), audit_coefficients(5)
    expected = torch.tensordot(weights.float(), block.dense(), 1)
    found = block.weighted_sum(weights, expected.numel()).view_as(expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
