"""The interface of a projector, and the projection that joins its blocks into one linear map."""

import logging
from abc import ABC
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from trak_lightning.errors import require_integer, require_option
from trak_lightning.gradients import (
    ConvolutionBlock,
    GradientBlock,
    OuterProductBlock,
    ParameterLayout,
    ParameterSlot,
    RowSparseBlock,
    Sink,
)
from trak_lightning.registry import recorded
from trak_lightning.seeds import derive_seed

log = logging.getLogger(__name__)

LARGEST_COMPARED = 10_000
"""Most entries of a parameter whose block is made with two seeds, to see whether a projector uses them."""

_COMPARED: set[type] = set()
"""The projectors that were compared."""


class BlockMap(Protocol):
    """The columns of P that belong to one parameter, as a function: adds ``grad @ P_blockᵀ`` to `out` in place.

    ``grad`` is (B, numel), contiguous, and must not be changed. ``out`` is (B, k), a view of the features that this
    parameter adds to; accumulate in its dtype. Any function with this signature will do. It is called with some samples
    at a time, unless it has a true attribute ``whole_batches``, and never under autocast. An object may also have the
    methods ``outer(block, out)``, ``convolution(block, out)`` and ``row_sparse(block, out)``: they receive an
    `OuterProductBlock`, `ConvolutionBlock` or `RowSparseBlock` with all samples, and need not form the dense gradient.
    """

    def __call__(self, grad: Tensor, out: Tensor) -> None: ...


BlockMaps: TypeAlias = Callable[[ParameterSlot], BlockMap]
"""The blocks of one P. Each is made when it is first needed."""


@dataclass(frozen=True)
class ProjectionSpec:
    """What determines P for one model and checkpoint, apart from the projector's own settings, and where P is applied."""

    layout: ParameterLayout
    """The parameters, in order."""
    seed: int
    """The seed of the run."""
    checkpoint: str
    """The checkpoint's name: every checkpoint has its own P."""
    device: torch.device
    """Where gradients and features are."""
    fitted: Mapping[str, Tensor] = field(default_factory=dict)
    """What `Projector.fit` returned for this checkpoint; empty for projectors that are not fitted."""

    def seed_of(self, slot: ParameterSlot) -> int:
        """Return the seed of one parameter's block, from the run's seed, the checkpoint and the parameter's name."""
        return derive_seed(self.seed, self.checkpoint, slot.name)


