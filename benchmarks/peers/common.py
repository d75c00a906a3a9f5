"""What the scripts of all peers share. Each is run by benchmarks/lds.py in an environment of its own:

SCRIPT PROBLEM FASHION_ROOT K COUNTS OUTPUT CHECKPOINT…

COUNTS, such as 1,3,10, are the numbers of checkpoints, the first of those given, to make scores with.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))
from problems import PROBLEMS, find_fashion


@dataclass
class Job:
    """What is asked for, and what has been found."""

    k: int
    counts: list[int]
    output: Path
    states: list[dict[str, Tensor]]
    model: nn.Module
    train: Dataset
    targets: Dataset
    collate: Callable[[list[Any]], Any] | None
    """Of a language model; None for pairs of inputs and labels."""
    found: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def from_command_line(cls) -> "Job":
        """As the module says."""
        problem, fashion, k, counts, output, *checkpoints = sys.argv[1:]
        find_fashion(Path(fashion))
        data = PROBLEMS[problem].data()
        data.setup()
        states = [torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in checkpoints]
        numbers = [int(count) for count in counts.split(",")]
        model = PROBLEMS[problem].model().eval()
        return cls(
            int(k),
            numbers,
            Path(output),
            states,
            model,
            data.train_set,
            data.test_set,
            data.collate if isinstance(data.train_set, list) else None,
        )

    def keep(self, method: str, count: int, scores: Tensor | np.ndarray, seconds: float) -> None:
        """Scores (m, n) of `method` with `count` checkpoints, which took that long."""
        self.found[f"{method}|{count}|scores"] = np.asarray(scores, dtype=np.float32)
        self.found[f"{method}|{count}|seconds"] = np.asarray(seconds)
        np.savez(self.output, **self.found)
        print(f"{method}, {count} checkpoints: {seconds:.1f} s", flush=True)

    def keep_averages(self, method: str, each: Iterator[Tensor | np.ndarray]) -> None:
        """The same for a method whose scores are the mean of those of single checkpoints, which `each` computes."""
        total, started = np.zeros(()), time.process_time()
        for count, scores in enumerate(each, 1):
            total = total + np.asarray(scores, dtype=np.float64)
            if count in self.counts:
                self.keep(method, count, total / count, time.process_time() - started)


def batches(dataset: Dataset, size: int = 64) -> DataLoader:
    """In order."""
    return DataLoader(dataset, batch_size=size)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p_y/(1 − p_y)) of every row: (B,)."""
    own = logits.gather(-1, labels.unsqueeze(-1))
    others = logits.masked_fill(
        torch.zeros_like(logits, dtype=torch.bool).scatter(-1, labels.unsqueeze(-1), True), -torch.inf
    )
    return own.squeeze(-1) - others.logsumexp(-1)
