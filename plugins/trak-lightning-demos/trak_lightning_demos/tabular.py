"""Data sets that ship with scikit-learn and are not about classes: a number, a yes or no, or several of these to predict; and a
small network for them."""

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
"""What is asked of an image of a digit, and the digits for which the answer is yes."""


class TabularMLP(OneCycle):
    """Two hidden layers.

    Args:
        features: numbers in a row of the table.
        outputs: numbers that are predicted, or logits.
        loss: ``squared``, or ``logistic`` for yes and no.
        width: of the hidden layers.
        lr: peak learning rate.
        weight_decay: of AdamW.
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
        """(B, outputs) of rows (B, features)."""
        predicted: Tensor = self.net(rows)
        return predicted

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        rows, labels = batch
        loss: Tensor = self.loss(self(rows), labels)
        return loss


class TabularDataModule(HeldOut):
    """Pairs (row, label): rows (p,) and numbers to predict standardised, yes and no as 1 and 0; labels (1,), or (4,) for
    ``digit_properties``. A fixed split by `seed`.

    Args:
        dataset: ``diabetes`` (442 patients, the progression of their disease), ``breast_cancer`` (569 tumours, benign or not), or
            ``digit_properties`` (1,797 images of 8×8 pixels: is the digit even, has it a closed loop, has it a straight
            stroke, is it larger than four?).
        num_targets: rows held out as the test set; the others are the training set.
        batch_size: of both loaders.
        seed: of the split.
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
        rows = _standardised(rows, train)
        if self.dataset == "diabetes":
            labels = _standardised(labels, train)
        self.train_set, self.test_set = (TensorDataset(rows[part], labels[part]) for part in (train, test))


def _load(dataset: Dataset) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Rows, labels, and the names of columns and of classes."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError("this data comes with scikit-learn: pip install 'trak-lightning[demos]'") from error
    if dataset == "digit_properties":
        found = datasets.load_digits()
        labels = torch.tensor([[digit in those for those in DIGIT_PROPERTIES.values()] for digit in found.target])
        classes = list(DIGIT_PROPERTIES)
    else:
        found = getattr(datasets, f"load_{dataset}")()
        labels = torch.tensor(found.target).unsqueeze(1)
        classes = [str(name) for name in found.get("target_names", [])]
    return torch.tensor(found.data, dtype=torch.float32), labels.float(), list(found.feature_names), classes


def _standardised(values: Tensor, train: Tensor) -> Tensor:
    """By column, with mean and deviation of the training rows; a constant column becomes 0."""
    mean, std = values[train].mean(0), values[train].std(0)
    return (values - mean) / torch.where(std > 0, std, 1)
