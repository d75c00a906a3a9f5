"""Samples of several sizes that are collated into a batch that looks like all others; and models that need their batch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from trak_lightning import TRAK
from trak_lightning.data.content import extent
from trak_lightning.errors import SampleDependenceError, WrongRowsError
from trak_lightning.tasks.base import Task


class Sum(Task):
    def output(self, model, batch):
        return model(batch).sum(1)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Linear(4, 4), nn.Linear(4, 2), function
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        return self.function(self, x)


def rows(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 4, generator=generator) for length in lengths]


def padded(samples):
    return pad_sequence(samples, batch_first=True)


def longest_first(samples):
    return padded(sorted(samples, key=len, reverse=True))


def average(model, x):
    return model.second(model.first(x).tanh().mean(1))


def featurize(function, samples, path, collate=torch.stack, **options):
    trak = TRAK(Apply(function).eval(), Sum(), path, projector="identity", **options)
    trak.featurize(DataLoader(samples, batch_size=3, collate_fn=collate))
    return trak


@pytest.mark.parametrize("collate", [padded, longest_first])
@pytest.mark.parametrize("late", [(3, 5, 4), (3, 5, 5), (5, 4, 3)])
def test_the_only_uneven_batch_among_many_is_verified(collate, late, tmp_path):
    if collate is longest_first and late == (5, 4, 3):
        late = (4, 3, 5)
    with pytest.raises(SampleDependenceError, match="sample 6[012] in a batch of one"):
        featurize(average, rows(*[5] * 60, *late, *[5] * 30), tmp_path, collate)


class PerBatch(Task):
    """A sum over tokens, divided by the mean number of those that count in the batch."""

    loss_function = "linear"

    def output(self, model, batch):
        x, held = batch
        held = x.any(-1) if held.ndim == 3 else (held > 0) * held.abs()
        return (model(x).sum(-1) * held).flatten(1).sum(1) / held.sum() * len(x)


HELD = {
    "mask": torch.tensor([1.0, 1.0, 0.0]),
    "labels": torch.tensor([1, 1, -100]),
    "weight": torch.tensor([0.5]),
    "vectors": torch.tensor([[1.0], [1.0], [0.0]]),
}


@pytest.mark.parametrize("kind", HELD)
def test_the_only_batch_that_is_padded_in_the_dataset_or_weighted_is_verified(kind, tmp_path):
    usual = torch.ones_like(HELD[kind])
    samples = [(row[: len(usual)], HELD[kind] if at == 61 else usual) for at, row in enumerate(rows(*[3] * 90))]
    if kind == "vectors":
        samples = [(row * held, torch.zeros(1, 1)) for row, held in samples]
    trak = TRAK(Apply(lambda model, x: model.second(model.first(x).tanh())), PerBatch(), tmp_path, projector="identity")
    with pytest.raises(SampleDependenceError, match="sample 6[012] in a batch of one"):
        trak.featurize(DataLoader(samples, batch_size=3))


def test_the_extent_of_a_sample_counts_what_is_padded_or_sorted():
    nested = {"ids": [1, 2, 3], "text": "four", "image": np.zeros((2, 5)), "pair": (torch.zeros(3, 2), 1), "none": None}
    assert extent(nested) == 3 + 4 + 10 + 6 + 1 + 1
    cycle = []
    cycle.append(cycle)
    assert extent(cycle) == 1


def two_largest(model, x):
    hidden = model.first(x)
    return model.second(hidden + hidden.sum(1).topk(2).values.sum())


def two_doubled(model, x):
    hidden = model.first(x)
    chosen = hidden.sum(1).topk(2).indices
    return model.second(hidden + torch.zeros(len(x), 1).index_fill(0, chosen, 1.0) * hidden)


@pytest.mark.parametrize("function", [two_largest, two_doubled])
def test_a_model_that_cannot_compute_a_sample_alone_is_refused_by_name(function, tmp_path):
    with pytest.raises(
        SampleDependenceError, match=r"cannot compute sample \d in a batch of one.*selected index k out of range"
    ):
        featurize(function, list(torch.randn(9, 4)), tmp_path)


def test_a_running_mean_in_eval_mode_is_refused_and_the_buffer_is_as_it_was(tmp_path):
    def centered(model, x):
        hidden = model.first(x)
        model.mean = 0.5 * model.mean + 0.5 * hidden.mean(0).detach()
        return model.second((hidden - model.mean).tanh())

    model = Apply(centered).eval()
    with pytest.raises(SampleDependenceError):
        TRAK(model, Sum(), tmp_path, projector="identity").featurize(DataLoader(list(torch.randn(9, 4)), batch_size=3))
    assert model.mean.tolist() == [0.0] * 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_of_the_strided_layout(tmp_path):
    def each(model, x):
        return torch.stack([model.second(part.mean(0)) for part in model.first(x).unbind()])

    samples = rows(3, 3, 3, 2, 1, 5)
    trak = featurize(each, samples, tmp_path, torch.nested.nested_tensor)
    for sample, row in zip(samples, trak.features()[:], strict=True):
        model = Apply(each)
        model(torch.nested.nested_tensor([sample])).sum().backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        torch.testing.assert_close(torch.from_numpy(np.asarray(row)), expected, rtol=1e-5, atol=1e-6)


def last_sees_others(model, x):
    hidden = model.first(x).tanh()
    return model.second(torch.cat([hidden[:-1], hidden[-1:] + 0.1 * hidden[:-1].sum(0)]))


def with_a_capacity(model, x):
    chosen = (model.first(x)[:, 0] > 0).long()
    earlier = torch.tril(chosen == chosen[:, None], -1).sum(1)
    return model.second(x * (earlier < 5)[:, None] + x)


@pytest.mark.parametrize("function", [last_sees_others, with_a_capacity])
def test_all_samples_of_a_verified_batch_are_compared_with_other_batches(function, tmp_path):
    trak = TRAK(Apply(function).eval(), Sum(), tmp_path, projector="identity")
    with pytest.raises(SampleDependenceError, match=r"sample \d+ in a batch of one"):
        trak.featurize(DataLoader(list(torch.randn(16, 4)), batch_size=16))


def hardest(model, batch):
    """A loss that leaves out the easiest quarter of a batch."""
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    kept = loss.topk(max(1, 3 * len(loss) // 4)).indices
    return torch.zeros_like(loss).index_put((kept,), loss[kept])


def hinge(model, batch):
    """A loss that is zero for samples beyond the margin, whatever batch they are in."""
    return nn.functional.multi_margin_loss(5 * model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_that_is_zero_only_in_its_batch_is_refused(seed, model, train_set, tmp_path):
    def trak(loss):
        return TRAK(
            model, {"name": "loss", "function": loss}, tmp_path / loss.__name__, projector="identity", seed=seed
        )

    with pytest.raises(SampleDependenceError, match="differs by"):
        trak(hardest).featurize(train_set, batch_size=10)
    found = trak(hinge)
    assert found.featurize(train_set, batch_size=10) == 50
    assert 1 < (found.features()[:] == 0).all(1).sum() < 45


def mixing_if_large(model, x):
    hidden = model.first(x)
    return model.second(
        hidden + hidden.mean(0) * 0 if x.int().max() < 9 else hidden + hidden.mean(0) * 0 + hidden.mean(0)
    )


def test_a_branch_of_known_operations_is_verified(tmp_path):
    samples = list(torch.randn(60, 4).clamp(-3, 3))
    samples[40][0] = 10.0
    with pytest.raises(SampleDependenceError, match=r"sample (39|4[01]) in a batch of one"):
        featurize(mixing_if_large, samples, tmp_path)


class Letters(nn.Module):
    """Lays the letters of all texts end to end: no tensor of the batch shows where the samples are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first, self.second = nn.Embedding(26, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, texts):
        letters = torch.tensor([ord(letter) - ord("a") for text in texts for letter in text])
        owner = torch.tensor([place for place, text in enumerate(texts) for _ in text])
        return self.second(torch.zeros(len(texts), 4).index_add(0, owner, self.first(self.table(letters)).tanh()))


TEXTS = ["abc"] * 6 + ["de", "fghi", "klm", "n", "opqrs", "tuv", "w", "xy", "zabcde"]


def test_rows_of_a_kind_that_turns_out_wrong_are_computed_again(tmp_path, caplog):
    model = Letters().eval()
    trak = TRAK(model, Sum(), tmp_path, projector="identity")
    trak.featurize(DataLoader(TEXTS, batch_size=3, collate_fn=list), block_size=3)
    assert "all rows of 'train'" in caplog.text
    for text, row in zip(TEXTS, trak.features()[:], strict=True):
        grads = torch.autograd.grad(model([text]).sum(), list(model.parameters()))
        np.testing.assert_allclose(row, torch.cat([grad.flatten() for grad in grads]), rtol=1e-4, atol=1e-5)


def test_without_another_way_rows_of_such_a_kind_are_deleted(tmp_path):
    trak = TRAK(Letters().eval(), Sum(), tmp_path, projector="identity", extractor="hooks")
    with pytest.raises(WrongRowsError, match=r"'hooks' computed wrong gradients.*'iterative'.*deleted: 'train'"):
        trak.featurize(DataLoader(TEXTS, batch_size=3, collate_fn=list), block_size=3)
    assert trak.store.list() == []
