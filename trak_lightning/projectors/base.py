"""The interface of a projector, and the projection that joins its blocks into one linear map."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from trak_lightning.errors import SettingsError
from trak_lightning.gradients import (
    ConvolutionBlock,
    GradientBlock,
    OuterProductBlock,
    ParameterLayout,
    ParameterSlot,
    RowSparseBlock,
)
from trak_lightning.seeds import derive_seed


class BlockMap(Protocol):
    """The columns of P that belong to one parameter, as a function: adds ``grad @ P_blockᵀ`` to `out` in place.

    ``grad`` is (B, numel), contiguous; ``out`` is (B, k) and its dtype is the one to accumulate in. `grad` must not be
    changed. Any function with this signature will do. It is called with some samples at a time, unless it has an
    attribute ``whole_batches`` that is true. An object may also have the methods ``outer(block, out)``,
    ``convolution(block, out)`` and ``row_sparse(block, out)`` that do the same from the factors of an
    `OuterProductBlock`, a `ConvolutionBlock` or a `RowSparseBlock`, without forming the dense gradient.
    """

    def __call__(self, grad: Tensor, out: Tensor) -> None: ...


class Projector(ABC):
    """A seeded random linear map P ∈ R^{k×p}, given parameter by parameter.

    A projector of your own needs one method, `block`. Public attributes are its settings: they are written to the run
    directory, and a run is never continued with other ones.

    Laws (checked by `trak_lightning.testing.ProjectorConformance`):

    * linear in the gradient;
    * a function of (settings, seed, parameter name and shape) only: not of batch size, block order, device, thread
      count or global random state;
    * unbiased: E‖Pg‖² = ‖g‖² over seeds (so that inner products are kept on average);
    * sums are accumulated in the dtype of `out`, float32 or wider, whatever the dtype of the gradient.

    Args:
        dim: k, the number of projected dimensions.
    """

    def __init__(self, dim: int = 2048) -> None:
        if dim < 1:
            raise SettingsError(f"dim must be a positive number of dimensions, got {dim}")
        self.dim = dim

    def output_dim(self, layout: ParameterLayout) -> int:
        """k for this layout. Differs from ``dim`` only where p decides (identity)."""
        return self.dim

    @abstractmethod
    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        """The part of P that belongs to one parameter.

        `seed` is already derived from the run's seed, the checkpoint and the parameter's name: use it, and nothing
        else, as the source of randomness. The result is kept as long as the checkpoint is featurised, so what it
        holds (sign tables) is held for all parameters at once; state the memory in the class's docstring.
        """

    @property
    def state(self) -> dict[str, Any]:
        """Settings for the run directory: the class and its public attributes, which JSON must be able to hold."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}"} | {
            name: value for name, value in vars(self).items() if not name.startswith("_")
        }


class Projection:
    """P for one model and checkpoint: ``features = Σ_blocks P_block · g_block``, accumulated as blocks arrive.

    >>> projection = Projection(projector, layout, seed=0, checkpoint="a1b2", device=device)
    >>> features = projection.zeros(B)
    >>> extractor.extract(model, task, batch, layout, lambda block: projection.add(block, features))
    """

    def __init__(
        self, projector: Projector, layout: ParameterLayout, *, seed: int, checkpoint: str, device: torch.device | str
    ) -> None:
        self.layout = layout
        self.dim = projector.output_dim(layout)
        self.device = torch.device(device)
        self._projector = projector
        self._seed = seed
        self._checkpoint = checkpoint
        self._maps: dict[str, BlockMap] = {}

    def zeros(self, batch_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An empty accumulator (B, k); `dtype` is float64 for float64 models and float32 for all others."""
        return torch.zeros(batch_size, self.dim, dtype=dtype, device=self.device)

    def add(self, block: GradientBlock, out: Tensor) -> None:
        """Add the projection of `block` to `out` (B, k)."""
        block_map = self._map(block.name)
        from_factors = getattr(block_map, _FACTORS.get(type(block), ""), None)
        if from_factors is not None:
            from_factors(block, out)
        elif getattr(block_map, "whole_batches", False):
            block_map(_flatten(block.dense()), out)
        else:
            for samples, part in block.chunks(self.layout.by_name[block.name].numel):
                block_map(_flatten(part.dense()), out[samples])

    def _map(self, name: str) -> BlockMap:
        if name not in self._maps:
            seed = derive_seed(self._seed, self._checkpoint, name)
            self._maps[name] = self._projector.block(self.layout.by_name[name], seed=seed, device=self.device)
        return self._maps[name]


_FACTORS: dict[type[GradientBlock], str] = {
    OuterProductBlock: "outer",
    ConvolutionBlock: "convolution",
    RowSparseBlock: "row_sparse",
}


def _flatten(grad: Tensor) -> Tensor:
    return grad.reshape(len(grad), -1).contiguous()
