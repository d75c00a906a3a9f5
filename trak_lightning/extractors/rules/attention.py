"""Multi-head attention: four linear maps, whose inputs and output gradients come from computing the attention again."""

from collections.abc import Iterator
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trak_lightning.extractors.rules.registry import LayerCall, Names, call_rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock, OuterProductBlock
from trak_lightning.tasks.margin import wide

_PARAMETERS = r"in_proj_weight|[qkv]_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias"


@call_rule_for(nn.MultiheadAttention, parameters=_PARAMETERS, when=lambda module: not module.training)
def multihead_attention(module: nn.Module, names: Names, call: LayerCall) -> Iterator[GradientBlock]:
    """With the projected queries, keys and values as leaves, ``∂f/∂W_q = Σ_t ∂f/∂q_t ⊗ x_t``, and so on; any masks,
    separate key and value sizes, and gradients of the returned attention weights."""
    assert isinstance(module, nn.MultiheadAttention)
    given = signature(module.forward).bind(*call.args, **call.kwargs)
    given.apply_defaults()
    options = given.arguments
    first = module.batch_first
    inputs = [_batch_first(options[name].detach(), first) for name in ("query", "key", "value")]
    weights, biases = _projections(module)
    dtype = torch.promote_types(inputs[0].dtype, weights[0].dtype)
    dtype = dtype if torch.is_autocast_enabled(inputs[0].device.type) else inputs[0].dtype
    with torch.enable_grad():
        projected = [
            F.linear(input, weight, bias).detach().requires_grad_()
            for input, weight, bias in zip(inputs, weights, biases, strict=True)
        ]
        mixed, attention = _attend(module, projected, options)
        output_grad = call.output_grads[0]
        weight_grad = call.output_grads[1] if len(call.output_grads) > 1 else None
        outputs, grads = [], []
        if output_grad is not None:
            output_grad = _batch_first(output_grad, first)
            outputs.append(mixed)
            grads.append((output_grad @ module.out_proj.weight.detach().to(output_grad.dtype)).to(mixed.dtype))
        if weight_grad is not None:
            outputs.append(attention)
            grads.append(weight_grad.to(attention.dtype))
        pulled = torch.autograd.grad(outputs, projected, grads, allow_unused=True, materialize_grads=True)
    yield from _input_blocks(names, inputs, pulled)
    if output_grad is not None:
        left, right = wide(output_grad), wide(mixed.detach())
        if "out_proj.weight" in names:
            yield OuterProductBlock(names["out_proj.weight"], left, right)
        if "out_proj.bias" in names:
            yield DenseBlock(names["out_proj.bias"], left.sum(1))


def _projections(module: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor | None]]:
    if module._qkv_same_embed_dim:
        weights = list(module.in_proj_weight.detach().chunk(3))
    else:
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = [weight.detach() for weight in separate]
    bias = module.in_proj_bias
    biases: list[Tensor | None] = [None] * 3 if bias is None else list(bias.detach().chunk(3))
    return weights, biases


def _attend(module: nn.MultiheadAttention, projected: list[Tensor], options: dict) -> tuple[Tensor, Tensor]:
    """The input of the output projection, (B, T, E), and the attention weights as the module returns them."""
    query, key, value = projected
    B, _, E = query.shape
    if module.bias_k is not None:
        assert module.bias_v is not None
        key = torch.cat([key, module.bias_k.detach().to(key.dtype).expand(B, 1, E)], 1)
        value = torch.cat([value, module.bias_v.detach().to(value.dtype).expand(B, 1, E)], 1)
    if module.add_zero_attn:
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    query, key, value = (x.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = _mask(options["attn_mask"], options["key_padding_mask"], (B, module.num_heads), key.shape[2], query)
    if not options["need_weights"]:
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        return mixed.transpose(1, 2).flatten(2), mixed
    scores = query @ key.transpose(2, 3) / module.head_dim**0.5
    attention = (scores if mask is None else scores + mask).softmax(3)
    mixed = (attention @ value).transpose(1, 2).flatten(2)
    return mixed, attention.mean(1) if options["average_attn_weights"] else attention


def _mask(attn_mask: Tensor | None, padding: Tensor | None, heads: tuple[int, int], length: int, like: Tensor):  # type: ignore[no-untyped-def]
    """Both masks as one that is added to the scores, (B, heads or 1, T or 1, length); keys that the module appends are
    never masked."""
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, length, like)
        mask = mask.unflatten(0, heads) if mask.ndim == 3 else mask.expand(1, 1, *mask.shape)
    if padding is not None:
        padded = _additive(padding, length, like)[:, None, None, :]
        mask = padded if mask is None else mask + padded
    return mask


def _additive(mask: Tensor, length: int, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
    return F.pad(mask.to(like.dtype), (0, length - mask.shape[-1]))


def _input_blocks(names: Names, inputs: list[Tensor], grads: tuple[Tensor, ...]) -> Iterator[GradientBlock]:
    lefts = [wide(grad) for grad in grads]
    if "in_proj_weight" in names:
        yield _stacked(names["in_proj_weight"], inputs, lefts)
    for name, left, right in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), lefts, inputs, strict=True):
        if name in names:
            yield OuterProductBlock(names[name], left, wide(right))
    if "in_proj_bias" in names:
        yield DenseBlock(names["in_proj_bias"], torch.cat([left.sum(1) for left in lefts], 1))


def _stacked(name: str, inputs: list[Tensor], lefts: list[Tensor]) -> GradientBlock:
    """The three maps as the rows of one matrix: side by side where they share an input, else along the positions."""
    if all(input.data_ptr() == inputs[0].data_ptr() and input.shape == inputs[0].shape for input in inputs):
        return OuterProductBlock(name, torch.cat(lefts, 2), wide(inputs[0]))
    widths = [left.shape[2] for left in lefts]
    placed = [F.pad(left, (sum(widths[:position]), sum(widths[position + 1 :]))) for position, left in enumerate(lefts)]
    return OuterProductBlock(name, torch.cat(placed, 1), torch.cat([wide(input) for input in inputs], 1))


def _batch_first(tensor: Tensor, batch_first: bool) -> Tensor:
    return tensor if batch_first else tensor.transpose(0, 1)
