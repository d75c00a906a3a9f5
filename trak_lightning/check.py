"""What would be attributed, and how, from one batch: every check that can be made before hours are spent.

A check is a function in `CHECKS`: it looks at a `Subject` and yields findings, or raises the error that featurizing would
end in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from trak_lightning.data import IndexedBatch
from trak_lightning.featurizer import Featurizer
from trak_lightning.stores.base import FeatureRows


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
        uses = featurizer.extractor.account(featurizer.model, featurizer.task, subject.batch.batch, featurizer.layout)
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
    worst = subject.featurizer.check_independence(subject.batch.index, subject.rows)
    yield Finding(
        "samples", f"independent: alone or in a batch of {len(subject.rows)}, gradients differ by {worst:.1e} at most"
    )
    yield Finding("train mode", "no module draws random numbers or uses batch statistics")


CHECKS: list[Callable[[Subject], Iterator[Finding]]] = [parameters, outputs, independence]


class Checker(Featurizer):
    """A featurizer that looks at the first batch only, and stores nothing."""

    findings: list[Finding]

    def predict_dataloader(self) -> DataLoader:
        if self.task.fit_samples:
            self._bind_task(self._fit_task())
        if self._projector.fit_samples:
            self._fitted = self._fit()
        size = self.feature_set.spec.batch_size
        return self._data.loader([range(size)], pin_memory=self.device.type == "cuda")

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows:
        rows = self._featurize(indexed)
        subject = Subject(self, indexed, rows)
        self.findings = [finding for check in CHECKS for finding in check(subject)]
        return rows
