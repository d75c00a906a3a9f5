"""What the audit lets pass."""

import pytest
import torch
from torch import nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.audit import Audit, audit_coefficients, reference
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
    for error, wrong in ((0.0, set()), (passes, set()), (refused, {"0.weight"})):
        audit = Audit(layout, reference(model, Sum(), SampleBatch.of_rows(batch, 5), layout), audit_coefficients(5))
        for name, grad in grads.items():
            audit(DenseBlock(name, grad * (1 + error) if name == "0.weight" else grad))
        assert audit.wrong().keys() == wrong, error


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
