"""A dataset that grows."""

from torch.utils.data import TensorDataset

from trak_lightning.demos import DigitsDataModule


class SomeDigits(DigitsDataModule):
    """The first training images, and the first of 60 targets."""

    def __init__(self, num_train: int, first_targets: int = 60, label_noise: float = 0.0) -> None:
        super().__init__(60, label_noise=label_noise)
        self.num_train, self.first_targets = num_train, first_targets

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set = TensorDataset(*self.train_set[: self.num_train])
        self.test_set = TensorDataset(*self.test_set[: self.first_targets])
