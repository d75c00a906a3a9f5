"""Block files that are known by their bytes, and need not be made or made out by HDF5 one by one.

The files of one feature set are the same, byte for byte, but for their numbers and the text of one attribute. Where HDF5 has
dealt with one of them, the rest are compared with it, which takes a tenth of the time; a file that differs anywhere is left
to HDF5.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

Array = npt.NDArray[Any]
Types: TypeAlias = dict[str, tuple[tuple[int, ...], str]]
"""Name → shape and type of the arrays in a file."""
LARGEST_FRAME = 2**16
"""Bytes: a file in which more lies around its arrays is not remembered."""
PIECE = 2**21
"""Bytes that are read at once, to be still in the processor's cache when their checksum is taken."""


@dataclass(frozen=True)
class Form:
    """Where the arrays of a file begin, and everything around them."""

    types: Types
    offsets: dict[str, int]
    size: int
    gaps: tuple[range, ...]
    """The bytes that belong to no array."""
    frame: bytes
    """What is there, one gap after the other."""
    text: slice
    """The text of the attribute in `frame`."""

    @classmethod
    def of(cls, descriptor: int, types: Types, offsets: dict[str, int], text: bytes) -> "Form | None":
        """That of an open file which HDF5 says has its arrays at `offsets`; None if another one could not be told from it."""
        size = os.fstat(descriptor).st_size
        gaps, end = [], 0
        for name in sorted(offsets, key=offsets.__getitem__):
            if offsets[name] < end:
                return None  # arrays that overlap
            gaps.append(range(end, offsets[name]))
            end = offsets[name] + _nbytes(*types[name])
        gaps = [gap for gap in (*gaps, range(end, size)) if gap]
        if sum(map(len, gaps)) > LARGEST_FRAME:
            return None
        frame = _read(descriptor, gaps)
        if frame.count(text) != 1:
            return None
        start = frame.index(text)
        return cls(types, offsets, size, tuple(gaps), frame, slice(start, start + len(text)))

    def text_of(self, descriptor: int) -> bytes | None:
        """The text of the attribute of an open file, if the file is of this form."""
        if os.fstat(descriptor).st_size != self.size:
            return None
        found = _read(descriptor, self.gaps)
        start, stop = self.text.start, self.text.stop
        same = found[:start] == self.frame[:start] and found[stop:] == self.frame[stop:]
        return found[start:stop] if same else None

    def takes(self, text: bytes) -> bool:
        """Whether `write` can write this text."""
        return len(text) == self.text.stop - self.text.start

    def write(self, descriptor: int, arrays: Mapping[str, Array], text: bytes) -> None:
        """Fill an empty open file with a text of the same length and other arrays of the same types."""
        frame = memoryview(self.frame[: self.text.start] + text + self.frame[self.text.stop :])
        for gap in self.gaps:
            _write(descriptor, frame[: len(gap)], gap.start)
            frame = frame[len(gap) :]
        for name, offset in self.offsets.items():
            _write(descriptor, memoryview(arrays[name].data).cast("B"), offset)


class Forms:
    """The forms that the files of a set have been found to have. Threads may share it."""

    MOST = 32
    """They differ in the number of rows, and in that of the digits in the text."""

    def __init__(self) -> None:
        self._known: list[Form] = []

    def of(self, types: Types) -> list[Form]:
        """The forms of files with arrays of these types."""
        return [form for form in self._known if form.types == types]

    def learn(self, form: Form | None) -> None:
        """Remember a form, if it is one."""
        if form is not None and len(self._known) < self.MOST:
            self._known.append(form)


def read_into(descriptor: int, values: Array, offset: int, hasher: "xxhash.xxh3_64 | None" = None) -> None:
    """Fill a contiguous array from an open file, and let `hasher` see the bytes.

    Raises:
        EOFError: the file ends before.
    """
    view = memoryview(values.data).cast("B")
    while view:
        count = os.preadv(descriptor, [view[:PIECE]], offset)
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes early")
        if hasher is not None:
            hasher.update(view[:count])
        view, offset = view[count:], offset + count


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _read(descriptor: int, gaps: "list[range] | tuple[range, ...]") -> bytes:
    """What is in the gaps; less, if the file ends before."""
    return b"".join(os.pread(descriptor, len(gap), gap.start) for gap in gaps)


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
