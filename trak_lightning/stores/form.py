"""Block files that are known by their bytes, and need not be made or made out by HDF5 one by one.

The files of one feature set are the same, byte for byte, but for their numbers and the text of one attribute. Where HDF5 has
dealt with one of them, the rest are compared with it, which takes a tenth of the time; a file that differs anywhere is left
to HDF5.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Types: TypeAlias = dict[str, tuple[tuple[int, ...], str]]
"""Name → shape and type of the arrays in a file."""
LARGEST_FRAME = 2**16
"""Bytes: a file in which more lies around its arrays is not remembered."""


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
        return self._text_in(_read(descriptor, self.gaps))

    def read(self, descriptor: int, arrays: Mapping[str, Array]) -> bytes | None:
        """As `text_of`, and fill `arrays`, which have the types of the form; with None they hold nothing of use.

        Raises:
            EOFError: the file ends before.
        """
        if os.fstat(descriptor).st_size != self.size:
            return None
        frame = bytearray(len(self.frame))
        views = [memoryview(frame)[part] if isinstance(part, slice) else _bytes(arrays[part]) for part in self._parts]
        # A small read makes the operating system fetch what follows while it is copied. Then everything at once, since every
        # system call gives way to other threads, and many small ones would cost more than what they copy.
        first = len(views[0])
        _fill(descriptor, views[:1], 0)
        _fill(descriptor, views[1:], first)
        return self._text_in(frame)

    def write(self, descriptor: int, arrays: Mapping[str, Array], text: bytes) -> None:
        """Fill an empty open file with a text of the same length and other arrays of the same types."""
        frame = memoryview(self.frame[: self.text.start] + text + self.frame[self.text.stop :])
        for gap in self.gaps:
            _write(descriptor, frame[: len(gap)], gap.start)
            frame = frame[len(gap) :]
        for name, offset in self.offsets.items():
            _write(descriptor, _bytes(arrays[name]), offset)

    @cached_property
    def _parts(self) -> list[str | slice]:
        """What the file consists of, from its beginning to its end: the names of arrays, and slices of `frame`."""
        parts: dict[int, str | slice] = {offset: name for name, offset in self.offsets.items()}
        start = 0
        for gap in self.gaps:
            parts[gap.start] = slice(start, start := start + len(gap))
        return [parts[offset] for offset in sorted(parts)]

    def _text_in(self, frame: bytes | bytearray) -> bytes | None:
        start, stop = self.text.start, self.text.stop
        same = frame[:start] == self.frame[:start] and frame[stop:] == self.frame[stop:]
        return bytes(frame[start:stop]) if same else None


class Forms:
    """The forms that the files of a set have been found to have. Threads may share it."""

    MOST = 32
    """They differ in the number of rows, and in that of the digits in the text."""

    def __init__(self) -> None:
        self._known: list[Form] = []

    def of(self, types: Types, text: int) -> list[Form]:
        """The forms of files with arrays of these types, and a text of so many bytes."""
        return [form for form in self._known if form.text.stop - form.text.start == text and form.types == types]

    def learn(self, form: Form | None) -> None:
        """Remember a form, if it is one."""
        if form is not None and len(self._known) < self.MOST:
            self._known.append(form)


def read_into(descriptor: int, values: Array, offset: int) -> None:
    """Fill a contiguous array from an open file.

    Raises:
        EOFError: the file ends before.
    """
    _fill(descriptor, [_bytes(values)], offset)


def _fill(descriptor: int, views: list[memoryview], offset: int) -> None:
    """Read one after the other."""
    while views:
        count = os.preadv(descriptor, views, offset)
        if not count:
            raise EOFError(f"the file ends {sum(map(len, views))} bytes early")
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


def _bytes(values: Array) -> memoryview:
    return memoryview(values.data).cast("B")


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _read(descriptor: int, gaps: "list[range] | tuple[range, ...]") -> bytes:
    """What is in the gaps; less, if the file ends before."""
    return b"".join(os.pread(descriptor, len(gap), gap.start) for gap in gaps)


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
