"""Track which sizes and orders inside a model depend on the content of its samples, not only on their number.

Four tokens of two samples may be two of each, or one and three: the size does not show which. A dimension whose size can
depend on content must not be divided evenly among the samples. If its order can depend on content (after a sort by length),
its entries are not in the order of the samples. Both are tracked through every operation of a forward pass.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trak_lightning.extractors.hooks.decisions import Decisions

_CONSTANT = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full"}
_ORDERED = {"sort", "topk", "msort"}
_READ = {"tolist", "numpy", "__array__"}
_CHOOSES = _ORDERED | {
    *("index", "index_select", "gather", "take_along_dim", "index_put", "index_put_", "_index_put_impl_"),
    *("index_copy", "index_copy_", "scatter", "scatter_", "_pack_padded_sequence"),
}
"""Operations that may select or reorder entries by content, as do those of dynamic shape."""


@dataclass(frozen=True)
class _Operation:
    """What is known of an operation by its name alone. `reads`: its result is a number for Python."""

    name: str
    reads: bool
    dynamic: bool
    chooses: bool
    constant: bool


@cache
def _operation(func: Any) -> _Operation:
    name, dynamic = func.overloadpacket.__name__, torch.Tag.dynamic_output_shape in func.tags
    reads = torch.Tag.data_dependent_output in func.tags
    return _Operation(name, reads, dynamic, dynamic or name in _CHOOSES, name in _CONSTANT)


class ContentSizes(TorchDispatchMode):
    """Track the sizes of one forward pass.

    `packed` are the sizes of leaves of the batch that depend on content, such as the total number of nodes of all graphs. With
    `unknown`, any new size may depend on content, since the batch also holds plain numbers. `size` is B. Operations are counted, too,
    apart for the `parameters` that they use.
    """

    def __init__(
        self, packed: Iterable[int], size: int, *, unknown: bool = False, parameters: Iterable[Tensor] = ()
    ) -> None:
        super().__init__()
        self._parameters = frozenset(map(id, parameters))
        self.decisions = Decisions()
        self.operations: Counter[tuple[Any, ...]] = Counter()
        """How often each operation was made, with the parameters that it was given."""
        self._packed = frozenset(packed)
        self._size = size
        self._read = unknown
        """Whether Python has read numbers that depend on content, from which it may compute new sizes."""
        self.selects = False
        """Whether an operation whose shape depends on values, such as ``nonzero``, was given what depends on the batch."""
        self._data: set[int] = set()
        self._sizes: dict[int, frozenset[int]] = {}
        self._reading = _Reading(self)
        self._atomic = 0

    def begin(self, leaves: Iterable[Any]) -> None:
        """Note the leaves of the batch."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._mark(tensor, self._packed, data=True)
        self.decisions.begin(map(_key, tensors))

    def __enter__(self) -> "ContentSizes":
        super().__enter__()
        self._reading.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._reading.__exit__(*exception)
        super().__exit__(*exception)
        if "HigherOrderOperator" in str(exception[1]):
            torch._dynamo.reset()  # torch.cond compiles itself, and keeps failing once it has failed here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Called for every operation of a pass, and so written for speed.
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operation = _operation(func)
        given = _tensors((args, tuple(kwargs.values()))) if kwargs else _tensors(args)
        made_with = (func, *[id(tensor) for tensor in given if id(tensor) in self._parameters])
        self.operations[made_with] += 1
        if operation.reads:
            self._note_read(given, out)
            return out
        made = [out] if isinstance(out, Tensor) else _tensors(out)
        if made:
            self._note(operation, args, kwargs, given, made)
            if len(made) == 1 and (made[0].dtype == torch.bool or made[0].numel() == 1) and self._is_data(made[0]):
                self.decisions.note(operation.name, args, _keyed(given), _keyed(made))
        return out

    def dependent(self, tensor: Tensor) -> frozenset[int]:
        """The dimensions in which the number or order of entries may depend on the content of samples."""
        sizes = self._sizes.get(_key(tensor)) if self._sizes else None
        return frozenset(dim for dim, size in enumerate(tensor.shape) if size in sizes) if sizes else frozenset()

    def enter_atomic(self) -> None:
        """Begin the call of a module whose rule is known to keep samples separate: do not track the operations inside it."""
        self._atomic += 1

    def exit_atomic(self, given: Any, made: Any) -> None:
        """End the call of the module; `given` and `made` are its flattened arguments and output."""
        self._atomic -= 1
        inputs = _tensors(given)
        sizes = frozenset().union(*(self._sizes.get(_key(tensor), frozenset()) for tensor in inputs))
        for tensor in _tensors(made):
            self._mark(tensor, frozenset(size for size in tensor.shape if size in sizes), data=True)

    def trust(self, packed: PackedSequence) -> None:
        """The orders of a packed sequence are undone when it is padded again."""
        for order in (packed.sorted_indices, packed.unsorted_indices):
            if order is not None:
                self._data.discard(_key(order))

    def _note_read(self, given: list[Tensor], value: Any = None) -> None:
        data = [] if self._atomic else [tensor for tensor in given if self._is_data(tensor)]
        if data:
            self._read |= not all(map(_is_one_bit, data))
            self.decisions.read(_keyed(data), value)

    def _note(self, operation: _Operation, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]) -> None:
        own = [_key(tensor) for tensor in given]
        if self._atomic:  # forget what is known of reused memory
            for tensor in made:
                if _key(tensor) not in own:
                    self._mark(tensor, frozenset(), data=False)
            return
        if operation.name == "lift_fresh" and self._read:  # a tensor that Python has made, perhaps of what it has read
            for tensor in made:
                self._mark(tensor, frozenset(size for size in tensor.shape if size > 1), data=True)
            return
        data = not operation.constant and not self._data.isdisjoint(own)
        self.selects |= data and operation.dynamic
        if not self._sizes and not self._read and not (data and operation.chooses):  # no size depends on content
            for tensor in made:
                key = _key(tensor)
                if data:
                    self._data.add(key)
                elif key not in own:
                    self._data.discard(key)
            return
        before = frozenset().union(*(self._sizes.get(key, frozenset()) for key in own))
        known = {size for tensor in given for size in tensor.shape} or {self._size}
        extra = self._chosen(operation, args, kwargs, made) if data and operation.chooses else frozenset()
        for tensor in made:
            sizes = frozenset(
                size
                for size in tensor.shape
                if size > 1 and (size in before or size in extra or (size not in known and (before or self._read)))
            )
            key = _key(tensor)
            aliased = key in own
            self._mark(
                tensor,
                sizes | (self._sizes.get(key, frozenset()) if aliased else frozenset()),
                data=data or (aliased and key in self._data),
            )

    def _chosen(self, operation: _Operation, args: Any, kwargs: Any, made: list[Tensor]) -> frozenset[int]:
        """Sizes of the output's dimensions whose entries were selected or reordered by content."""
        name, out = operation.name, made[0]
        if name == "index":
            return self._indexed(args[0], args[1], out)
        if name in ("index_select", "gather", "take_along_dim") and self._is_data(args[0]) and self._is_data(args[2]):
            return frozenset(args[2].shape) if name == "index_select" else frozenset({args[2].shape[args[1]]})
        if name in ("index_put", "index_put_", "_index_put_impl_"):
            accumulate = len(args) > 3 and args[3]
            chosen = [index for index in args[1] if index is not None]
            moved = all(self._is_data(index) and index.dtype not in (torch.bool, torch.uint8) for index in chosen)
            return frozenset(out.shape[: len(args[1])]) if moved and not accumulate else frozenset()
        if name in ("index_copy", "index_copy_", "scatter", "scatter_") and self._is_data(args[2]) and out.ndim:
            return frozenset({out.shape[args[1]]})
        if name in _ORDERED and out.ndim:
            rest = args[2:] if name == "topk" else args[1:]
            dim = kwargs.get("dim", next((value for value in rest if type(value) is int), -1 if name != "msort" else 0))
            return frozenset({out.shape[dim]})
        if operation.dynamic or name == "_pack_padded_sequence":
            return frozenset(size for tensor in made for size in tensor.shape[:1])
        return frozenset()

    def _indexed(self, source: Tensor, indices: Any, out: Tensor) -> frozenset[int]:
        chosen = [index for index in indices if index is not None]
        masks = [index for index in chosen if index.dtype in (torch.bool, torch.uint8)]
        place = next(place for place, index in enumerate(indices) if index is not None)
        if masks:
            return frozenset(out.shape[place : place + 1]) if any(map(self._is_data, masks)) else frozenset()
        if not self._is_data(source):  # what is looked up in a table is in the order of the indices
            return frozenset()
        shape = torch.broadcast_shapes(*(index.shape for index in chosen))
        anchored = any(not self._is_data(index) and index.shape == shape for index in chosen)  # logits[arange(B), last]
        return frozenset() if anchored or not any(map(self._is_data, chosen)) else frozenset(shape)

    def _is_data(self, value: Any) -> bool:
        return isinstance(value, Tensor) and _key(value) in self._data

    def _mark(self, tensor: Tensor, sizes: frozenset[int], *, data: bool) -> None:
        key = _key(tensor)
        (self._data.add if data else self._data.discard)(key)
        if sizes:
            self._sizes[key] = sizes
        else:
            self._sizes.pop(key, None)


