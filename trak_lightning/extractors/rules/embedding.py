"""Embedding tables, and bags of embeddings: only the rows that a sample looks up have a gradient."""

from collections.abc import Iterator
from inspect import signature

import torch
from torch import Tensor, nn

from trak_lightning.extractors.rules.registry import LayerCall, Names, call_rule_for, rule_for
from trak_lightning.gradients import GradientBlock, RowSparseBlock


def _is_plain(module: nn.Module) -> bool:
    """Whether a lookup leaves the table as it is, and the gradient of a row does not depend on other samples."""
    return module.max_norm is None and not module.scale_grad_by_freq


@rule_for(nn.Embedding, when=_is_plain, parameters="weight", positions=True)
def embedding(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """``∂f/∂W[x_t] += ∂f/∂y_t`` over all positions t; nothing for the padding index, as in training."""
    assert isinstance(module, nn.Embedding)
    rows = input.reshape(input.shape[0], -1)
    row_grad = output_grad.reshape(*rows.shape, output_grad.shape[-1])
    if module.padding_idx is not None:
        row_grad = row_grad.masked_fill((rows == module.padding_idx).unsqueeze(-1), 0)
    yield RowSparseBlock(names["weight"], rows, row_grad, module.num_embeddings)


@call_rule_for(nn.EmbeddingBag, parameters="weight", when=_is_plain)
def embedding_bag(module: nn.Module, names: Names, call: LayerCall) -> Iterator[GradientBlock]:
    """The rows of each bag, for bags given as a matrix or by offsets."""
    assert isinstance(module, nn.EmbeddingBag)
    given = signature(module.forward).bind(*call.args, **call.kwargs).arguments
    input, offsets, weights = given["input"], given.get("offsets"), given.get("per_sample_weights")
    grad = call.output_grads[0]
    if grad is None:
        return
    rows, present, scale = _bags(module, input, offsets, weights)  # (bags, T), padded where bags differ in T
    if module.padding_idx is not None:
        present = present & (rows != module.padding_idx)
    dtype = torch.promote_types(grad.dtype, torch.float32)
    grad = grad.to(dtype).unsqueeze(1)  # (bags, 1, d)
    if module.mode == "max":
        looked_up = module.weight.detach()[rows].masked_fill(~present.unsqueeze(-1), -torch.inf)
        first = torch.zeros_like(looked_up, dtype=torch.bool).scatter_(1, looked_up.argmax(1, keepdim=True), True)
        row_grad = grad * (first & present.unsqueeze(-1))
    else:
        factor = present.to(dtype)
        if module.mode == "mean":
            factor = factor / factor.sum(1, keepdim=True).clamp(min=1)
        if scale is not None:
            factor = factor * scale.to(dtype)
        row_grad = grad * factor.unsqueeze(-1)
    yield RowSparseBlock(names["weight"], rows, row_grad, module.num_embeddings)


def _bags(
    module: nn.EmbeddingBag, input: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, whether each is in its bag or padding, and their weights: (bags, T) each."""
    if input.ndim == 2:
        return input, torch.ones_like(input, dtype=torch.bool), weights
    assert offsets is not None
    ends = offsets[1:] if module.include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
    starts = offsets[: len(ends)]
    steps = torch.arange(max(int((ends - starts).max()), 1), device=input.device)
    places = starts.unsqueeze(1) + steps
    present = places < ends.unsqueeze(1)
    places = places.masked_fill(~present, 0)
    return input[places], present, None if weights is None else weights[places]
