"""The multiclass margin, against log(p / (1 − p)) computed as it is written, in float64."""

import pytest
import torch
from torch.func import grad, vmap

from trak_lightning.tasks.margin import margin


def naive(logits, labels):
    p = torch.softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.log(p / (1 - p))


def problem(*shape, classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(0, classes, shape, generator=generator)


@pytest.mark.parametrize(("shape", "classes"), [((), 2), ((4,), 7), ((2, 3), 5), ((3,), 2**20)])
def test_it_and_its_gradient_equal_the_formula(shape, classes):
    logits, labels = problem(*shape, classes=classes)
    weights = torch.linspace(1, 2, max(1, labels.numel()), dtype=torch.float64).view(shape)
    found, expected = margin(logits, labels), naive(logits, labels)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    slopes = [torch.autograd.grad((weights * values).sum(), logits)[0] for values in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-12)


def test_it_is_finite_where_probabilities_are_0_and_1():
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    found = margin(logits, torch.tensor([0, 0]))
    assert found.tolist() == [200.0, -400.0]
    assert torch.autograd.grad(found.sum(), logits)[0].tolist() == [[1, 0, -1], [1, -1, 0]]


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_a_label_that_is_no_class_gives_nan_and_leaves_the_others_alone(label):
    found = margin(torch.zeros(2, 3), torch.tensor([0, label]))
    assert found[1].isnan()
    torch.testing.assert_close(found[0], -torch.log(torch.tensor(2.0)))


def test_it_can_be_differentiated_sample_by_sample_under_vmap():
    logits, labels = problem(4, classes=5)
    weights = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def slope(output):
        return vmap(grad(lambda w, x, y: output((x @ w).unsqueeze(0), y.unsqueeze(0))[0]), (None, 0, 0))

    found, expected = (slope(output)(weights, logits.detach(), labels) for output in (margin, naive))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_are_summed_in_float32(dtype):
    logits, labels = problem(3, classes=1000)
    rounded = logits.detach().to(dtype).requires_grad_()
    found = margin(rounded, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), naive(rounded.double(), labels), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(found.sum(), rounded)[0].dtype == dtype
