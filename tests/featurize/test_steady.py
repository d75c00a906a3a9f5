"""Every row is what the checkpoint gives for the sample, whatever batches came before and whatever they have changed."""

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from trak_lightning import TRAK
from trak_lightning.errors import DataError, SampleDependenceError, UnsupportedModelError
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
        self.array, self.random = np.zeros(1), random.Random(0)
        self.nested = [{"passes": 0, "sum": (torch.zeros(6),)}]

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


def array(model, hidden):
    model.array += 1
    return hidden * (1 + model.array.item() / 10)


def attribute_on_demand(model, hidden):
    model.last = getattr(model, "last", torch.zeros(6))
    mixed = hidden + model.last
    model.last = hidden.detach().mean(0)
    return mixed


def nested(model, hidden):
    (state,) = model.nested
    state["passes"] += 1
    state["sum"][0].add_(1e-3)
    return (hidden + state["sum"][0]) * (1 + 1e-3 * state["passes"])


def expected(model, task, collate=default_collate, data=DATA):
    rows = []
    for sample in data:
        fresh = copy.deepcopy(model)
        task.output(fresh, collate([sample])).sum().backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in fresh.parameters()]))
    return torch.stack(rows)


def rows(model, task, path, data=DATA, collate=default_collate, workers=0):
    trak = TRAK(model.eval(), task, path, projector="identity")
    start = "fork" if workers else None  # another start imports this file, which is in no package
    loader = DataLoader(data, batch_size=8, collate_fn=collate, num_workers=workers, multiprocessing_context=start)
    trak.featurize(loader)
    return torch.from_numpy(np.asarray(trak.features()[:]))


@pytest.mark.parametrize("forward", [counter, number, bank, memory, array, attribute_on_demand, nested])
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


class Doubling(Chosen):
    """Changes arrays, which the dataset holds."""

    def output(self, model, batch):
        for x, _ in batch:
            x *= 2
        return super().output(model, [torch.tensor(np.array(part)) for part in zip(*batch, strict=True)])


@pytest.mark.parametrize("size", [1, 8])
def test_arrays_that_the_task_changes_are_those_of_the_dataset_in_every_pass(size, tmp_path):
    data, model = [(x.numpy().copy(), y) for x, y in DATA[:10]], nn.Linear(4, 3)
    trak = TRAK(model.eval(), Doubling(), tmp_path, projector="identity")
    trak.featurize(DataLoader(data, batch_size=size, collate_fn=list))
    wanted = expected(model, Chosen(), data=[(2 * x, y) for x, y in DATA[:10]])
    torch.testing.assert_close(torch.from_numpy(trak.features()[:]), wanted, rtol=1e-4, atol=1e-5)


class Keeping(Chosen):
    """Needs for the loss weights what it has computed for the outputs, and changes what it is given."""

    def output(self, model, batch):
        self._output = super().output(model, batch)
        return self._output

    def loss_weight(self, model, batch, output):
        output.zero_()
        return 2 * torch.sigmoid(-self._output.detach())


@pytest.mark.parametrize("extractor", ["hooks", "iterative"])
def test_a_task_that_keeps_what_its_loss_weights_need_has_seen_their_batch_last(extractor, tmp_path):
    trak = TRAK(nn.Linear(4, 3).eval(), Keeping(), tmp_path, projector="identity", extractor=extractor)
    trak.featurize(DataLoader(DATA, batch_size=8))
    found = trak.features()
    assert found.output[:].all()
    np.testing.assert_allclose(found.loss_weight[:], 2 / (1 + np.exp(found.output[:])), rtol=1e-5)
    np.testing.assert_allclose(found.curvature[:], found.loss_weight[:] / 2 * (1 - found.loss_weight[:] / 2), rtol=1e-4)