class Projector(ABC):  # noqa: B024  `block` or `bind` is overridden, either will do
    """A seeded random linear map P ∈ R^{k×p}, given parameter by parameter.

    A projector of your own needs one method, `block`. Its public attributes are its settings: they are written to the run
    directory, and a run is never resumed with other settings.

    Laws (checked by `trak_lightning.testing.ProjectorConformance`):

    * linear in the gradient;
    * a function of (settings, seed, checkpoint, parameter name and shape) only: not of batch size, order of blocks,
      device, thread count or global random state;
    * unbiased: E‖Pg‖² = ‖g‖² over seeds (so that inner products are preserved on average);
    * sums are accumulated in the dtype of `out`, float32 or wider, whatever the dtype of the gradient;
    * it holds no more memory than `memory_bytes` says.

    Args:
        dim: k, the number of projected dimensions.
        per: what has k dimensions: the ``model``, or each ``layer`` (all parameters of one module). With ``layer``, the
            features of all layers are concatenated: k times the number of layers.
    """

    fit_samples: int = 0
    """Number of training samples that `fit` needs; 0 for a projector that is not fitted."""

    _reason: str | None = None

    def __init__(self, dim: int = 2048, per: Literal["model", "layer"] = "model") -> None:
        require_option("per", per, ("model", "layer"))
        self.dim = require_integer("dim", dim, 1, "a number of dimensions")
        self.per = per

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        """Return the part of P that belongs to one parameter.

        `seed` is already derived from the run's seed, the checkpoint and the parameter's name: use it as the only source
        of randomness. The blocks of all parameters are kept while a checkpoint is featurized, so what they hold (sign
        tables) is in memory at once; state it in the class's docstring.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must override block (or bind)")

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        """Return the features that each parameter adds to. Two parameters share all of their features or none."""
        if self.per == "model":
            return dict.fromkeys(layout.by_name, slice(0, self.dim))
        position = {layer: index for index, layer in enumerate(layers(layout))}
        starts = {slot.name: position[slot.layer] * self.dim for slot in layout}
        return {name: slice(start, start + self.dim) for name, start in starts.items()}

    def output_dim(self, layout: ParameterLayout) -> int:
        """Return k for this layout: the number of features of the whole model."""
        return max(columns.stop for columns in self.columns(layout).values())

    def memory_bytes(self, layout: ParameterLayout) -> int | None:
        """Return the most bytes that the blocks of all parameters hold between batches; None if unknown."""
        return None

    def bind(self, spec: ProjectionSpec) -> BlockMaps:
        """Return the blocks of P for one model and checkpoint.

        Override this instead of `block` where the block of one parameter depends on the other parameters, or on what
        `fit` returned.
        """
        self._warn_of_one_seed(spec)
        return lambda slot: self.block(slot, seed=spec.seed_of(slot), device=spec.device)

    def _warn_of_one_seed(self, spec: ProjectionSpec) -> None:
        slot, columns = min(spec.layout, key=lambda each: each.numel), self.columns(spec.layout)
        apart = len({part.start for part in columns.values()}) == len(columns)  # no two parameters share features
        if apart or type(self) in _COMPARED or slot.numel > LARGEST_COMPARED:
            return
        _COMPARED.add(type(self))
        grad = torch.linspace(-1, 1, slot.numel, device=spec.device)[None]
        one, other = (
            torch.zeros(1, columns[slot.name].stop - columns[slot.name].start, device=spec.device) for _ in range(2)
        )
        for out, seed in ((one, 1), (other, 2)):
            self.block(slot, seed=seed, device=spec.device)(grad, out)
        if torch.equal(one, other):
            log.warning(
                "projector  %s ignores its seed, so parameters of the same size are not projected independently, and "
                "inner products are biased. Draw from torch.Generator().manual_seed(seed) in `block`.",
                type(self).__name__,
            )

    def fit(self, layout: ParameterLayout, gradients: Callable[[Sink], None], *, seed: int) -> dict[str, Tensor]:
        """Learn from sample gradients before projecting; for projectors with `fit_samples`.

        Called once per checkpoint. The result is kept in the run directory, for every process and for resumed runs.

        Args:
            layout: the parameters.
            gradients: pushes the gradient blocks of `fit_samples` training samples to a sink, each time it is called.
            seed: derived from the run's seed and the checkpoint.
        """
        return {}

    def for_run(self, layout: ParameterLayout, num_samples: int, stored: Mapping[str, Any] | None) -> "Projector":
        """Return the projector of a run: this one, unless some of its settings are chosen from the data.

        Every process of a run and every later call must choose the same, so the choice may depend on these arguments only.

        Args:
            layout: the parameters.
            num_samples: n, the number of training samples.
            stored: the `state` of the projector that features of this run were made with; None if there are none.
        """
        return self

    @property
    def reason(self) -> str | None:
        """What `for_run` has chosen and why, in one line; None if it chose nothing."""
        return self._reason

    @property
    def state(self) -> dict[str, Any]:
        """Settings for the run directory: the class and its public attributes, which must be JSON values."""
        return recorded(self)


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
        self._bound = projector.bind(ProjectionSpec(layout, seed, checkpoint, self.device, fitted or {}))
        self._maps: dict[str, BlockMap] = {}

    def zeros(self, batch_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an empty accumulator (B, k); use float64 for float64 models and float32 for all others."""
        return torch.zeros(batch_size, self.dim, dtype=dtype, device=self.device)

    def add(self, block: GradientBlock, out: Tensor) -> None:
        """Add the projection of `block` to `out` (B, k), to the rows of the block's samples.

        Raises:
            UnsupportedModelError: the block does not hold one gradient of the parameter's size per sample.
        """
        block.require(self.layout.by_name[block.name], len(out))
        device = out.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            self._add(block, out[block.samples, self._columns[block.name]])

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
        """Return the block of one parameter."""
        if name not in self._maps:
            self._maps[name] = self._bound(self.layout.by_name[name])
        return self._maps[name]


def layers(layout: ParameterLayout) -> dict[str, list[ParameterSlot]]:
    """Return the parameters of each module that has any, by the module's name, in order."""
    found: dict[str, list[ParameterSlot]] = {}
    for slot in layout:
        found.setdefault(slot.layer, []).append(slot)
    return found


FACTORS: dict[type[GradientBlock], str] = {
    OuterProductBlock: "outer",
    ConvolutionBlock: "convolution",
    RowSparseBlock: "row_sparse",
}
"""The method of a `BlockMap` that receives each kind of factored block."""


def _flatten(grad: Tensor) -> Tensor:
    return grad.reshape(len(grad), -1).contiguous()
