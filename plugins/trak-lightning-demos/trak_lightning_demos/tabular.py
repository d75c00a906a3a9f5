"""Regression, binary and multilabel data sets that scikit-learn contains, and a small network for them."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trak_lightning.demos.held_out import HeldOut
from trak_lightning.errors import DataError
from trak_lightning_demos.finetuning import OneCycle

Dataset: TypeAlias = Literal["diabetes", "breast_cancer", "digit_properties"]

DIGIT_PROPERTIES = {
    "even": {0, 2, 4, 6, 8},
    "closed loop": {0, 6, 8, 9},
    "straight stroke": {1, 4, 5, 7},
    "large": {5, 6, 7, 8, 9},
}
"""Yes-or-no questions about an image of a digit, and the digits for which the answer is yes."""


class TabularMLP(OneCycle):
    """Train a network with two hidden layers.

    Args:
        features: number of features of a row.
        outputs: number of predicted values or logits.
        loss: ``squared`` for regression, ``logistic`` for binary labels.
        width: size of the hidden layers.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self,
        features: int,
        outputs: int = 1,
        loss: Literal["squared", "logistic"] = "squared",
        width: int = 32,
        lr: float = 1e-2,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        self.loss = {"squared": nn.MSELoss(), "logistic": nn.BCEWithLogitsLoss()}[loss]
        self.net = nn.Sequential(
            nn.Linear(features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (B, features) to (B, outputs)."""
        predicted: Tensor = self.net(rows)
        return predicted

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        rows, labels = batch
        loss: Tensor = self.loss(self(rows), labels)
        return loss


class TabularDataModule(HeldOut):
    """Pairs (row, label), split by `seed`: rows (p,) and regression labels are standardized, binary labels are 0 and 1; labels have
    the shape (1,), or (4,) for ``digit_properties``.

    Args:
        dataset: ``diabetes`` (442 patients, the progression of their disease), ``breast_cancer`` (569 tumors, benign or not), or
            ``digit_properties`` (1,797 images of 8×8 pixels: is the digit even, does it have a closed loop, does it have a
            straight stroke, is it larger than four?).
        num_targets: number of rows held out as the test set; the others are the training set.
        batch_size: batch size of both loaders.
        seed: seed of the split.
    """

    def __init__(self, dataset: Dataset, num_targets: int = 100, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__(num_targets, batch_size, seed)
        self.dataset = dataset

    def render(self, sample: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """An image of a digit as an image."""
        row, label = sample
        return (row.view(8, 8) if self.dataset == "digit_properties" else row), label

    def setup(self, stage: str | None = None) -> None:
        rows, labels, self.feature_names, self.class_names = _load(self.dataset)
        self.require_targets(len(rows) - 1)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        test, train = order[: self.num_targets], order[self.num_targets :]
        rows = _standardized(rows, train)
        if self.dataset == "diabetes":
            labels = _standardized(labels, train)
        self.train_set, self.test_set = (TensorDataset(rows[part], labels[part]) for part in (train, test))


def _load(dataset: Dataset) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Rows, labels, and the names of columns and of classes."""
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError("this data comes with scikit-learn: pip install 'trak-lightning[demos]'") from None
    if dataset == "digit_properties":
        found = datasets.load_digits()
        labels = torch.tensor([[digit in those for those in DIGIT_PROPERTIES.values()] for digit in found.target])
        classes = list(DIGIT_PROPERTIES)
    else:
        found = getattr(datasets, f"load_{dataset}")()
        labels = torch.tensor(found.target).unsqueeze(1)
        classes = [str(name) for name in found.get("target_names", [])]
    return torch.tensor(found.data, dtype=torch.float32), labels.float(), list(found.feature_names), classes


def _standardized(values: Tensor, train: Tensor) -> Tensor:
    """Standardize each column with the mean and standard deviation of the training rows; a constant column becomes 0."""
    mean, std = values[train].mean(0), values[train].std(0)
    return (values - mean) / torch.where(std > 0, std, 1)
