"""What would be attributed, how, and at what cost, from a few batches: every check that can be made before hours are spent.

A check is a function in `CHECKS`: it looks at a `Subject` and yields findings, or raises the error that featurizing would
end in. What is estimated of the whole run is a finding as well.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch.utils.data import DataLoader

from trak_lightning.check import estimates
from trak_lightning.check import trial as rehearsal
from trak_lightning.check.estimates import Featurizing, Workload
from trak_lightning.data.dataset import IndexedBatch
from trak_lightning.featurize.module import Featurizer
from trak_lightning.run.formatting import format_bytes
from trak_lightning.stores.base import FeatureRows, FeatureStore


@dataclass(frozen=True)
class Finding:
    """One line of the report: what it is about, and what was found."""

    topic: str
    text: str


@dataclass(frozen=True)
class Subject:
    """What checks look at: the featurizer, on the device and in the precision of the run, a batch, and its rows, which were
    found to be finite."""

    featurizer: Featurizer
    batch: IndexedBatch
    rows: FeatureRows


def parameters(subject: Subject) -> Iterator[Finding]:
    """One line a rule, and the total."""
    featurizer = subject.featurizer
    with torch.enable_grad():
        batch = featurizer.computer.samples(subject.batch)
        uses = featurizer.extractor.account(featurizer.model, featurizer.task, batch, featurizer.layout)
    for use in uses:
        layers = f"{use.layers} layer{'s' if use.layers > 1 else ''}"
        yield Finding("parameters", f"{use.rule:<32} {layers:>12} {use.parameters:>16,} parameters")
    trained = sum(parameter.numel() for parameter in featurizer.model.parameters())
    yield Finding(
        "parameters", f"p = {featurizer.layout.numel:,} of the model's {trained:,}, in {len(featurizer.layout)} tensors"
    )


def outputs(subject: Subject) -> Iterator[Finding]:
    """The range of f; that all of it is finite was seen when the rows were made."""
    found = subject.rows.output
    yield Finding("outputs", f"{len(found)} samples, all finite, f from {found.min():.4g} to {found.max():.4g}")


def independence(subject: Subject) -> Iterator[Finding]:
    """Samples alone against the same samples in their batch; that no module is in train mode was seen before."""
    worst = subject.featurizer.computer.check_independence(subject.batch.index, subject.rows)
    yield Finding(
        "samples", f"independent: alone or in a batch of {len(subject.rows)}, gradients differ by {worst:.1e} at most"
    )
    yield Finding("train mode", "no module draws random numbers or uses batch statistics")


CHECKS: list[Callable[[Subject], Iterator[Finding]]] = [parameters, outputs, independence]


class Checker(Featurizer):
    """A featurizer that looks at the first batch only, and stores nothing."""

    findings: list[Finding]
    rows: FeatureRows
    first_seconds: float
    """Of the first batch."""

    def predict_dataloader(self) -> DataLoader:
        if self.task.fit_samples:
            self._bind_task(self._fit_task())
        if self._projector.fit_samples:
            self._fitted = self._fit()
        size = self.feature_set.spec.batch_size
        return self._data.loader([range(size)], pin_memory=self.device.type == "cuda")

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows:
        started = perf_counter()
        self.rows = self.computer.rows(indexed)
        self.first_seconds = perf_counter() - started
        subject = Subject(self, indexed, self.rows)
        self.findings = [finding for check in CHECKS for finding in check(subject)]
        return self.rows


def outlook(
    work: Workload, featurizing: Featurizing, checker: Checker, store: FeatureStore, run: Path, device: torch.device
) -> Iterator[Finding]:
    """Time, memory and disk of the whole run; to be asked in the process in which `checker` has featurized its batch.

    Raises:
        StorageError: nothing can be written where the run is to be.
    """
    now, peak = rehearsal.resident_bytes()
    storing = rehearsal.storing(store, checker.feature_set.spec, checker.rows, run)
    arithmetic = rehearsal.arithmetic()
    time = estimates.seconds(work, featurizing, storing, arithmetic)
    samples = " + ".join(f"{samples:,}" for samples in work.splits)
    what = f"featurizing {work.checkpoints} × ({samples}) samples {duration(time.featurize)}"
    scoring = f", scoring {duration(time.score)}" if work.targets else ""
    yield Finding("time", f"about {duration(sum(time))}: {what}{scoring}; training is not in it")
    memory = estimates.memory(work, storing, peak=peak, now=now)
    what = f"featurizing {format_bytes(memory.featurize)}" + (
        f", scoring {format_bytes(memory.score)}" if work.targets else ""
    )
    if device.type == "cuda":
        what += f"; of {device} {format_bytes(torch.cuda.max_memory_allocated(device))}"
    yield Finding("memory", f"about {format_bytes(max(memory))} at its peak: {what}")
    disk, free = estimates.disk(work, storing), shutil.disk_usage(rehearsal.existing(run)).free
    parts = ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in disk._asdict().items() if nbytes)
    elsewhere = f"; features in {store.elsewhere} are not counted" if store.elsewhere else ""
    short = " too little" if sum(disk) > free else ""
    yield Finding(
        "disk",
        f"{format_bytes(sum(disk))}: {parts or 'nothing'}{elsewhere}; {format_bytes(free)} are free{short and ':'}{short}",
    )


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"
