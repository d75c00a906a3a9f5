"""TRAK as an explainer for quanda, a library that evaluates data attribution (Bareeva et al. 2024).

Nothing else imports this module, since it needs quanda. Scores in a run directory need no explainer: quanda's metrics accept
them as tensors.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from trak_lightning.api import TRAK, PluginChoice
from trak_lightning.data.content import raw_bytes
from trak_lightning.errors import needed_for
from trak_lightning.model.checkpoints import CheckpointSource

with needed_for("trak_lightning.interop.quanda", "'trak-lightning[quanda]'"):
    from quanda.explainers import Explainer

LARGEST = 1e9
"""Largest self-influence after scaling. quanda adds a ten-thousandth of its position to each, to break ties."""


class TRAKExplainer(Explainer):
    """Explain with scores of `trak_lightning`, averaged over all checkpoints.

    >>> explainer = TRAKExplainer(model, train_dataset, checkpoints=["a.ckpt", "b.ckpt"], cache_dir="runs/quanda")
    >>> explainer.explain(images, labels)  # (m, n)

    `parameters`, `projector`, `extractor` and `seed` are those of `trak_lightning.TRAK`, and `scorer` is that of its `score`.

    Args:
        model: the model, on the device to use; put in eval mode.
        train_dataset: a map-style dataset of samples for `task`.
        task: ``image_classification`` or ``text_classification``.
        checkpoints: files in any format of `trak_lightning.model.weight_files`; None uses the current weights of the model.
        checkpoints_load_func: ``(model, file)`` loads a file in another format.
        cache_dir: features are kept in the run directory ``cache_dir/model_id``.
        model_id: name of this model, data and settings.
        batch_size: number of samples per gradient batch.
    """

    accepted_tasks: ClassVar[list[str]] = ["image_classification", "text_classification"]

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Dataset,
        task: str = "image_classification",
        checkpoints: str | Sequence[str] | None = None,
        checkpoints_load_func: Callable[[nn.Module, str], Any] | None = None,
        *,
        cache_dir: str | Path = "cache",
        model_id: str = "trak",
        batch_size: int = 64,
        parameters: Sequence[str] | None = None,
        projector: PluginChoice = "auto",
        extractor: PluginChoice = "auto",
        scorer: PluginChoice = "trak",
        seed: int = 0,
    ) -> None:
        files = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints or ())
        super().__init__(model, train_dataset, task, files or None, checkpoints_load_func)
        self._scorer = scorer
        self._batch_size = batch_size
        self._trak = TRAK(
            model.eval(),
            task=task,
            run_dir=Path(cache_dir) / model_id,
            parameters=parameters,
            projector=projector,
            extractor=extractor,
            seed=seed,
        )
        sources: list[CheckpointSource] = list(files)
        if checkpoints_load_func is not None:
            sources = [_loaded(model, checkpoints_load_func, file) for file in files]
        self._trak.featurize(train_dataset, sources or None, batch_size=batch_size)

    def explain(self, test_data: Tensor | Mapping[str, Tensor], targets: Sequence[int] | Tensor) -> Tensor:
        """Score the training samples for the model's output of the classes `targets` (m,) on `test_data`: (m, n)."""
        labels = torch.as_tensor(targets).cpu()
        data = _Samples(test_data, labels) if isinstance(test_data, Mapping) else TensorDataset(test_data.cpu(), labels)
        leaves = [*test_data.values()] if isinstance(test_data, Mapping) else [test_data]
        digest = hashlib.sha256()
        for leaf in (*leaves, labels):
            digest.update(raw_bytes(leaf))
        scores = self._trak.score(
            data, f"targets-{digest.hexdigest()[:16]}", scorer=self._scorer, batch_size=self._batch_size
        )
        return torch.from_numpy(np.array(scores.values)).to(self.device)

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Compute the self-influence of each training sample, (n,), scaled so that the largest is `LARGEST`."""
        found = self._trak.self_influence().self_influence.astype(np.float64)
        return torch.from_numpy(found * (LARGEST / max(float(found.max()), np.finfo(np.float64).tiny))).to(self.device)


class _Samples(Dataset):
    """A batch of named tensors and labels, as samples."""

    def __init__(self, batch: Mapping[str, Tensor], labels: Tensor) -> None:
        self._batch = {name: tensor.cpu() for name, tensor in batch.items()} | {"labels": labels}

    def __len__(self) -> int:
        return len(self._batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._batch.items()}


def _loaded(model: nn.Module, load: Callable[[nn.Module, str], Any], file: str) -> dict[str, Tensor]:
    """Return the weights that `load` puts into a copy of the model."""
    fresh = copy.deepcopy(model)
    load(fresh, file)
    return dict(fresh.state_dict())
