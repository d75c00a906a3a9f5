"""The multiclass margin, at the memory and the cost of a cross-entropy."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**20
"""Logits looked at in one go: vocabularies are large, and caches are not."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``logit_y − logsumexp(logits of the other classes)``, (…) from `logits` (…, C) and `labels` (…).

    Stable where p_y is near 0 or 1: no probability is formed. Computed in float32 or wider. A label that is no class
    gives NaN. Differentiable once.
    """
    values, _ = _Margin.apply(logits, labels)
    return values


class _Margin(torch.autograd.Function):
    """Written out, because autograd would keep and fill several tensors of the size of the logits."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own, others = _own(logits, labels), []
        for part, index in _in_chunks(logits, own):
            others.append(part.scatter(1, index, -torch.inf).logsumexp(1))
        log_sum = torch.cat(others).view(labels.shape)
        values = _wide(logits.gather(-1, own).squeeze(-1)) - log_sum
        return values.masked_fill((labels < 0) | (labels >= logits.shape[-1]), torch.nan), log_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, log_sum = ctx.saved_tensors
        chunks = _in_chunks(logits, _own(logits, labels), log_sum.unsqueeze(-1), grads[0].unsqueeze(-1))
        found = []
        for part, index, others, grad in chunks:
            # −softmax over the other classes, and 1 for the class itself.
            made = (part - others).exp_().scatter(1, index, -1.0).mul_(-grad)
            found.append(made.to(logits.dtype))
        return torch.cat(found).view(logits.shape), None


def _in_chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the flattened logits (…, C), in float32 or wider, with the rows of other tensors (…, 1)."""
    C = logits.shape[-1]
    # Under vmap there is one sample, and slices of batched tensors cost more than they save.
    rows = max(1, _CHUNK // C) if not _is_wrapped(logits) else max(1, logits.numel())
    parts = (tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in (logits, *others))
    for part, *rest in zip(*parts, strict=True):
        yield _wide(part), *rest


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the logit of the label is, (…, 1); anywhere for a label that is no class."""
    return labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)


def _is_wrapped(values: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(values))


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
