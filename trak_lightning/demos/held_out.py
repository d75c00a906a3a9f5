"""What the demos' data have in common: targets held out of one body of samples, and two loaders."""

from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, default_collate

from trak_lightning.errors import DataError


class HeldOut(L.LightningDataModule):
    """A training set and, drawn by `seed`, a test set of targets. Subclasses make ``train_set`` and ``test_set`` in ``setup``.

    Args:
        num_targets: samples held out as the test set.
        batch_size: of both loaders.
        seed: of the split.
    """

    train_set: Dataset
    test_set: Dataset

    def __init__(self, num_targets: int, batch_size: int, seed: int) -> None:
        super().__init__()
        self.num_targets = num_targets
        self.batch_size = batch_size
        self.seed = seed

    @staticmethod
    def collate(samples: list[Any]) -> Any:
        """A batch of samples."""
        return default_collate(samples)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, collate_fn=self.collate)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size, collate_fn=self.collate)

    def require_targets(self, most: int) -> None:
        """Refuse a number of targets that the data does not have.

        Raises:
            DataError: if ``num_targets`` is not in 1 … `most`.
        """
        if not 0 < self.num_targets <= most:
            raise DataError(f"num_targets must lie in 1 … {most}, got {self.num_targets}")

    def split(self, count: int) -> tuple[list[int], list[int]]:
        """Positions of training samples and of targets, of `count` samples, each in an order drawn by ``seed``.

        Raises:
            DataError: if nothing would be left to train on.
        """
        self.require_targets(count - 1)
        order = np.random.default_rng(self.seed).permutation(count).tolist()
        return order[self.num_targets :], order[: self.num_targets]
