"""What the audit lets pass."""

import pytest
import torch
from torch import nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.audit import Audit, reference, sample_weights
from trak_lightning.gradients import DenseBlock, ParameterLayout
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
        audit = Audit(layout, reference(model, Sum(), SampleBatch.of_rows(batch, 5), layout), sample_weights(5))
        for name, grad in grads.items():
            audit(DenseBlock(name, grad * (1 + error) if name == "0.weight" else grad))
        assert audit.wrong().keys() == wrong, error