class OfItsWorker(Dataset):
    """Gives other samples in the second process of a loader."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        x, y = DATA[index]
        worker = get_worker_info()
        return (x if worker is None or worker.id == 0 else 2 * x), y


def test_a_dataset_that_depends_on_the_worker_is_refused(tmp_path):
    with pytest.raises(DataError, match="on the worker process that reads"):
        rows(nn.Linear(4, 3), Chosen(), tmp_path, OfItsWorker(), workers=2)


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

    data = [(x, 0) for x, _ in DATA * 4]
    data[170] = (data[170][0], 2)
    model = Remembering(mixing)
    with pytest.raises(SampleDependenceError, match=r"sample 1(6[89]|7\d) .* given to second"):
        rows(model, Labeled(), tmp_path, data)


def by_new_data(teacher, student):
    teacher.data = teacher.data * 0.9 + student.data * 0.1


def in_place(teacher, student):
    teacher.mul_(0.9).add_(student, alpha=0.1)


def behind_the_version(teacher, student):
    teacher.data.mul_(0.9).add_(student.data, alpha=0.1)


class Momentum(nn.Module):
    """A teacher that follows the student in every pass, from the batch on that has a label `start`."""

    def __init__(self, update, start):
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher, self.update, self.start = nn.Linear(4, 3), nn.Linear(4, 3), update, start
        self.teacher.requires_grad_(False)

    def forward(self, x):
        if self.start is None or bool((self.labels == self.start).any()):
            with torch.no_grad():
                for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    self.update(teacher, student)
        return self.student(x) * self.teacher(x).tanh()


class Labeled(Chosen):
    def output(self, model, batch):
        model.labels = batch[1]
        return super().output(model, batch)


@pytest.mark.parametrize("update", [by_new_data, in_place, behind_the_version])
def test_parameters_that_a_forward_pass_changes_are_those_of_the_checkpoint_in_every_pass(update, tmp_path):
    model = Momentum(update, None)
    before = model.teacher.weight.clone()
    found = rows(model, Labeled(), tmp_path)
    assert torch.equal(model.teacher.weight, before)
    model.teacher.requires_grad_(True)  # for the rows of all parameters that `expected` collects
    wanted = expected(model, Labeled())[:, : found.shape[1]]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", [by_new_data, in_place])
def test_a_parameter_that_only_a_later_pass_changes_is_refused_by_name(update, tmp_path):
    data = [(x, 0) for x, _ in DATA * 2]
    data[90] = (data[90][0], 1)
    with pytest.raises(
        UnsupportedModelError, match=r"changed parameter teacher\.weight of Momentum.*if self\.training"
    ):
        rows(Momentum(update, 1), Labeled(), tmp_path, data)


DRAWS = {
    "torch": torch.rand,
    "numpy": lambda count: torch.from_numpy(np.random.rand(count)),  # noqa: NPY002
    "python": lambda count: torch.tensor([random.random() for _ in range(count)]),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_rare_random_number_is_refused_by_name(draw, tmp_path):
    def forward(model, hidden):
        return hidden * (draw(len(hidden)) > 0.02).to(hidden)[:, None]

    with pytest.raises(SampleDependenceError, match=r"sample \d+ differs by .* when it is computed again"):
        rows(Remembering(forward), Chosen(), tmp_path, DATA * 8)


def test_a_generator_that_a_module_holds_is_watched(tmp_path):
    def forward(model, hidden):
        return hidden * (1 + (model.random.random() < 0.1))

    with pytest.raises(SampleDependenceError, match=r"sample \d+ differs by .* when it is computed again"):
        rows(Remembering(forward), Chosen(), tmp_path, DATA * 4)


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand_like(grad)


def test_a_random_gradient_of_an_output_that_is_not_is_refused(tmp_path):
    with pytest.raises(SampleDependenceError, match=r"gradient of sample \d+ differs by .* when it is computed again"):
        rows(Remembering(lambda model, hidden: Noisy.apply(hidden)), Chosen(), tmp_path)


def test_arrays_of_every_kind_may_be_attributes(tmp_path):
    model = Remembering(array)
    frozen = np.zeros(2)
    frozen.flags.writeable = False
    model.others = [np.array([None, "a"]), np.zeros(2, np.longdouble), np.zeros(2, ">f8"), np.arange(3)[::-1], frozen]
    torch.testing.assert_close(rows(model, Chosen(), tmp_path), expected(model, Chosen()), rtol=1e-4, atol=1e-5)


def swapping(model, hidden):
    model.first, model.other = model.other, model.first
    return hidden


def replacing_a_parameter(model, hidden):
    model.first.weight = nn.Parameter(model.first.weight * 0.9)
    return hidden


def making(model, hidden):
    model.made = getattr(model, "made", None) or nn.Linear(6, 6)
    return model.made(hidden)


@pytest.mark.parametrize(
    ("forward", "name"), [(swapping, "first|other"), (replacing_a_parameter, "weight"), (making, "made")]
)
def test_modules_that_a_forward_pass_makes_or_replaces_are_refused_by_name(forward, name, tmp_path):
    model = Remembering(forward)
    model.other = nn.Linear(4, 6)
    before = dict(model.named_parameters())
    with pytest.raises(UnsupportedModelError, match=f"made or replaced '({name})' of Remembering"):
        rows(model, Chosen(), tmp_path)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_random_numbers_drawn_in_vain_change_nothing(tmp_path):
    def forward(model, hidden):
        torch.rand(())  # as before a layer that is dropped only in train mode
        return hidden

    model = Remembering(forward)
    torch.testing.assert_close(rows(model, Chosen(), tmp_path), expected(model, Chosen()), rtol=1e-4, atol=1e-5)


def test_gradients_that_the_user_has_accumulated_are_kept(tmp_path):
    model = nn.Linear(4, 3)
    model(torch.ones(1, 4)).sum().backward()
    rows(model, Chosen(), tmp_path)
    assert model.weight.grad.tolist() == [[1.0] * 4] * 3
