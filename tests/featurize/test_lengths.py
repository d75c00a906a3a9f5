"""Batches of samples of similar length: less padding, and the same rows at the same places."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from trak_lightning import TRAK
from trak_lightning.featurize.batches import ClaimedBatches
from trak_lightning.stores.base import FeatureSpec
from trak_lightning.stores.memory import MemorySet


class Sequences(torch.utils.data.Dataset):
    def __init__(self, size, known=True):
        generator = torch.Generator().manual_seed(0)
        self.samples = [torch.randn(1 + number * 7 % 11, 3, generator=generator) for number in range(size)]
        if known:
            self.lengths = [len(sample) for sample in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"x": self.samples[index], "labels": torch.tensor([float(index % 2)])}


SEEN = set()
"""The padded lengths of all batches."""


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)

    def forward(self, x):
        SEEN.add(x.shape[1])
        return self.layer(x).tanh().sum(1)


def collate(samples):
    return {
        "x": pad_sequence([each["x"] for each in samples], batch_first=True),
        "labels": torch.stack([each["labels"] for each in samples]),
    }


def rows(model, folder, *sizes, known=True):
    torch.manual_seed(0)
    trak = TRAK(model.eval(), "regression", folder, projector="identity")
    for size in sizes:
        trak.featurize(DataLoader(Sequences(size, known), 4, collate_fn=collate), block_size=8, grow=size != sizes[0])
    return trak.features("train")[:], trak.features("train").output[:]


@pytest.mark.parametrize("sizes", [(22,), (11, 22)], ids=["at once", "grown"])
def test_rows_are_stored_in_the_order_of_the_dataset(sizes, tmp_path):
    torch.manual_seed(1)
    model = Summed()
    features, output = rows(model, tmp_path / "sorted", *sizes)
    expected = rows(model, tmp_path / "plain", *sizes, known=False)
    np.testing.assert_allclose(features, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output, expected[1], rtol=1e-4, atol=1e-6)
    assert len(np.unique(output)) == 22


def test_batches_of_a_block_begin_with_the_longest_samples():
    lengths = np.array([1, 9, 2, 8, 3, 7, 4, 6, 5, 1])
    feature_set = MemorySet(FeatureSpec("train", "a", 10, 1, 2, 8))
    assert list(ClaimedBatches(feature_set, [0, 1], lengths)) == [[1, 3], [5, 7], [6, 4], [2, 0], [8, 9]]


def test_a_check_tries_batches_of_every_length(tmp_path):
    SEEN.clear()
    findings = TRAK(Summed().eval(), "regression", tmp_path, projector="identity").check(
        DataLoader(Sequences(44), 4, collate_fn=collate)
    )
    assert {each.topic: each.text for each in findings}["lengths"].startswith("1 to 11, 6 on average")
    assert {1, 11} <= SEEN
