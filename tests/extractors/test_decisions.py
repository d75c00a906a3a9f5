"""What Python decides by a value of the whole batch is not what it would decide for a sample alone."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.auto import Auto
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import ParameterLayout
from trak_lightning.testing.extractors import autograd_loop, gradients
from trak_lightning.testing.models import Sum


class Steps(nn.Module):
    """Leaves a loop when `done`."""

    def __init__(self, done):
        super().__init__()
        torch.manual_seed(0)
        self.done, self.step, self.last = done, nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        for _ in range(6):
            x = 0.7 * self.step(x).tanh()
            if self.done(x):
                break
        return self.last(x)


class Frozen(nn.Module):
    """Has no gradient for the first layer where `frozen`."""

    def __init__(self, frozen):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.first, self.last = frozen, nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        with torch.set_grad_enabled(not self.frozen(x)):
            hidden = self.first(x).tanh()
        return self.last(hidden)


class Variational(nn.Module):
    """Distributions check their arguments with ``all``."""

    def __init__(self):
        super().__init__()
        self.mean, self.scale = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return kl_divergence(Normal(self.mean(x), self.scale(x).exp()), Normal(torch.zeros(2), torch.ones(2)))


def batches(count=20, size=8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield SampleBatch.of_rows(torch.randn(size, 3, generator=generator, dtype=torch.float64), size)


DOUBTFUL = {
    "a mean": lambda x: x.abs().mean() < 0.25,
    "a number of Python": lambda x: float(x.abs().mean()) < 0.25,
    "an array": lambda x: x.abs().mean().detach().numpy() < 0.25,
    "a norm": lambda x: x.norm() < 1,
    "all of them": lambda x: (x.abs() < 0.6).all(),
    "the largest": lambda x: x.max() > 0.6,
    "none of them": lambda x: not (x > 0.4).any(),
    "not any, as a tensor": lambda x: ~(x > 0.4).any(),
    "how many": lambda x: (x > 0.4).float().sum() < 3,
}


@pytest.mark.parametrize("model", [Steps, Frozen])
@pytest.mark.parametrize("decides", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_sample_has_the_gradient_that_it_has_alone(model, decides):
    model, extractor = model(decides).double(), Auto()
    for batch in batches():
        found = gradients(extractor, model, Sum(), batch)[1]
        for name, grad in autograd_loop(model, Sum(), batch, batch.size)[1].items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decides", DOUBTFUL.values(), ids=DOUBTFUL)
def test_hooks_name_the_line(decides):
    def every_batch():
        for batch in batches():
            gradients(Hooks(), Steps(decides).double(), Sum(), batch)

    with pytest.raises(UnsupportedModelError, match=r"a number that is computed from all samples.*test_decisions\.py:"):
        every_batch()


CERTAIN = {
    "a check for NaN": Frozen(lambda x: torch.isnan(x).any()),
    "a check for a range": Frozen(lambda x: not ((x > -99) & (x < 99)).all()),
    "a check of the extremes": Frozen(lambda x: x.max() > 99 or not x.min() > -99),
    "not, as a tensor": Frozen(lambda x: ~(x < 99).all()),
    "a number of a parameter": Frozen(lambda x: float(nn.Parameter(torch.ones(()))) < 0),
    "sizes": Frozen(lambda x: len(x) > 99),
    "one number of each sample": Frozen(lambda x: [float(each.mean()) for each in x] == []),
    "distributions": Variational(),
}


@pytest.mark.parametrize("model", CERTAIN.values(), ids=CERTAIN)
def test_answers_that_hold_for_each_sample_alone_cost_nothing(model):
    model, hooks = model.double(), Hooks()
    for batch in batches(4):
        found = gradients(hooks, model, Sum(), batch)[1]
        for name, grad in autograd_loop(model, Sum(), batch, batch.size)[1].items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)
    assert hooks.kinds == 1


class Padded(nn.Module):
    """Leaves out the mask if nothing is padded, as models of transformers do."""

    def __init__(self, nothing_padded):
        super().__init__()
        torch.manual_seed(0)
        self.nothing_padded, self.layer = nothing_padded, nn.Linear(3, 3)

    def forward(self, batch):
        x, mask = batch
        hidden = self.layer(x).tanh()
        return hidden if self.nothing_padded(mask) else hidden * mask


@pytest.mark.parametrize(
    "nothing_padded",
    [lambda mask: mask.bool().all(), lambda mask: torch.all(mask == 1), lambda mask: not (mask < 1).any()],
)
def test_zeros_and_ones_of_the_batch_are_a_mask_of_whatever_type(nothing_padded):
    model, hooks = Padded(nothing_padded).double(), Hooks()
    for x in (batch.data for batch in batches(3)):
        batch = SampleBatch.of_rows(
            (x, (torch.arange(3) < torch.tensor([3, 1, 2, 3, 3, 2, 1, 3])[:, None]).double()), 8
        )
        found = gradients(hooks, model, Sum(), batch)[1]
        for name, grad in autograd_loop(model, Sum(), batch, 8)[1].items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


def test_zeros_and_ones_that_a_model_makes_by_a_threshold_are_followed():
    hard = Steps(lambda x: (x > 0.4).to(x).bool().all())
    with pytest.raises(UnsupportedModelError, match="a number that is computed from all samples"):
        gradients(Hooks(), hard.double(), Sum(), next(batches()))


def test_an_answer_that_is_doubtful_only_later_is_noticed():
    model, hooks = Frozen(lambda x: (x > 2).any()).double(), Hooks()
    small, large = torch.randn(8, 3).double().clamp(max=1.9), torch.randn(8, 3).double().clamp(max=1.9)
    large[5, 1] = 2.5
    layout = ParameterLayout.of(model)
    hooks.extract(model, Sum(), SampleBatch.of_rows(small, 8), layout, lambda block: None)
    with pytest.raises(UnsupportedModelError, match="a number that is computed from all samples"):
        hooks.extract(model, Sum(), SampleBatch.of_rows(large, 8), layout, lambda block: None)
