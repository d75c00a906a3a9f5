"""Verify stored rows before they are reused: the samples, by their content, and a batch of rows, by computing it again.

Needs no torch. A name or a class path cannot tell that a label, a loss function, a task, an activation or a helper module was changed. The
content hashes that are stored with the rows tell the first; a batch that is computed again tells the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import IncompleteRunError, SettingsError, StaleRowsError
from trak_lightning.run.fingerprint import UNKNOWN
from trak_lightning.seeds import derive_seed
from trak_lightning.stores.base import FeatureRows, FeatureSet

if TYPE_CHECKING:
    from trak_lightning.data.dataset import AttributionData

VerifyData: TypeAlias = Literal["full", "sampled", "off"]
"""Which samples are read again: all; as many as can be read in `SECONDS`, evenly spread; none."""

SECONDS = 1.0
"""How long ``sampled`` reads."""

TOLERANCE = 1e-2
"""By how much a row that is computed again may differ from the stored one, relative to its length: devices round differently."""

LOW_PRECISION_TOLERANCE = 0.1
"""The same where rows are computed or stored in 16 bits or fewer."""


def require_verify_data(value: str) -> None:
    """Raises: SettingsError: `value` is not one of `VerifyData`."""
    if value not in get_args(VerifyData):
        raise SettingsError(f"verify_data must be one of {', '.join(get_args(VerifyData))}, got {value!r}")


@dataclass(frozen=True)
class ContentSample:
    """The content hashes of some samples of a split as they are now: `positions` (s,), `hashes` (s,)."""

    positions: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def read(cls, data: "AttributionData", verify: VerifyData) -> "ContentSample":
        """Read the samples that `verify` asks for."""
        started, positions, hashes = perf_counter(), [], []
        for position in _evenly(0 if verify == "off" else len(data)):
            positions.append(position)
            hashes.append(data.content(position))
            if verify == "sampled" and len(positions) > 2 and perf_counter() - started > SECONDS:
                break
        return cls(np.array(positions, np.int64), np.array(hashes, np.uint64))

    def changed(self, feature_set: FeatureSet) -> npt.NDArray[np.int64]:
        """The positions, sorted, of samples whose content is not the one that is stored with their rows."""
        spec = feature_set.spec
        then = np.full(spec.num_samples, UNKNOWN, np.uint64)
        for samples, hashes in _stored_content(feature_set) if len(self.positions) else ():
            then[samples.start : samples.stop] = hashes
        now = np.full(spec.num_samples, UNKNOWN, np.uint64)
        inside = self.positions < spec.num_samples
        now[self.positions[inside]] = self.hashes[inside]
        return np.flatnonzero((now != UNKNOWN) & (then != UNKNOWN) & (now != then))


def knows_content(feature_set: FeatureSet) -> bool:
    """Whether the content of every sample is stored with its row: so it is not in rows of earlier versions, nor of samples that
    cannot be read."""
    return all((hashes != UNKNOWN).all() for _, hashes in _stored_content(feature_set))


def stored_batch(feature_set: FeatureSet) -> range | None:
    """The positions of one stored batch, drawn as a function of the feature set; None if no batch is stored."""
    parts = _stored_samples(feature_set)
    if not parts:
        return None
    spec = feature_set.spec
    drawn = derive_seed("stored batch", spec.split, spec.checkpoint)
    samples = parts[drawn % len(parts)]
    starts = samples[:: spec.batch_size]
    start = starts[drawn // len(parts) % len(starts)]
    return range(start, min(start + spec.batch_size, samples.stop))


def stale_rows(feature_set: FeatureSet, found: FeatureRows, precision: str) -> StaleRowsError | None:
    """Compare a stored batch with the same batch computed again: an error, which names the worst sample, if a row differs by
    more than rounding."""
    spec, start = feature_set.spec, int(found.index[0])
    stored = _stored_rows(feature_set, range(start, start + len(found)))
    exact = precision in ("32-true", "64-true") and feature_set.dtype in ("float32", "float64")
    tolerance = TOLERANCE if exact else LOW_PRECISION_TOLERANCE
    norms = np.linalg.norm(stored.features.astype(np.float64), axis=1)
    # A gradient that is zero but for rounding is not compared with itself.
    scale = np.maximum(norms, 1e-6 * max(float(norms.max()), np.finfo(np.float32).tiny))
    errors = {
        "features": np.linalg.norm(found.features.astype(np.float64) - stored.features, axis=1) / scale,
        "output": _relative(found.output, stored.output),
        "loss weight": _relative(found.loss_weight, stored.loss_weight),
        "curvature": _relative(found.curvature, stored.curvature),
    }
    for name, error in errors.items():
        if not (error <= tolerance).all():
            worst = int(np.argmax(error))
            return StaleRowsError(
                f"the stored rows of {spec.split!r} under checkpoint {spec.checkpoint} are not what the model, the task and the "
                f"data give now: of samples {start}–{start + len(found) - 1}, computed again, the {name} of "
                f"{int((~(error <= tolerance)).sum())} of {len(found)} differ, most by {error[worst]:.1%} (sample {start + worst}). "
                "The code of the model, the task, the loss function or the collate function was changed, or the labels that it "
                "makes. Use another run directory (or for targets another name), go back to what was used before, or "
                f"featurize with repair=True (--repair true), which computes all rows of {spec.split!r} again."
            )
    return None


def require_unchanged(split: str, changed: Sequence[int] | npt.NDArray[np.int64], read_all: bool) -> None:
    """Refuse samples whose content was changed; `read_all` says whether there may be more of them.

    Raises:
        StaleRowsError: there are some. Names the first ones.
    """
    if not len(changed):
        return
    shown = ", ".join(map(str, changed[:10])) + (" …" if len(changed) > 10 else "")
    read = "" if read_all else " (not all were read again: verify_data=full does)"
    what = f"1 sample of {split!r} is" if len(changed) == 1 else f"{len(changed)} samples of {split!r} are"
    raise StaleRowsError(
        f"{what} not what the stored rows were computed from: {shown}{read}. Labels or "
        "inputs were changed. Use another run directory (or for targets another name), go back to the samples of before, or "
        "featurize with repair=True (--repair true), which computes the rows of changed samples again."
    )


def _stored_samples(feature_set: FeatureSet) -> list[range]:
    """The samples whose rows would be reused, in order: of every stored block, and the first ones of a block in which the data
    ended before they grew."""
    spec, missing = feature_set.spec, set(feature_set.missing_blocks())
    found = []
    for block in range(spec.num_blocks):
        samples = spec.block_range(block)
        if block not in missing:
            found.append(samples)
        elif known := feature_set.known_rows(block):
            found.append(samples[: len(known)])
    return found


def _stored_rows(feature_set: FeatureSet, samples: range) -> FeatureRows:
    """The stored rows of samples of one block."""
    block = samples.start // feature_set.spec.block_size
    known = feature_set.known_rows(block) if block in feature_set.missing_blocks() else None
    first = feature_set.spec.block_range(block).start
    return (known or feature_set.read_block(block))[samples.start - first : samples.stop - first]


def _stored_content(feature_set: FeatureSet) -> Iterator[tuple[range, npt.NDArray[np.uint64]]]:
    for samples in _stored_samples(feature_set):
        block = samples.start // feature_set.spec.block_size
        try:
            if len(samples) == len(feature_set.spec.block_range(block)):
                yield samples, feature_set.column("content", [block])
            else:
                yield samples, _stored_rows(feature_set, samples).content
        except IncompleteRunError:  # another process of the job has just discarded it, to repair it
            continue


def _relative(found: npt.NDArray[np.floating], stored: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    difference = np.abs(found.astype(np.float64) - stored)
    return difference / np.maximum(1.0, np.abs(stored.astype(np.float64)))


def _evenly(count: int) -> Iterator[int]:
    """All of 0 … count − 1: the first, the middle and the last, and the others in an order whose beginning is spread evenly,
    the additive recurrence of the golden ratio."""
    if count:
        probes = sorted({0, count // 2, count - 1})
        yield from probes
        step = max(1, round(count * 0.6180339887498949))
        while np.gcd(step, count) != 1:
            step += 1
        yield from (position for number in range(count) if (position := number * step % count) not in probes)