class _Reading(TorchFunctionMode):
    """Note values that Python reads without an operation, and treat padding to (T, B, …) or (B, T, …) as a single operation."""

    def __init__(self, sizes: ContentSizes) -> None:
        super().__init__()
        self._of = sizes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_pad_packed_sequence":
            self._of.enter_atomic()
            padded, lengths = func(*args, **(kwargs or {}))
            self._of.exit_atomic((), (padded, lengths))
            return padded, lengths
        if name in _READ:
            self._of._note_read(_tensors(args))
        return func(*args, **(kwargs or {}))


def _is_one_bit(tensor: Tensor) -> bool:
    """Whether it is the answer to a question about all samples, such as ``mask.all()``, and not one of many that Python reads."""
    return tensor.dtype == torch.bool and tensor.numel() == 1 and tensor._base is None


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for node in tree if type(tree) in (tuple, list) else (tree,):
        if isinstance(node, Tensor):
            found.append(node)
        elif type(node) in (tuple, list):
            found += _tensors(node)
        elif node is not None and type(node) not in _PLAIN:
            found += [leaf for leaf in tree_leaves(node) if isinstance(leaf, Tensor)]
    return found


_PLAIN = {bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format}


def _keyed(tensors: list[Tensor]) -> list[tuple[int, Tensor]]:
    return [(_key(tensor), tensor) for tensor in tensors]


def _key(tensor: Tensor) -> int:
    """A key for the storage that a tensor shares with its views."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors have none
        return -id(tensor)
