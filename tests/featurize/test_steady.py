"""Every row is what the checkpoint gives for the sample, whatever batches came before and whatever they have changed."""

import copy
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from trak_lightning import TRAK
from trak_lightning.errors import DataError, SampleDependenceError
from trak_lightning.tasks.base import Task

GENERATOR = torch.Generator().manual_seed(0)
DATA = [(torch.randn(4, generator=GENERATOR), number % 3) for number in range(60)]


class Chosen(Task):
    def output(self, model, batch):
        x, y = batch
        return model(x).gather(1, y[:, None])[:, 0]


class Remembering(nn.Module):
    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Linear(4, 6), nn.Linear(6, 3), forward
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("bank", torch.zeros(16, 6))
        self.count, self.memory = 0, deque([torch.zeros(6)], 4)

    def forward(self, x):
        return self.second(self.function(self, self.first(x).tanh()))


def counter(model, hidden):
    model.steps += 1
    return hidden * (1 + model.steps / 10)


def number(model, hidden):
    model.count += 1
    return hidden * (1 + 1e-3 * model.count)


def bank(model, hidden):
    mixed = hidden + model.bank.mean(0)
    model.bank = torch.cat([model.bank, hidden.detach()])[-16:]
    return mixed


def memory(model, hidden):
    mixed = hidden + torch.stack(list(model.memory)).mean(0)
    model.memory.append(hidden.detach().mean(0))
    return mixed


def attribute_on_demand(model, hidden):
    model.last = getattr(model, "last", torch.zeros(6))
    mixed = hidden + model.last
    model.last = hidden.detach().mean(0)
    return mixed


def expected(model, task, collate=default_collate, data=DATA):
    rows = []
    for sample in data:
        fresh = copy.deepcopy(model)
        task.output(fresh, collate([sample])).sum().backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in fresh.parameters()]))
    return torch.stack(rows)


def rows(model, task, path, data=DATA, collate=default_collate, workers=0):
    trak = TRAK(model.eval(), task, path, projector="identity")
    trak.featurize(DataLoader(data, batch_size=8, collate_fn=collate, num_workers=workers))
    return torch.from_numpy(np.asarray(trak.features()[:]))


@pytest.mark.parametrize("forward", [counter, number, bank, memory, attribute_on_demand])
def test_a_model_that_remembers_batches_sees_each_as_the_first(forward, tmp_path):
    model = Remembering(forward)
    wanted = expected(model, Chosen())
    torch.testing.assert_close(rows(model, Chosen(), tmp_path), wanted, rtol=1e-4, atol=1e-5)
    assert model.steps == 0
    assert model.count == 0
    assert len(model.memory) == 1
    assert not hasattr(model, "last")


class Shifting(Chosen):
    """Changes the batch: inputs, labels, and which entries there are."""

    def output(self, model, batch):
        batch[0].sub_(0.5)
        batch[1].add_(1).remainder_(3)
        return super().output(model, [batch.pop(0), batch.pop()])


def test_a_batch_that_the_task_changes_is_collated_again(tmp_path):
    model = nn.Linear(4, 3)
    found = rows(model, Shifting(), tmp_path, collate=lambda samples: list(default_collate(samples)))
    wanted = expected(model, Shifting(), lambda samples: list(default_collate(samples)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Reuses:
    """Fills the same memory with every batch."""

    def __init__(self):
        self.memory = torch.zeros(8, 4)

    def __call__(self, samples):
        for place, (x, _) in enumerate(samples):
            self.memory[place] = x
        return self.memory[: len(samples)], torch.tensor([y for _, y in samples])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_may_reuse_its_memory(workers, tmp_path):
    model = nn.Linear(4, 3)
    found = rows(model, Chosen(), tmp_path, collate=Reuses(), workers=workers)
    torch.testing.assert_close(found, expected(model, Chosen()), rtol=1e-4, atol=1e-5)


def by_first_entry(samples):
    return default_collate(sorted(samples, key=lambda sample: float(sample[0][0])))


def replacing(samples):
    kept = [sample for sample in samples if float(sample[0][0]) < 2 or len(samples) == 1]
    return default_collate([*kept, *kept[: len(samples) - len(kept)]])


@pytest.mark.parametrize("collate", [by_first_entry, replacing])
def test_a_late_batch_that_is_reordered_or_refilled_is_refused_by_name(collate, tmp_path):
    data = [(x.clamp(-1, 1), y) for x, y in DATA * 4]
    data.sort(key=lambda sample: float(sample[0][0]))
    data[211:213] = [(torch.full((4,), 3.0), 0), (torch.full((4,), -2.0), 1)]
    with pytest.raises(SampleDependenceError, match=r"sample 2\d\d .*collate function .*\[0\]"):
        rows(nn.Linear(4, 3), Chosen(), tmp_path, data, collate)


class SometimesRandom:
    def __getitem__(self, index):
        x, y = DATA[index]
        return (x + torch.randn(4) if index % 10 in (3, 4, 8) else x), y

    def __len__(self):
        return len(DATA)


def test_a_dataset_that_is_random_for_some_samples_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"sample \d*[348] is different when it is read again"):
        rows(nn.Linear(4, 3), Chosen(), tmp_path, SometimesRandom())


def test_a_batch_with_a_label_that_none_had_is_verified(tmp_path):
    def mixing(model, hidden):
        rare = (model.labels == 2).float()[:, None]
        return hidden + (rare * hidden).sum(0)

    class Labeled(Chosen):
        def output(self, model, batch):
            model.labels = batch[1]
            return super().output(model, batch)

    data = [(x, 0) for x, _ in DATA * 4]
    data[170] = (data[170][0], 2)
    model = Remembering(mixing)
    found = rows(model, Labeled(), tmp_path, data)  # of this batch one sample at a time
    torch.testing.assert_close(found, expected(model, Labeled(), data=data), rtol=1e-4, atol=1e-5)
