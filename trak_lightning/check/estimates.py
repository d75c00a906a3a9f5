"""What a run will take: arithmetic on what a few batches took. Time in seconds, everything else in bytes.

n training and m target samples, M checkpoints, k projected dimensions, d = min(n, k).
"""

from dataclasses import dataclass
from typing import NamedTuple

from trak_lightning.scoring.base import BLOCK_BYTES
from trak_lightning.scoring.compute import PANEL
from trak_lightning.scoring.inner_products import TILE_BYTES
from trak_lightning.scoring.scores import KEPT, TARGETS_AT_ONCE

COPIES = 5
"""Of the Gram matrix and its factor that are made: triangles, absolute values for the condition number, a shifted diagonal."""

COLUMNS = 20
"""Bytes of a row beside its features: an index and three numbers."""


@dataclass(frozen=True)
class Workload:
    """What is to be done."""

    train: int
    """n"""
    targets: int
    """m"""
    checkpoints: int
    """M"""
    dim: int
    """k"""
    block_size: int
    processes: int = 1
    """That featurize at the same time; one scores."""
    solves: bool = True
    """Whether scores come from a linear solve, as those of `Trak` do, or from inner products alone."""

    @property
    def splits(self) -> tuple[int, ...]:
        """Samples of every split."""
        return (self.train, self.targets) if self.targets else (self.train,)

    @property
    def order(self) -> int:
        """d, of the matrices that are factored."""
        return min(self.train, self.dim)


@dataclass(frozen=True)
class Featurizing:
    """What batches took, in seconds."""

    sample: float
    """One sample in a batch."""
    first_batch: float
    """The first batch of a run, beyond what every batch takes: the extractor's rehearsal."""
    feature_set: float
    """To begin a split of a checkpoint, beyond its batches."""
    fit: float
    """To fit the task and the projector to a checkpoint."""
    load: float
    """To copy the weights of a checkpoint into the model, and to name them by their contents."""


@dataclass(frozen=True)
class Storing:
    """What a store made of rows."""

    set_bytes: int
    """Of an empty set."""
    block_bytes: float
    """Of a block, beside its rows."""
    row_bytes: float
    write: float
    """Seconds for a byte."""
    read: float
    in_memory: bool
    """Whether rows are kept in memory, and not on disk."""

    def nbytes(self, samples: int, block_size: int) -> float:
        """One feature set."""
        return self.set_bytes + -(-samples // block_size) * self.block_bytes + samples * self.row_bytes


@dataclass(frozen=True)
class Arithmetic:
    """Operations a second."""

    single: float
    """Products of float32 matrices."""
    factor: float
    """Cholesky factors in float64, of which one of order d takes d³/3."""
    solve: float
    """Solving with such a factor: 2 d² for each right-hand side."""
    passed: float
    """Bytes of a float64 matrix of which a changed copy is made."""


class Time(NamedTuple):
    """Seconds."""

    featurize: float
    score: float


class Memory(NamedTuple):
    """Bytes, at the peak of a stage, resident."""

    featurize: float
    score: float


class Disk(NamedTuple):
    """Bytes in the run directory."""

    features: float
    factors: float
    scores: float


def seconds(work: Workload, featurizing: Featurizing, storing: Storing, arithmetic: Arithmetic) -> Time:
    """Of featurizing and of scoring, in a process that has started, with its data set up.

    Blocks are written while the next one is computed. Each process takes whole blocks.
    """
    once = featurizing.load + featurizing.fit
    for samples in work.splits:
        blocks = -(-samples // work.block_size)
        mine = min(samples, -(-blocks // work.processes) * work.block_size)
        write = storing.row_bytes * storing.write
        last = min(samples, work.block_size) * write
        once += featurizing.load + featurizing.feature_set + max(mine * featurizing.sample, mine * write - last) + last
    return Time(featurizing.first_batch + work.checkpoints * once, work.checkpoints * _score(work, storing, arithmetic))


def _score(work: Workload, storing: Storing, arithmetic: Arithmetic) -> float:
    """Seconds for one checkpoint."""
    if not work.targets:
        return 0.0
    n, m, k, d = work.train, work.targets, work.dim, work.order
    rounds = -(-m // TARGETS_AT_ONCE)
    found, reads = 2 * m * n * k / arithmetic.single, rounds
    if work.solves:
        # The Gram matrix is symmetric: what lies above its diagonal blocks is not computed.
        found += n * k * d * (1 + 1 / -(-d // PANEL)) / arithmetic.single
        found += d**3 / 3 / arithmetic.factor + 2 * m * d**2 / arithmetic.solve
        found += _factors(work) * storing.write + COPIES * 8 * d**2 / arithmetic.passed
        reads += 1
        if n < k:
            found += 4 * m * n * k / arithmetic.single
            reads += 2 * rounds + 1
    return found + reads * n * storing.row_bytes * storing.read


def memory(work: Workload, storing: Storing, *, peak: float, now: float) -> Memory:
    """Of one process that featurizes and scores.

    Args:
        work: what is to be done.
        storing: by which store.
        peak: of a process that has featurized some batches and stored nothing.
        now: what that process holds afterwards.
    """
    n, m, k, d, M = work.train, min(work.targets, TARGETS_AT_ONCE), work.dim, work.order, work.checkpoints
    block = min(work.block_size, n) * (4 * k + COLUMNS)
    kept = M * sum(work.splits) * storing.row_bytes if storing.in_memory else 0.0
    featurize = peak + 3 * block + kept
    if not m:
        return Memory(featurize, 0.0)
    # A block of every checkpoint, and those that are read ahead.
    blocks = M * block * (2 if M * block <= BLOCK_BYTES else 1)
    score = now + kept + M * m * k * 8 + blocks + 6 * TILE_BYTES
    if work.solves:
        score += M * 16 * d**2 + 16 * d**2 + (min(BLOCK_BYTES, 4 * n * k) if n < k else 0)
    return Memory(featurize, score)


def disk(work: Workload, storing: Storing) -> Disk:
    """What a run adds to its directory, checkpoints and evaluation left out."""
    features = work.checkpoints * sum(storing.nbytes(samples, work.block_size) for samples in work.splits)
    m, kept = work.targets, min(KEPT, work.train)
    return Disk(
        0.0 if storing.in_memory else features,
        work.checkpoints * _factors(work) if work.solves and m else 0.0,
        4 * m * work.train + 32 * m * kept,
    )


def _factors(work: Workload) -> float:
    """Bytes of the Gram matrix, in the precision of the features where n < k, and its factor."""
    return (12.0 if work.train < work.dim else 16.0) * work.order**2
