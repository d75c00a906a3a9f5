"""The interface of a projector, and the projection that joins its blocks into one linear map."""

from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

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
    Sink,
)
from trak_lightning.seeds import derive_seed


class BlockMap(Protocol):
    """The columns of P that belong to one parameter, as a function: adds ``grad @ P_blockᵀ`` to `out` in place.

    ``grad`` is (B, numel), contiguous; ``out`` is (B, k), a view of the features that this parameter adds to, and its
    dtype is the one to accumulate in. `grad` must not be changed. Any function with this signature will do. It is called
    with some samples at a time, unless it has an attribute ``whole_batches`` that is true, and never under autocast. An
    object may also have the methods ``outer(block, out)``, ``convolution(block, out)`` and
    ``row_sparse(block, out)``, which are given an `OuterProductBlock`, `ConvolutionBlock` or `RowSparseBlock`
    as it is, with all samples, and need not form the dense gradient.
    """

    def __call__(self, grad: Tensor, out: Tensor) -> None: ...


BlockMaps: TypeAlias = Callable[[ParameterSlot], BlockMap]
"""The blocks of one P, made when they are first asked for."""


class Projector(ABC):  # noqa: B024  `block` or `bind` is overridden, either will do
    """A seeded random linear map P ∈ R^{k×p}, given parameter by parameter.

    A projector of your own needs one method, `block`. Public attributes are its settings: they are written to the run
    directory, and a run is never continued with other ones.

    Laws (checked by `trak_lightning.testing.ProjectorConformance`):

    * linear in the gradient;
    * a function of (settings, seed, checkpoint, parameter name and shape) only: not of batch size, block order, device,
      thread count or global random state;
    * unbiased: E‖Pg‖² = ‖g‖² over seeds (so that inner products are kept on average);
    * sums are accumulated in the dtype of `out`, float32 or wider, whatever the dtype of the gradient;
    * no more memory is held than `memory_bytes` says.

    Args:
        dim: k, the number of projected dimensions.
        per: what has k dimensions: the ``model``, or each ``layer`` of its own (all parameters of one module; the
            features of all layers are joined, k times as many as there are layers).
    """

    fit_samples: int = 0
    """How many training samples `fit` is to see; 0 for a projector that needs none."""

    def __init__(self, dim: int = 2048, per: Literal["model", "layer"] = "model") -> None:
        if dim < 1:
            raise SettingsError(f"dim must be a positive number of dimensions, got {dim}")
        if per not in ("model", "layer"):
            raise SettingsError(f"per must be 'model' or 'layer', got {per!r}")
        self.dim = dim
        self.per = per

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        """The part of P that belongs to one parameter.

        `seed` is already derived from the run's seed, the checkpoint and the parameter's name: use it, and nothing
        else, as the source of randomness. The result is kept as long as the checkpoint is featurised, so what it
        holds (sign tables) is held for all parameters at once; state the memory in the class's docstring.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must override block (or bind)")

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        """The features that each parameter adds to. Two parameters have the same ones, or none in common."""
        if self.per == "model":
            return dict.fromkeys(layout.by_name, slice(0, self.dim))
        position = {layer: index for index, layer in enumerate(layers(layout))}
        starts = {slot.name: position[slot.layer] * self.dim for slot in layout}
        return {name: slice(start, start + self.dim) for name, start in starts.items()}

    def output_dim(self, layout: ParameterLayout) -> int:
        """k for this layout, all features of the model together."""
        return max(columns.stop for columns in self.columns(layout).values())

    def memory_bytes(self, layout: ParameterLayout) -> int | None:
        """What the blocks of all parameters hold between batches, at most; None if that is not known."""
        return None

    def bind(
        self,
        layout: ParameterLayout,
        *,
        seed: int,
        checkpoint: str,
        device: torch.device,
        fitted: Mapping[str, Tensor],
    ) -> BlockMaps:
        """The blocks of P for one model and checkpoint.

        Override this instead of `block` where the block of one parameter depends on which others there are, or on what
        `fit` has returned.
        """
        return lambda slot: self.block(slot, seed=derive_seed(seed, checkpoint, slot.name), device=device)

    def fit(self, layout: ParameterLayout, gradients: Callable[[Sink], None], *, seed: int) -> dict[str, Tensor]:
        """What is to be known of the gradients before any can be projected, for projectors with `fit_samples`.

        Called once a checkpoint; the result is kept in the run directory, for every process and for a resumed run.

        Args:
            layout: of the parameters.
            gradients: pushes the gradient blocks of `fit_samples` training samples to a sink, as often as it is called.
            seed: derived from the run's seed and the checkpoint.
        """
        return {}

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
        self,
        projector: Projector,
        layout: ParameterLayout,
        *,
        seed: int,
        checkpoint: str,
        device: torch.device | str,
        fitted: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.layout = layout
        self.dim = projector.output_dim(layout)
        self.device = torch.device(device)
        self._columns = projector.columns(layout)
        self._bound = projector.bind(layout, seed=seed, checkpoint=checkpoint, device=self.device, fitted=fitted or {})
        self._maps: dict[str, BlockMap] = {}

    def zeros(self, batch_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An empty accumulator (B, k); `dtype` is float64 for float64 models and float32 for all others."""
        return torch.zeros(batch_size, self.dim, dtype=dtype, device=self.device)

    def add(self, block: GradientBlock, out: Tensor) -> None:
        """Add the projection of `block` to `out` (B, k)."""
        with torch.autocast(out.device.type, enabled=False):
            self._add(block, out[:, self._columns[block.name]])

    def _add(self, block: GradientBlock, out: Tensor) -> None:
        block_map = self.map(block.name)
        from_factors = getattr(block_map, FACTORS.get(type(block), ""), None)
        if from_factors is not None:
            from_factors(block, out)
        elif getattr(block_map, "whole_batches", False):
            block_map(_flatten(block.dense()), out)
        else:
            for samples, part in block.chunks(self.layout.by_name[block.name].numel):
                block_map(_flatten(part.dense()), out[samples])

    def map(self, name: str) -> BlockMap:
        """The block of one parameter."""
        if name not in self._maps:
            self._maps[name] = self._bound(self.layout.by_name[name])
        return self._maps[name]


def layers(layout: ParameterLayout) -> dict[str, list[ParameterSlot]]:
    """The parameters of each module that has any, by the module's name, in order."""
    found: dict[str, list[ParameterSlot]] = {}
    for slot in layout:
        found.setdefault(slot.layer, []).append(slot)
    return found


FACTORS: dict[type[GradientBlock], str] = {
    OuterProductBlock: "outer",
    ConvolutionBlock: "convolution",
    RowSparseBlock: "row_sparse",
}
"""The method of a `BlockMap` that takes each kind of block whole."""


def _flatten(grad: Tensor) -> Tensor:
    return grad.reshape(len(grad), -1).contiguous()
