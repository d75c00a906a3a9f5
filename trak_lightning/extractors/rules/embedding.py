"""Embedding tables: only the rows that a sample looks up have a gradient."""

from collections.abc import Iterator

from torch import Tensor, nn

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import GradientBlock, RowSparseBlock


def _plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq


@rule_for(nn.Embedding, when=_plain, parameters="weight", positions=True)
def embedding(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """``∂f/∂W[x_t] += ∂f/∂y_t`` over all positions t; nothing for the padding index, as in training."""
    assert isinstance(module, nn.Embedding)
    rows = input.reshape(input.shape[0], -1)
    row_grad = output_grad.reshape(*rows.shape, output_grad.shape[-1])
    if module.padding_idx is not None:
        row_grad = row_grad.masked_fill((rows == module.padding_idx).unsqueeze(-1), 0)
    yield RowSparseBlock(names["weight"], rows, row_grad, module.num_embeddings)
