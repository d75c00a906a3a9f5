"""The inner loop of `sparse_jl`: sums of runs of signed entries, in compiled code where it is available, else in torch.

Both give the same bits: every sum adds its terms in the order of the entries, and a product with a sign is exact.
"""

import ctypes
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

_TILE = {"cpu": 2**20, "cuda": 2**26}
_SIZE, _POINTER, _INT = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_int
_ARGUMENTS = {
    "project": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE,
                _INT],
    "accumulate": [_POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE, _INT, _POINTER, _SIZE, _SIZE, _INT],
    "fold": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _INT],
}  # fmt: skip


def entries_at_a_time(out: Tensor) -> int:
    """Return how many gradient entries, of all samples together, to process at a time: what fits a CPU's caches or fills a GPU."""
    return _TILE.get(out.device.type, 2**26)


def compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """Return the compiled code if it is available and handles these tensors: float32 on the CPU, with contiguous rows."""
    fit = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.stride(-1) == 1 for t in tensors)
    return _library() if fit else None


def project(grad: Tensor, signs: Tensor, offsets: Tensor, length: int, width: int, out: Tensor) -> None:
    """Add gradients (B, p) to features (B, k): sum the runs that lie a multiple of `width` apart, then roll each group of
    `length` sums by its offset."""
    if library := compiled(grad, out):
        threads = torch.get_num_threads()
        # Threads share out pairs of samples; for the samples that are left over, they share out the sums.
        rest = len(grad) % (2 * threads) if threads > 1 and grad.shape[1] > 4 * width else 0
        samples = len(grad) - rest
        _require_fit(library.checked_signed_sums_project(
            grad.data_ptr(), grad.stride(0), samples, grad.shape[1], signs.data_ptr(), len(signs), offsets.data_ptr(),
            len(offsets), length, width, out.data_ptr(), out.stride(0), len(out) - rest, out.shape[1], threads,
        ))  # fmt: skip
        if rest:
            sums = out.new_empty(rest, width)
            _accumulate(library, grad[samples:], 0, signs, sums, begin=True)
            fold(sums, offsets, length, out[samples:])
    elif grad.shape[1] == width:
        fold(grad.to(out.dtype) * signs.to(out.dtype), offsets, length, out)
    else:
        step = max(1, entries_at_a_time(out) // width)
        sums = out.new_zeros(len(out), width)
        for start in range(0, len(grad), step):
            accumulate(grad[start : start + step], 0, signs, sums[start : start + step])
        fold(sums, offsets, length, out)


def accumulate(grad: Tensor, start: int, signs: Tensor, sums: Tensor) -> None:
    """Add gradients (B, c), entries ``start … start + c`` of p, to the sums (B, width) of runs that lie a multiple of the
    width apart."""
    width = sums.shape[1]
    if library := compiled(grad, sums):
        _accumulate(library, grad, start, signs, sums, begin=False)
        return
    done = 0
    while done < grad.shape[1]:
        place = (start + done) % width
        count = min(width - place, grad.shape[1] - done)
        factors = signs[start + done : start + done + count].to(sums.dtype)
        # Products are not stored: fresh memory costs more than the arithmetic.
        sums[:, place : place + count].addcmul_(grad[:, done : done + count].to(sums.dtype), factors)
        done += count


def fold(sums: Tensor, offsets: Tensor, length: int, out: Tensor) -> None:
    """Roll the sums of every group of `length` entries by its offset, and add them to the features."""
    dim = out.shape[1]
    if library := compiled(sums, out):
        _require_fit(library.checked_signed_sums_fold(
            sums.data_ptr(), sums.stride(0), len(sums), sums.shape[1], offsets.data_ptr(), len(offsets), length,
            out.data_ptr(), out.stride(0), len(out), dim, torch.get_num_threads(),
        ))  # fmt: skip
        return
    for group, offset in enumerate(offsets.tolist()):
        run = sums[:, group * length : (group + 1) * length]
        before = min(run.shape[1], dim - offset)
        out[:, offset : offset + before] += run[:, :before]
        if before < run.shape[1]:
            out[:, : run.shape[1] - before] += run[:, before:]


def _accumulate(library: ctypes.CDLL, grad: Tensor, start: int, signs: Tensor, sums: Tensor, *, begin: bool) -> None:
    _require_fit(library.checked_signed_sums_accumulate(
        grad.data_ptr(), grad.stride(0), *grad.shape, start, signs.data_ptr(), len(signs), sums.shape[1], begin,
        sums.data_ptr(), sums.stride(0), len(sums), torch.get_num_threads(),
    ))  # fmt: skip


def _require_fit(refused: int) -> None:
    """Raise if the compiled code refused to work outside of its arrays."""
    if refused:
        raise ValueError(
            "the sizes of gradients, signs, offsets and features do not fit together: as many gradients as rows of features are "
            "needed, a sign per entry, and an offset per group of runs"
        )


@cache
def _library() -> ctypes.CDLL | None:
    """Load what the installation compiled from `_signed_sums.c`; None if there was no compiler.

    It uses the same OpenMP threads as torch, because torch has loaded their library first.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_signed_sums{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            try:
                for name, arguments in _ARGUMENTS.items():
                    function = getattr(library, f"checked_signed_sums_{name}")
                    function.argtypes, function.restype = arguments, ctypes.c_int
            except AttributeError as error:
                warnings.warn(
                    f"{path} was compiled from the sources of another version ({error}), so the slower torch code is used instead. "
                    "Install trak_lightning again to compile it.",
                    stacklevel=2,
                )
                return None
            return library
    return None
