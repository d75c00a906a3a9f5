"""Find the dimensions in which an argument or output of a module holds the samples of a batch.

One shape is not enough: seven samples of seven tokens are (7, 7, d) with the batch first and with the batch second. So
compare the shapes for two and three samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Size, Tensor


class Misplaced(Exception):
    """A tensor does not hold the samples where it was expected to."""


@dataclass(frozen=True)
class Placement:
    """Dimension ``dims[0]`` holds, for each of the B samples, `repeats` entries, or any number if None.

    With ``sample_major``, entries of one sample lie together, as after flattening (B, T, …); otherwise they are
    interleaved, as after flattening (T, B, …). With several `dims`, every sample has its own entry in each, as on the
    diagonal of a table of all images against all texts.
    """

    dims: tuple[int, ...]
    flattened: bool = False
    sample_major: bool = True

    @property
    def dim(self) -> int:
        return self.dims[0]

    def require(self, tensor: Tensor, size: int, what: str) -> None:
        """Refuse a tensor that does not hold the samples here. `what` names it in the error.

        Raises:
            Misplaced: the dimension has another size.
        """
        for dim in self.dims:
            if tensor.ndim <= dim or tensor.shape[dim] % size or (not self.flattened and tensor.shape[dim] != size):
                raise Misplaced(
                    f"{what} has a tensor of shape {tuple(tensor.shape)}, whose dimension {dim} should hold the {size} samples of "
                    "the batch"
                )

    def split(self, tensor: Tensor, size: int, what: str) -> Tensor:
        """Reshape to (B, *shape of that tensor in a batch of one).

        Raises:
            Misplaced: the dimension has another size. `what` names the tensor.
        """
        self.require(tensor, size, what)
        if len(self.dims) > 1:
            return self._diagonal(tensor)
        if not self.flattened:
            return tensor.movedim(self.dim, 0).unsqueeze(self.dim + 1)
        sizes = (size, -1) if self.sample_major else (-1, size)
        return tensor.unflatten(self.dim, sizes).movedim(self.dim + (0 if self.sample_major else 1), 0)

    def _diagonal(self, tensor: Tensor) -> Tensor:
        first, second = self.dims
        own = tensor.diagonal(dim1=first, dim2=second).movedim(-1, 0)
        return own.unsqueeze(first + 1).unsqueeze(second + 1)

    def rows(self, tensor: Tensor, size: int, what: str) -> Tensor:
        """Reshape to (B · entries, …): samples first, the entries of one sample next to each other."""
        if self.dims == (0,) and self.sample_major and (tensor.shape[0] == size or self.flattened):
            return tensor
        parts = self.split(tensor, size, what)
        return parts.movedim(self.dim + 1, 1).flatten(0, 1)


Where: TypeAlias = Placement | Literal["one", "shared", "unknown"]
"""A placement; or a value that all samples share, whose first dimension has length one (``one``) or any other (``shared``);
or a shape that changes with B in a way that shows no placement (``unknown``)."""


def infer(two: Size, three: Size) -> Where:
    """Infer the placement from the shapes of one tensor in batches of two and of three samples."""
    if two == three:
        return "one" if len(two) > 1 and two[0] == 1 else "shared"
    if len(two) != len(three):
        return "unknown"
    changed = [dim for dim in range(len(two)) if two[dim] != three[dim]]
    if any(two[dim] * 3 != three[dim] * 2 or two[dim] == 0 for dim in changed):
        return "unknown"
    flattened = any(two[dim] != 2 for dim in changed)
    if len(changed) > (1 if flattened else 2):
        return "unknown"
    return Placement(tuple(changed), flattened)


def common(places: Iterable[Where]) -> Where:
    """The placement that several calls have in common, or unknown."""
    found = list(places)
    merged = found[0]
    for where in found[1:]:
        merged = _both(merged, where)
    return merged


def _both(one: Where, other: Where) -> Where:
    if one == other:
        return one
    alike = isinstance(one, Placement) and isinstance(other, Placement) and one.dims == other.dims
    if not alike or one.flattened == other.flattened:  # type: ignore[union-attr]
        return "unknown"
    # With a single entry per sample, a flattened dimension looks like one that is not.
    return one if one.flattened else other  # type: ignore[union-attr]


def locate(where: Where, tensor: Tensor, size: int) -> Placement | None:
    """The placement of the samples in this tensor; None if they share it. If planning found none, the first dimension is taken
    to hold the samples if its length is B."""
    if isinstance(where, Placement):
        return where
    if where == "shared" or tensor.ndim == 0 or tensor.shape[0] != size:
        return None
    if where == "one" and (size == 1 or tensor.ndim < 2):
        return Placement((0,)) if tensor.ndim > 1 else None
    return Placement((0,))
