"""What would be attributed and how, and what a batch costs, from a few batches: all that can be known before hours are spent.

A check is a function in `CHECKS`: it looks at a `Subject` and yields findings, or raises the error that featurizing would raise.
Nothing is modeled: seconds are those of the tried batches times the number of batches, memory is the peak of this process.
The time of training, of scoring and of retraining is not estimated.
"""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from trak_lightning.check.trial import Trial, peak_bytes
from trak_lightning.errors import StorageError
from trak_lightning.featurize.compute import predict
from trak_lightning.featurize.job import FeaturizeJob
from trak_lightning.model.autocast import as_called
from trak_lightning.model.compiled import uncompiled
from trak_lightning.model.eval_mode import require_eval
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.run.formatting import counted, format_bytes, format_number
from trak_lightning.runtime.lightning import default_trainer, quiet_lightning
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.stores.base import FeatureRows, FeatureSpec, FeatureStore
from trak_lightning.stores.memory import MemorySet


@dataclass(frozen=True)
class Finding:
    """One line of the report: its topic, and what was found."""

    topic: str
    text: str


class Findings(list[Finding]):
    """All lines, which read as a report."""

    def __repr__(self) -> str:
        width = max((len(each.topic) for each in self), default=0)
        return "\n".join(f"{each.topic:{width}}  {each.text}" for each in self)

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{escape(each.topic)}</th><td>{escape(each.text)}</td></tr>" for each in self)
        return f"<table>{''.join(rows)}</table>"


@dataclass(frozen=True)
class Subject:
    """What checks look at.

    Args:
        job: what would be featurized.
        trial: batches that were featurized, on the device and in the precision of the run.
        checkpoints: how many there will be.
        processes: how many share the work.
    """

    job: FeaturizeJob
    trial: Trial
    checkpoints: int
    processes: int


def parameters(subject: Subject) -> Iterator[Finding]:
    """One line per rule, and the total."""
    trial, spec = subject.trial, subject.job.spec
    with torch.enable_grad():
        uses = trial.computer.account(trial.first)
    for use in uses:
        layers = counted(use.layers, "layer") if use.layers else "whole model"
        yield Finding("parameters", f"{use.rule:<32} {layers:>12} {use.parameters:>16,} parameters")
    trained = sum(parameter.numel() for parameter in subject.job.model.parameters())
    yield Finding("parameters", f"p = {spec.layout.numel:,} of the model's {trained:,}, in {len(spec.layout)} tensors")
    if reason := spec.projector.reason:
        yield Finding("projector", reason)


def outputs(subject: Subject) -> Iterator[Finding]:
    """The range of the model output f; that all are finite was checked when the rows were computed."""
    found = subject.trial.rows.output
    yield Finding(
        "outputs",
        f"{len(found)} samples, all finite, f from {format_number(found.min())} to {format_number(found.max())}",
    )
    if scaled := subject.job.spec.task.meaning.other_scale(found, subject.trial.rows.loss_weight):
        yield Finding("outputs", scaled)


def independence(subject: Subject) -> Iterator[Finding]:
    """Samples alone against the same samples in their batch."""
    trial = subject.trial
    yield Finding(
        "samples",
        f"independent: alone or in a batch of {len(trial.rows)}, gradients differ by at most {trial.difference:.1e}",
    )
    yield Finding("eval mode", "no module draws random numbers or uses batch statistics")


def lengths(subject: Subject) -> Iterator[Finding]:
    """How long samples are, where the dataset says so."""
    found = subject.trial.data.lengths
    if found is not None:
        text = (
            f"{found.min()} to {found.max()}, {found.mean():.0f} on average; batches are of samples of similar length"
        )
        yield Finding("lengths", text)


