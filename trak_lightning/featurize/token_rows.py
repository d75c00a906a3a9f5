"""Features of single tokens: the row of a sample as a sum over the terms of its output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trak_lightning.data.loading import IndexedBatch
from trak_lightning.errors import SettingsError
from trak_lightning.extractors.state import parameters_of, requiring
from trak_lightning.featurize.compute import predict
from trak_lightning.featurize.job import FeaturizeJob
from trak_lightning.featurize.module import Featurizer
from trak_lightning.gradients import DenseBlock
from trak_lightning.model.autocast import as_called, cast_anew
from trak_lightning.model.compiled import uncompiled
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.runtime.lightning import default_trainer, quiet_lightning
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.tasks.base import batch_of
from trak_lightning.tasks.sum_of_margins import SumOfMargins


@dataclass(frozen=True)
class TokenRows:
    """The terms of one sample under one checkpoint.

    Attributes:
        positions: (T,) of the terms that count, among the labels of the sample.
        features: (T, k), whose sum is the row of the sample.
    """

    positions: npt.NDArray[np.int64]
    features: npt.NDArray[np.floating]


def token_rows(job: FeaturizeJob, split: str, samples: Sequence[int]) -> list[Mapping[int, TokenRows]]:
    """Compute the features of every token of some samples of a split, under each checkpoint; nothing is stored.

    One backward pass and one projection per token, with the projection of the run.

    Raises:
        SettingsError: the task is no sum over tokens, or a sample does not exist.
    """
    if not isinstance(job.spec.task, SumOfMargins):
        raise SettingsError(
            f"{type(job.spec.task).__name__} is no sum over tokens, so a score has no parts; causal_lm, seq2seq_lm and "
            "token_classification are."
        )
    for sample in samples:
        if not 0 <= sample < len(job.splits[split]):
            raise SettingsError(
                f"sample {sample} is out of range: {split} has samples 0 … {len(job.splits[split]) - 1}"
            )
    trainer = job.trainer or default_trainer()
    found: list[Mapping[int, TokenRows]] = []
    for checkpoint, feature_set in zip(job.checkpoints, job.feature_sets[split], strict=True):
        with as_called(), uncompiled(job.model), leave_unchanged(job.model), quiet_lightning():
            checkpoint.load_into(job.model)
            module = job.module(_TokenFeaturizer, split, feature_set, range(0), StopRequest())
            assert isinstance(module, _TokenFeaturizer)
            module.samples, module.found = samples, {}
            predict(trainer, module, [])
            found.append(module.found)
    return found


class _TokenFeaturizer(Featurizer):
    """A featurizer of single samples, term by term."""

    samples: Sequence[int]
    found: dict[int, TokenRows]

    def predict_dataloader(self) -> DataLoader:
        self.fit()
        return self.data.loader([[sample] for sample in self.samples], pin_memory=self.device.type == "cuda")

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> TokenRows:  # type: ignore[override]
        with cast_anew(), requiring(self.model, self.spec.layout.by_name), batch_of(1), torch.enable_grad():
            rows = self.found[int(indexed.index[0])] = self._rows(indexed)
        return rows

    def _rows(self, indexed: IndexedBatch) -> TokenRows:
        task = self.fitted_task
        assert isinstance(task, SumOfMargins)
        summands, counted = task.summands(self.model, indexed.batch)
        positions = counted[0].nonzero()[:, 0]
        double = any(parameter.dtype == torch.float64 for parameter in self.model.parameters())
        features = self.projection.zeros(len(positions), torch.float64 if double else torch.float32)
        parameters = parameters_of(self.model, self.spec.layout.by_name)
        for row, position in enumerate(positions.tolist()):
            self._add(summands[0, position], parameters, features[row : row + 1])
        return TokenRows(positions.cpu().numpy() + task.shift, features.cpu().numpy())

    def _add(self, summand: Tensor, parameters: Mapping[str, Tensor], row: Tensor) -> None:
        grads = torch.autograd.grad(summand, list(parameters.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                dense = grad.to_dense() if grad.is_sparse else grad
                self.projection.add(DenseBlock(name, dense.detach().unsqueeze(0)), row)
