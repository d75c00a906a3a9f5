"""What it costs to be sure: the first batch, audits and content hashes, as multiples of a training step and as shares of featurizing.

    python benchmarks/audits.py
    python benchmarks/audits.py --models '[deberta, mamba]' --rounds 5

A training step is that of benchmarks/featurize.py, on the same batch. Rows are computed as `featurize` computes them, without a
Trainer: samples are read, hashed and collated, their rows are computed by `extractor: auto`, projected and stored. Figures are
medians of processor time (the machine may be busy): ways of computing a batch and training steps take turns.

* first: the first batch of a kind, in training steps; forward passes in it are those of the whole model, counted in batches;
* plain, audited: a batch of a known kind, in training steps;
* the shares are those of 64 batches, of which one is audited: the audit; content hashes; watching (what is noticed in every batch: a
  sample that is read twice, the state of the model, generators, values); the projection; storing.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import featurize
import numpy as np
import torch
from jsonargparse import auto_cli
from models import WORKLOADS, Logits, Margin, Workload, images, tokens
from reuse import network
from rich.console import Console
from rich.table import Table
from torch import nn

from trak_lightning import registry
from trak_lightning.data.content import content_hash, extent
from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.loading import CollateIndexed, IndexedBatch
from trak_lightning.extractors.auto import Auto
from trak_lightning.featurize.batch_audit import SHARE, BatchAuditor, random_state
from trak_lightning.featurize.rows import RowComputer
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors import Projection
from trak_lightning.stores.base import FeatureRows, FeatureSpec, concatenate
from trak_lightning.stores.hdf5 import HDF5Store


def deberta(width: int, layers: int = 3, **settings: Any) -> nn.Module:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    own = {"relative_attention": True, "position_buckets": 32, "pos_att_type": ["p2c", "c2p"], "num_labels": 10}
    narrow = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": max(4, width // 64)}
    config = DebertaV2Config(**{"vocab_size": 5000} | own | narrow | heads | settings)
    return Logits(DebertaV2ForSequenceClassification(config))


def mamba(width: int) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return Logits(
        MambaForCausalLM(MambaConfig(vocab_size=5000, hidden_size=width, num_hidden_layers=3, use_cache=False))
    )


def only_ids(draw: Callable[[int], Any]) -> Callable[[int], Any]:
    def batch(B: int) -> Any:
        inputs, labels = draw(B)
        return {"input_ids": inputs["input_ids"]}, labels

    return batch


class Images(nn.Module):
    """The small CNN of benchmarks/reuse.py, which takes its images by name."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.network(input)