def time(subject: Subject) -> Iterator[Finding]:
    """Seconds per batch times the number of batches, and what is done once: the first batch, which is planned and audited, and fitting
    the projector for each checkpoint."""
    trial = subject.trial
    tried = trial.batch_seconds or [trial.first_seconds]
    seconds = median(tried) if trial.data.lengths is None else fmean(tried)
    spec = trial.feature_set.spec
    batches = -(-spec.num_samples // spec.batch_size)
    fixed = subject.checkpoints * trial.fit_seconds + max(0.0, trial.first_seconds - seconds)
    total = subject.checkpoints * batches * seconds / subject.processes + fixed
    yield Finding(
        "time",
        f"{_duration(seconds)} per batch of {spec.batch_size} × {batches:,} batches × {counted(subject.checkpoints, 'checkpoint')}"
        + (f" ÷ {subject.processes} processes" if subject.processes > 1 else "")
        + (f" + {_duration(fixed)} to start" if _duration(fixed) != _duration(0) else "")
        + f" = {_duration(total)} for {spec.split!r}; training, scoring and retraining are not estimated",
    )


def memory(subject: Subject) -> Iterator[Finding]:
    """The peak of the batches that were tried."""
    device = subject.trial.device
    what = f"{format_bytes(peak_bytes())} at the peak of the batches that were tried"
    if device.type == "cuda":
        what += f"; {format_bytes(torch.cuda.max_memory_allocated(device))} of {device}"
    yield Finding("memory", what)


def disk(subject: Subject) -> Iterator[Finding]:
    """The space of all feature sets, from rows that are stored and deleted again.

    Raises:
        StorageError: the run directory cannot be written to.
    """
    job, spec = subject.job, subject.trial.feature_set.spec
    if job.store.elsewhere is not None:
        yield Finding("disk", f"features are stored in {job.store.elsewhere}; their size is not estimated")
        return
    rows = spec.num_samples * subject.checkpoints
    needed = round(rows * _row_bytes(job.store, spec, subject.trial.rows, job.run.path))
    free = shutil.disk_usage(_existing(job.run.path)).free
    short = ": too little" if needed > free else ""
    yield Finding(
        "disk", f"{format_bytes(needed)} for {rows:,} rows of training samples; {format_bytes(free)} are free{short}"
    )


CHECKS: list[Callable[[Subject], Iterator[Finding]]] = [parameters, outputs, independence, lengths, time, memory, disk]


def run_checks(job: FeaturizeJob, checkpoints: int = 1) -> Findings:
    """Try a few batches of the only split of `job` with the model's current weights; nothing is stored. `checkpoints` is how many there
    will be.

    Raises:
        TrainModeError, SampleDependenceError, UnsupportedModelError, NonFiniteGradientError: as featurizing would.
        StorageError: the run directory cannot be written to.
    """
    require_eval(job.model)
    split = job.train
    feature_set = MemorySet(job.plan(split, "check"))
    trainer = job.trainer or default_trainer()
    with as_called(), uncompiled(job.model), leave_unchanged(job.model), quiet_lightning():
        trial = job.module(Trial, split, feature_set, range(feature_set.spec.num_blocks), StopRequest())
        assert isinstance(trial, Trial)
        predict(trainer, trial, [])
        subject = Subject(job, trial, checkpoints, trainer.world_size)
        with trainer.precision_plugin.predict_step_context():
            return Findings(finding for check in CHECKS for finding in check(subject))


def _row_bytes(store: FeatureStore, spec: FeatureSpec, rows: FeatureRows, near: Path) -> float:
    """The bytes of one stored row, by storing a block of rows in a folder that is deleted again."""
    size = len(rows)
    spec = replace(spec, num_samples=2 * size, batch_size=size, block_size=size)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".trak-check-", dir=_existing(near))
    except OSError as error:
        raise StorageError(f"nothing can be written where {near} is to be: {error}") from None
    with folder as name:
        tried = copy.deepcopy(store)
        tried.bind(Path(name))
        found = tried.create(spec)
        empty = found.nbytes()
        found.write_block(0, replace(rows, index=np.arange(size)))
        return (found.nbytes() - empty) / size


def _existing(path: Path) -> Path:
    """The first folder around `path` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"
