"""Verify stored rows before they are reused: samples, by their content hashes, and rows, by computing some again. No torch.

Names and class paths do not reveal a changed label, loss function, task, activation or helper module. Hashes reveal a changed
sample; rows that are computed again, for a second per split and at least one batch per feature set, reveal the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import IncompleteRunError, StaleRowsError
from trak_lightning.featurize.error_scale import error_scale
from trak_lightning.run.content_hashes import UNKNOWN, changed
from trak_lightning.run.formatting import listed
from trak_lightning.seeds import derive_seed
from trak_lightning.stores.base import FeatureRows, FeatureSet, concatenate

if TYPE_CHECKING:
    from trak_lightning.data.dataset import AttributionData

VerifyData: TypeAlias = Literal["full", "sampled", "off"]
"""Which samples are read again: all; as many as can be read in `SECONDS`, evenly spread; none."""

PLACES = 8
"""At how many places of a feature set rows are computed again."""

SECONDS = 1.0
"""How long ``sampled`` may read the samples of a split, and how long rows of its feature sets are computed again, at least one batch
of each."""

TOLERANCE = 1e-2
"""Largest difference between a stored row and the same row computed again, relative to its norm: devices round differently."""

LOW_PRECISION_TOLERANCE = 0.1
"""The same for rows that are computed or stored in 16 bits or fewer."""


@dataclass(frozen=True)
class ContentSample:
    """The content hashes of some samples of a split as they are now: `positions` (s,), `hashes` (s,)."""

    positions: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def read(cls, data: "AttributionData", verify: VerifyData) -> "ContentSample":
        """Read the samples that `verify` asks for."""
        started, positions, hashes = perf_counter(), [], []
        for position in probing_order(0 if verify == "off" else len(data)):
            positions.append(position)
            hashes.append(data.content(position))
            if verify == "sampled" and len(positions) > 2 and perf_counter() - started > SECONDS:
                break
        return cls(np.array(positions, np.int64), np.array(hashes, np.uint64))

    def changed(self, feature_set: FeatureSet) -> npt.NDArray[np.int64]:
        """The sorted positions of samples whose content hash differs from the one stored with their rows."""
        spec = feature_set.spec
        then = np.full(spec.num_samples, UNKNOWN, np.uint64)
        for samples, hashes in _stored_content(feature_set) if len(self.positions) else ():
            then[samples.start : samples.stop] = hashes
        now = np.full(spec.num_samples, UNKNOWN, np.uint64)
        inside = self.positions < spec.num_samples
        now[self.positions[inside]] = self.hashes[inside]
        return np.flatnonzero(changed(then, now))


def require_same_samples(data: "AttributionData", feature_set: FeatureSet) -> None:
    """Refuse data that is not what stored rows were computed from; reads as many samples as ``sampled`` does.

    Raises:
        StaleRowsError: samples have changed.
    """
    sample = ContentSample.read(data, "sampled")
    error = changed_samples(feature_set.spec.split, sample.changed(feature_set), len(sample.positions), read_all=False)
    if error is not None:
        raise error


def knows_content(feature_set: FeatureSet) -> bool:
    """Whether the content hash of every sample is stored with its row. Rows of earlier versions have none, nor have samples
    that cannot be hashed."""
    return all((hashes != UNKNOWN).all() for _, hashes in _stored_content(feature_set))


def stored_batches(feature_set: FeatureSet) -> Iterator[list[int]]:
    """Yield the positions of all stored samples, as many at a time as a batch has, in runs at up to `PLACES` places. Those of
    every prefix are spread evenly over the stored rows, beginning where the feature set's name says."""
    parts = _stored_samples(feature_set)
    if not parts:
        return
    spec = feature_set.spec
    positions = np.concatenate([np.asarray(part) for part in parts])
    count = min(spec.batch_size, len(positions))
    length = -(-count // PLACES)
    runs = -(-len(positions) // length)
    first = derive_seed("stored batch", spec.split, spec.checkpoint) % runs
    places = iter(probing_order(runs))
    while chosen := [(first + place) % runs for place in islice(places, count // length)]:
        yield sorted(int(at) for run in chosen for at in positions[run * length : (run + 1) * length])


def stale_rows(feature_set: FeatureSet, found: FeatureRows, precision: str) -> StaleRowsError | None:
    """Compare stored rows with the same rows computed again: an error, which names the worst sample, if a row differs by
    more than rounding."""
    spec = feature_set.spec
    blocks = found.index // spec.block_size
    stored = concatenate(
        [
            _stored_block(feature_set, block).at(found.index[blocks == block] - block * spec.block_size)
            for block in np.unique(blocks).tolist()
        ]
    )
    exact = precision in ("32-true", "64-true") and feature_set.dtype in ("float32", "float64")
    tolerance = TOLERANCE if exact else LOW_PRECISION_TOLERANCE
    norms = np.linalg.norm(stored.features.astype(np.float64), axis=1)
    # Do not compare gradients that are zero except for rounding relative to their own norm.
    scale = np.maximum(norms, 1e-6 * max(float(norms.max()), np.finfo(np.float32).tiny))
    errors = {
        name: _relative(now, then, error_scale(then, stored.output, exact=exact))
        for name, now, then in (
            ("output", found.output, stored.output),
            ("loss weight", found.loss_weight, stored.loss_weight),
            ("curvature", found.curvature, stored.curvature),
        )
    }
    features = np.linalg.norm(found.features.astype(np.float64) - stored.features, axis=1) / scale
    errors = {"features": features, **errors}
    for name, error in errors.items():
        if not (error <= tolerance).all():
            others = found.index[changed(stored.content, found.content)]
            if (samples := changed_samples(spec.split, others, len(found), read_all=False)) is not None:
                return samples
            worst = int(np.argmax(error))
            return StaleRowsError(
                f"the stored rows of {spec.split!r} under checkpoint {spec.checkpoint} are not what the model, the task and the "
                f"data give now: of {len(found)} samples that were computed again, the {name} of "
                f"{int((~(error <= tolerance)).sum())} differ, most by {error[worst]:.1%} (sample {int(found.index[worst])}). "
                "The code of the model, the task, the loss function, the collate function or the projector has changed. Use another run "
                "directory (or for targets another name), restore the earlier code, or "
                f"featurize with repair=True (--repair true), which computes all rows of {spec.split!r} again."
            )
    return None


def changed_samples(
    split: str, positions: Sequence[int] | npt.NDArray[np.int64], count: int, *, read_all: bool
) -> StaleRowsError | None:
    """An error that names the first of the samples at these `positions`, whose content has changed, of `count` that were compared; None
    if there are none. Unless `read_all`, there may be more of them."""
    if not len(positions):
        return None
    most = " Most samples have: is the data split or ordered at random? Give random_split a generator with a seed."
    read = "" if read_all else " (not all were read again: verify_data=full does)"
    what = f"1 sample of {split!r} is" if len(positions) == 1 else f"{len(positions)} samples of {split!r} are"
    return StaleRowsError(
        f"{what} not what the stored rows were computed from: {listed(positions, 10)}{read}. Labels or "
        f"inputs have changed.{most if 2 * len(positions) > max(count, 2) else ''} Use another run directory (or for targets another name), restore the earlier samples, or "
        "featurize with repair=True (--repair true), which computes the rows of changed samples again."
    )


def _stored_samples(feature_set: FeatureSet) -> list[range]:
    """The samples whose rows would be reused, in order: those of stored blocks, and the first samples of a block that was
    incomplete before the data grew."""
    spec, missing = feature_set.spec, set(feature_set.missing_blocks())
    found = []
    for block in range(spec.num_blocks):
        samples = spec.block_range(block)
        if block not in missing:
            found.append(samples)
        elif known := feature_set.known_rows(block):
            found.append(samples[: len(known)])
    return found


def _stored_block(feature_set: FeatureSet, block: int) -> FeatureRows:
    """The rows of a block that would be reused, from its first one on."""
    known = feature_set.known_rows(block) if block in feature_set.missing_blocks() else None
    return known or feature_set.read_block(block)


def _stored_content(feature_set: FeatureSet) -> Iterator[tuple[range, npt.NDArray[np.uint64]]]:
    for samples in _stored_samples(feature_set):
        block = samples.start // feature_set.spec.block_size
        try:
            if len(samples) == len(feature_set.spec.block_range(block)):
                yield samples, feature_set.column("content", [block])
            else:
                yield samples, _stored_block(feature_set, block).content[: len(samples)]
        except IncompleteRunError:  # another process of the job has just discarded the block, to repair it
            continue


def _relative(
    found: npt.NDArray[np.floating], stored: npt.NDArray[np.floating], smallest: float
) -> npt.NDArray[np.float64]:
    difference = np.abs(found.astype(np.float64) - stored)
    return difference / np.maximum(smallest, np.abs(stored.astype(np.float64)))


def probing_order(count: int) -> Iterator[int]:
    """Yield 0 … count − 1: the first, the middle and the last, then the others in an order of which every prefix is spread
    evenly, the additive recurrence of the golden ratio."""
    if count:
        probes = sorted({0, count // 2, count - 1})
        yield from probes
        step = max(1, round(count * 0.6180339887498949))
        while np.gcd(step, count) != 1:
            step += 1
        yield from (position for number in range(count) if (position := number * step % count) not in probes)
