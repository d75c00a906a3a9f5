"""The multiclass margin, with the memory and time of a cross-entropy."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**20
"""Number of logits processed at once: vocabularies are large, and caches are not."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``logit_y − logsumexp(logits of the other classes)``, (…) from `logits` (…, C) and `labels` (…).

    Stable where p_y is near 0 or 1: no probability is formed. Computed in float32 or wider. A label that is no class
    gives NaN. Differentiable once.
    """
    values, _ = _Margin.apply(logits, labels)
    return values


class _Margin(torch.autograd.Function):
    """Has its own backward pass, because autograd would keep several tensors of the size of the logits."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own = _own(logits, labels)
        if is_wrapped(logits) or is_wrapped(labels):
            log_sum = _log_sum_of_others(logits, own)
        else:
            parts = [_log_sum_of_others(*rows) for rows in _chunks(logits, own)]
            log_sum = torch.cat(parts).view(labels.shape)
        values = wide(logits.gather(-1, own).squeeze(-1)) - log_sum
        return values.masked_fill((labels < 0) | (labels >= logits.shape[-1]), torch.nan), log_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, log_sum = ctx.saved_tensors
        columns = _own(logits, labels), log_sum.unsqueeze(-1), grads[0].unsqueeze(-1)
        if is_wrapped(log_sum):
            return _slope(logits, *columns).to(logits.dtype), None
        found = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for place, *rows in _chunks(found, logits, *columns):
            place.copy_(_slope(*rows))
        return found, None


def _log_sum_of_others(logits: Tensor, own: Tensor) -> Tensor:
    return wide(logits).scatter(-1, own, -torch.inf).logsumexp(-1)


def _slope(logits: Tensor, own: Tensor, log_sum: Tensor, grad: Tensor) -> Tensor:
    """−softmax over the other classes, and 1 for the class itself."""
    return (wide(logits) - log_sum).exp_().scatter(-1, own, -1.0).mul_(-grad)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    """Index of the logit of the label, (…, 1); any index for a label that is no class."""
    return labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)


def _chunks(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows at a time of all tensors, flattened to (rows, their last dimension)."""
    rows = max(1, _CHUNK // first.shape[-1])
    yield from zip(*(tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in (first, *others)), strict=True)


def is_wrapped(values: Tensor) -> bool:
    """Whether vmap or grad wraps `values`, so that they cannot be looked at or written to in pieces."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(values))


def wide(values: Tensor) -> Tensor:
    """`values` in float32 or wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
