"""A batch is compared with its samples collated alone: every entry that holds another sample is named."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from trak_lightning.data import loading
from trak_lightning.data.collation_check import differences
from trak_lightning.data.loading import CollateIndexed

SAMPLES = [(torch.arange(1.0 + n, 4.0 + n + n % 3), n % 4) for n in range(6)]


def padded(samples):
    return {"x": pad_sequence([x for x, _ in samples], batch_first=True), "y": torch.tensor([y for _, y in samples])}


def padded_left(samples):
    longest = max(len(x) for x, _ in samples)
    return torch.stack([torch.cat([torch.zeros(longest - len(x)), x]) for x, _ in samples])


def time_first(samples):
    return pad_sequence([x for x, _ in samples])


def end_to_end(samples):
    lengths = [len(x) for x, _ in samples]
    owner = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths))
    return {"x": torch.cat([x for x, _ in samples]), "owner": owner, "count": len(samples)}


def lists(samples):
    return [{"x": x, "y": y} for x, y in samples]


class Batch:
    def __init__(self, samples):
        self.x, self.names = time_first(samples), [f"{y}" for _, y in samples]


LAYOUTS = [padded, padded_left, time_first, end_to_end, lists, Batch]


def compared(collate, order):
    batch = collate([SAMPLES[position] for position in order])
    alone = [collate([sample]) for sample in SAMPLES]
    return differences(batch, alone, range(len(SAMPLES)), len(SAMPLES))


@pytest.mark.parametrize("collate", LAYOUTS)
def test_samples_in_their_order_do_not_differ(collate):
    assert compared(collate, range(6)) == {}


@pytest.mark.parametrize("collate", LAYOUTS)
def test_samples_that_changed_places_do(collate):
    found = compared(collate, [0, 4, 2, 3, 1, 5])
    assert found
    assert all(set(np.flatnonzero(differs)) >= {1, 4} for differs in found.values())


@pytest.mark.parametrize("collate", LAYOUTS)
def test_a_sample_in_place_of_another_does(collate):
    found = compared(collate, [0, 1, 2, 0, 4, 5])
    assert found
    assert all(differs[3] for differs in found.values())


@pytest.mark.parametrize(("seconds", "twice"), [(60.0, 4), (-1.0, 1)])
def test_a_loader_compares_each_batch_and_reads_samples_twice_while_there_is_time(seconds, twice, monkeypatch):
    monkeypatch.setattr(loading, "FREE_SECONDS", seconds)
    readings = []

    class Drifting:
        def __getitem__(self, index):
            readings.append(index)
            return torch.tensor([float(len(readings))])

    def reverse(samples):
        return default_collate(samples[::-1])

    dataset = Drifting()
    found = CollateIndexed(dataset, reverse)([(index, dataset[index]) for index in range(4)])
    assert set(found.differs) == {"the batch"}
    assert found.differs["the batch"].all() == (twice == 4)
    assert found.changed_on_reread.sum() == twice
    assert len(readings) == 4 + twice
