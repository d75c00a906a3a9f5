"""Memory that is used again and again while block after block is read."""

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SMALLEST = 2**20
"""Bytes of the arrays for which this pays: the operating system clears the pages of each new one."""
ALIGNMENT = 2**21
"""Bytes of a huge page of memory, which NumPy asks for where an array is large."""
KEPT = 8
"""Pieces of memory that wait to be used again; who held more blocks than that at once gets the rest back."""


class Buffers:
    """Makes arrays in memory that earlier ones no longer use. Threads may share it; its memory goes when it does."""

    def __init__(self) -> None:
        self._free: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """As ``numpy.empty``. The memory is used again when neither the array nor any view of it is left."""
        count = math.prod(shape)
        nbytes = count * np.dtype(dtype).itemsize
        if nbytes < SMALLEST:
            return np.empty(shape, dtype)
        memory = self._taken(nbytes)
        # Views of an array hold on to the first one that was made of a buffer, and no further.
        owner: Array = np.frombuffer(memory.data, dtype, count)
        weakref.finalize(owner, self._give_back, memory).atexit = False
        return owner.reshape(shape)

    def _give_back(self, memory: Array) -> None:
        if len(self._free) < KEPT:
            self._free.append(memory)

    def _taken(self, nbytes: int) -> Array:
        try:
            memory = self._free.pop()  # the one that is likeliest to be in the processor's cache
        except IndexError:
            return _aligned(nbytes)
        return memory if memory.nbytes >= nbytes else _aligned(nbytes)


def _aligned(nbytes: int) -> Array:
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]