PRETRAINED = {"vocab_size": 30522, "position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
"""As microsoft/deberta-v3-xsmall has them, except for the vocabulary."""

MODELS = {name: WORKLOADS[name] for name in featurize.ON_CPU} | {
    workload.name: workload
    for workload in (
        Workload("cnn", Images, images("input", 32, 10), 32),
        Workload("deberta-3x128", lambda: deberta(128), tokens(64, 5000, 10), 16),
        Workload("deberta-3x64", lambda: deberta(64), tokens(32, 5000, 10), 8),
        Workload("deberta-6x384", lambda: deberta(384, 6, **PRETRAINED), tokens(128, 30522, 10), 16),
        Workload("mamba-3x128", lambda: mamba(128), only_ids(tokens(64, 5000)), 16, positions=True),
        Workload("mamba-3x64", lambda: mamba(64), only_ids(tokens(32, 5000)), 8, positions=True),
    )
}


def main(
    models: list[str] = list(MODELS),  # noqa: B006
    dim: int = 2048,
    threads: int = 1,
    rounds: int = 5,
    firsts: int = 3,
) -> None:
    """Print the table.

    Args:
        models: names of `MODELS`.
        dim: k, the number of projected dimensions.
        threads: of torch.
        rounds: repetitions of plain and audited batches and training steps, in turn.
        firsts: repetitions of the first batch.
    """
    torch.set_num_threads(threads)
    gc.disable()  # collects what other libraries have imported, at any time, in the time of several steps
    table = Table(title=f"{featurize._machine('cpu')}, torch {torch.__version__}, k = {dim}, medians of {rounds}")
    table.add_column("model")
    for column in ("step", "first", "forwards", "plain", "audited", *SHARES):
        table.add_column(column, justify="right")
    for name in models:
        table.add_row(*_measure(MODELS[name], dim, rounds, firsts))
    Console(width=140).print(table)


SHARES = ("audit %", "hashes %", "watching %", "projection %", "store %")


class _Samples(torch.utils.data.Dataset):
    def __init__(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        self._inputs, self._labels = inputs, labels

    def __getitem__(self, index: int) -> Any:
        return {key: value[index] for key, value in self._inputs.items()}, self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


@dataclass
class Featurizing:
    """Computes batches of one workload as `featurize` does."""

    model: nn.Module
    data: AttributionData
    size: int
    dim: int

    def __post_init__(self) -> None:
        self.layout = ParameterLayout.of(self.model)
        self.projection = Projection(
            registry.create("projectors", {"name": "sparse_jl", "dim": self.dim}), self.layout, seed=0, checkpoint="0", device=torch.device("cpu")
        )  # fmt: skip

    def computer(self) -> RowComputer:
        return RowComputer(
            self.model, Margin(), Auto(), self.projection, self.layout, self.data.read, device=torch.device("cpu"),
            precision="32-true", auditor=BatchAuditor(self.model, Margin(), self.layout, seed=0),
        )  # fmt: skip

    def loader(self) -> CollateIndexed:
        return CollateIndexed(self.data.dataset, self.data.collate_fn)

    def load(self, collate: CollateIndexed, number: int) -> IndexedBatch:
        indices = range(number * self.size, (number + 1) * self.size)
        return collate([(index, self.data.dataset[index]) for index in indices])


def _measure(workload: Workload, dim: int, rounds: int, firsts: int) -> list[str]:
    torch.manual_seed(0)
    size = workload.batch_size
    model = workload.model().eval()
    inputs, labels = workload.batch(3 * size)
    data = AttributionData.of(_Samples(inputs, labels), size)
    work = Featurizing(model, data, size, dim)
    batch = work.load(work.loader(), 0).batch

    def step() -> float:
        return _seconds(lambda: featurize._train(workload, model, batch))

    work.computer().rows(work.load(work.loader(), 0))
    step()
    first = []
    for _ in range(firsts):
        computer, indexed = work.computer(), work.load(work.loader(), 0)
        before = [step() for _ in range(3)]
        first.append(_seconds(lambda: computer.rows(indexed)) / median(before))  # noqa: B023
    computer, collate = work.computer(), work.loader()
    with _forwards(model) as passes:
        computer.rows(work.load(collate, 0))
    audited = _with_audits(work)
    for _ in range(8):  # after the first passes, parameters are no longer compared
        computer.rows(work.load(collate, 1))
        audited(work.load(collate, 1))
    steps, plain, audits, projecting, storing = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="trak-audits-") as folder:
        for number in range(rounds):
            steps.append(step())
            with _timed(Projection, "add") as seconds:
                start = time.process_time()
                found = computer.rows(work.load(collate, 1 + number % 2))
                plain.append(time.process_time() - start)
            projecting.append(seconds[0])
            storing.append(_store(Path(folder) / f"{number}", found))
            start = time.process_time()
            audited(work.load(collate, 1 + number % 2))
            audits.append(time.process_time() - start)
    audit = max(0.0, median(audits) - median(plain)) / SHARE
    total = median(plain) + median(storing) + audit
    indexed = work.load(collate, 1)
    hashing, watching = _hashing(data, indexed), _watching(computer, collate, indexed)
    shares = [audit, hashing, watching, median(projecting), median(storing)]
    return [
        f"{workload.name} (B = {size})",
        f"{1e3 * median(steps):.1f} ms",
        f"{median(first):.2f}",
        f"{passes[0] / size:.2f}",
        f"{median(plain) / median(steps):.2f}",
        f"{median(audits) / median(steps):.2f}",
        *(f"{100 * share / total:.1f}" for share in shares),
    ]


def _hashing(data: AttributionData, indexed: IndexedBatch) -> float:
    """Seconds of hashing the samples of a batch, one of them twice."""
    values = [data.dataset[position] for position in indexed.index.tolist()]
    return _repeated(lambda: [(content_hash(value), extent(value)) for value in [*values, values[0]]])


def _watching(computer: RowComputer, collate: CollateIndexed, indexed: IndexedBatch) -> float:
    """Seconds of what is noticed in every batch: a sample that is read twice, the state of the model before the pass, the state of
    generators before and after, and the kind and values of the batch. A sample that is read twice is also hashed twice."""
    batch, device = computer.samples(indexed), torch.device("cpu")
    values = [collate._dataset[position] for position in indexed.index.tolist()]
    return (
        _repeated(lambda: collate._compared(indexed, values))
        + _repeated(computer._steady.restore)
        + 2 * _repeated(lambda: random_state(device))
        + _repeated(lambda: computer._auditor.due(batch, indexed.index))
    )


def _repeated(run: Callable[[], Any], times: int = 50) -> float:
    """The median time of a short call."""
    return median(_seconds(run) for _ in range(times))


def _with_audits(work: Featurizing) -> Callable[[IndexedBatch], FeatureRows]:
    """Computes the rows of a batch of a known kind, and audits them."""
    computer = work.computer()
    computer.rows(work.load(work.loader(), 0))
    auditor = computer._auditor

    def audited(indexed: IndexedBatch) -> FeatureRows:
        with patch.object(auditor, "due", lambda batch, index: auditor.drawn(batch, index)):
            return computer.rows(indexed)

    return audited


def _store(folder: Path, found: FeatureRows) -> float:
    """Seconds of storing these rows, as a part of a block of 1024."""
    count = -(-1024 // len(found))
    store = HDF5Store()
    store.bind(folder)
    block = concatenate([replace(found, index=np.arange(len(found)) + len(found) * number) for number in range(count)])
    spec = FeatureSpec("train", "0", len(block), found.features.shape[1], len(found), len(block))
    return _seconds(lambda: store.create(spec).write_block(0, block)) / count


@contextmanager
def _forwards(model: nn.Module) -> Iterator[list[float]]:
    """Count the samples of all forward passes of the whole model: all in one number."""
    count = [0.0]

    def before(_: nn.Module, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        count[0] += len(next(iter(kwargs.values())))

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


@contextmanager
def _timed(owner: Any, name: str) -> Iterator[list[float]]:
    """The seconds of all calls of a method, in one number."""
    seconds, function = [0.0], vars(owner)[name]

    def call(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            seconds[0] += time.process_time() - start

    with patch.object(owner, name, call):
        yield seconds


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    auto_cli(main)
