"""Stored rows are reused only where samples, model, task and code are those that they were computed from."""

import os
import signal
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, TensorDataset, default_collate
from torch.utils.data.dataloader import DataLoader

from trak_lightning import TRAK, Task
from trak_lightning.errors import (
    IncompatibleRunError,
    SampleDependenceError,
    SettingsError,
    StaleRowsError,
    TerminatedError,
)
from trak_lightning.featurize.compute import BlockComputer
from trak_lightning.featurize.module import Featurizer
from trak_lightning.featurize.reuse import stored_batches
from trak_lightning.stores.hdf5 import HDF5Set
from trak_lightning.stores.memory import MemorySet

CHANGED = [5, 17, 40]


def attribute(model, run_dir, task="image_classification", **options):
    return TRAK(model, task=task, run_dir=run_dir, projector="identity", **options)


def relabeled(dataset):
    inputs, labels = (tensor.clone() for tensor in dataset.tensors)
    labels[CHANGED] = (labels[CHANGED] + 1) % 3
    return TensorDataset(inputs, labels)


@pytest.mark.parametrize("store", ["hdf5", "memory"])
def test_changed_labels_are_named_and_repaired(store, model, train_set, tmp_path):
    trak = attribute(model, tmp_path / "a", store=store)
    trak.featurize(train_set, batch_size=4, block_size=4)
    corrected = relabeled(train_set)
    with pytest.raises(StaleRowsError, match=r"3 samples of 'train' are not what .*: 5, 17, 40"):
        trak.featurize(corrected, batch_size=4)
    assert trak.featurize(corrected, batch_size=4, repair=True) == 12  # the blocks of three samples
    fresh = attribute(model, tmp_path / "b")
    fresh.featurize(corrected, batch_size=4)
    np.testing.assert_array_equal(trak.features()[:], fresh.features()[:])
    np.testing.assert_array_equal(trak.features().content, fresh.features().content)


def test_targets_explained_for_other_labels_are_refused_until_repaired(model, train_set, tmp_path):
    trak = attribute(model, tmp_path / "a")
    trak.featurize(train_set)
    before = np.array(trak.score(train_set, name="test").values)
    with pytest.raises(StaleRowsError, match=r"3 samples of 'test' .*another name"):
        trak.score(relabeled(train_set), name="test")
    repaired = trak.score(relabeled(train_set), name="test", repair=True).values
    expected = trak.score(relabeled(train_set), name="other").values
    np.testing.assert_allclose(repaired, expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(repaired, before)


@pytest.mark.parametrize("edited", ["model", "type", "a layer", "task", "data"])
def test_targets_are_not_scored_with_training_rows_of_an_earlier_model(edited, model, train_set, test_set, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.scale = model, 1.0

        def forward(self, x):
            return self.model(x) * self.scale

    class First(Task):
        column = 0

        def output(self, model, batch):
            return model(batch[0])[:, self.column]

    scaled, task, data = Scaled().eval(), First(), TensorDataset(*(each.clone() for each in train_set.tensors))
    trak = attribute(scaled, tmp_path, task)
    trak.featurize(data)
    trak.score(test_set, name="before")
    if edited == "model":
        scaled.scale = 3.0
    elif edited == "a layer":  # of a kind that the extractor has verified
        model[0].register_forward_hook(lambda module, args, output: output.flip(1))
    elif edited == "task":
        task.column = 1
    elif edited == "type":
        scaled.double()
    else:
        data.tensors[0][7] += 1
    with pytest.raises(StaleRowsError, match="1 sample of 'train'.*: 7" if edited == "data" else "rows of 'train'"):
        trak.score(test_set, name="after")
    if edited == "data":
        with pytest.raises(StaleRowsError, match="1 sample of 'train'.*: 7"):
            trak.score(test_set, name="before")
    if edited in ("model", "a layer"):
        with pytest.raises(StaleRowsError, match="rows of 'before'"):
            trak.score(test_set, name="before")
        before = trak.features()[:]
        with pytest.raises(StaleRowsError, match="rows of 'train'"):
            trak.featurize(data)
        np.testing.assert_array_equal(trak.features()[:], before)


class Focal:
    gamma = 0.0


def focal_loss(model, batch):
    cross_entropy = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (1 - torch.exp(-cross_entropy)) ** Focal.gamma * cross_entropy


def edited(column):
    class Logit(Task):
        def output(self, model, batch):
            return model(batch[0])[:, column]

    return Logit()


def with_activation(model, activation):
    changed = nn.Sequential(model[0], activation, *model[2:]).eval()
    assert changed.state_dict().keys() == model.state_dict().keys()
    return changed


def shifted(samples):
    inputs, labels = default_collate(samples)
    return inputs, (labels + 1) % 3


CHANGES = {
    "a constant that the loss reads": lambda model, data: [
        (model, data, {"name": "loss", "function": focal_loss}) for _ in range(2)
    ],
    "the code of a task": lambda model, data: [(model, data, edited(column)) for column in (0, 1)],
    "the activation": lambda model, data: [
        (with_activation(model, activation), data, "image_classification") for activation in (nn.ReLU(), nn.Tanh())
    ],
    "the labels that the collate function makes": lambda model, data: [
        (model, DataLoader(data, 16, collate_fn=collate), "image_classification")
        for collate in (default_collate, shifted)
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_code_is_noticed_by_computing_a_batch_again(change, model, train_set, tmp_path, monkeypatch):
    (first, data, task), (second, other, changed) = CHANGES[change](model, train_set)
    attribute(first, tmp_path, task).featurize(data)
    assert attribute(first, tmp_path, task).featurize(data) == 0
    monkeypatch.setattr(Focal, "gamma", 5.0)
    with pytest.raises(StaleRowsError, match=r"of 'train' under checkpoint .* are not what .* give now"):
        attribute(second, tmp_path, changed).featurize(other)
    repaired = attribute(second, tmp_path, changed)
    assert repaired.featurize(other, repair=True) == len(train_set)
    fresh = attribute(second, tmp_path / "fresh", changed)
    fresh.featurize(other)
    np.testing.assert_allclose(repaired.features()[:], fresh.features()[:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("verify", ["full", "sampled", "off"])
def test_which_samples_are_read_again_is_an_option(verify, model, train_set, tmp_path):
    attribute(model, tmp_path).featurize(train_set)
    # Same gradients, other content: only reading can tell.
    same = TensorDataset(train_set.tensors[0], train_set.tensors[1].to(torch.int32))
    trak = attribute(model, tmp_path, verify_data=verify)
    if verify == "off":
        assert trak.featurize(same) == 0
    else:
        with pytest.raises(StaleRowsError, match=f"{len(train_set)} samples of 'train'"):
            trak.featurize(same)
    with pytest.raises(SettingsError, match="verify_data must be one of full, sampled, off, got 'some'"):
        attribute(model, tmp_path, verify_data="some")


def test_rows_are_verified_before_missing_ones_are_computed(model, train_set, checkpoints, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints, batch_size=8, block_size=8)
    next((tmp_path / "features").rglob("block-00002.h5")).unlink()
    with pytest.raises(StaleRowsError, match="computed again"):
        attribute(with_activation(model, nn.Tanh()), tmp_path).featurize(train_set, checkpoints, batch_size=8)


def test_rows_that_another_process_stores_from_other_data_meanwhile_are_refused(
    model, train_set, tmp_path, monkeypatch
):
    run = BlockComputer.run

    def where_another_has_claimed_the_block_of_sample_40(self):
        feature_set = self.assignments[0].feature_set
        claim = feature_set.claim
        monkeypatch.setattr(feature_set, "claim", lambda block: block != 4 and claim(block))
        return run(self)

    def another(seconds):
        monkeypatch.setattr(BlockComputer, "run", run)
        inputs, labels = relabeled(train_set).tensors
        labels[:40] = train_set.tensors[1][:40]
        assert attribute(model, tmp_path).featurize(TensorDataset(inputs, labels)) == 10

    monkeypatch.setattr(BlockComputer, "run", where_another_has_claimed_the_block_of_sample_40)
    monkeypatch.setattr("trak_lightning.featurize.compute.time.sleep", another)
    with pytest.raises(StaleRowsError, match="1 sample of 'train' is not what .*: 40"):
        attribute(model, tmp_path, verify_data="full").featurize(train_set, block_size=10, batch_size=10)


class Died(Exception):
    """In place of a kill."""


@contextmanager
def dying_at_block(number):
    """Die in place of storing the block of this number, counted from 0."""
    written = count()

    def dying(write):
        def write_block(self, block, rows):
            if next(written) == number:
                raise Died
            write(self, block, rows)

        return write_block

    with pytest.MonkeyPatch.context() as patch:
        for kind in (HDF5Set, MemorySet):
            patch.setattr(kind, "write_block", dying(kind.write_block))
        with pytest.raises(Died):
            yield


@pytest.mark.parametrize("store", ["hdf5", "memory"])
@pytest.mark.parametrize("change", ["labels", "activation"])
def test_first_rows_of_a_block_are_verified_when_a_growing_run_that_died_is_resumed(
    store, change, model, train_set, tmp_path
):
    """The only block is missing, and its first 48 rows are those of 50 samples stored before."""
    longer = ConcatDataset([train_set, train_set])
    trak = attribute(model, tmp_path / "a", store=store)
    trak.featurize(train_set, batch_size=16)
    with dying_at_block(0):
        trak.featurize(longer, batch_size=16, grow=True)
    assert trak.features()._set.missing_blocks() == [0]
    if change == "labels":
        second, data, message = model, ConcatDataset([relabeled(train_set), train_set]), "3 samples .*: 5, 17, 40"
    else:
        second, data, message = with_activation(model, nn.Tanh()), longer, "computed again"
    resumed = attribute(second, tmp_path / "a", store=trak.store if store == "memory" else store)
    with pytest.raises(StaleRowsError, match=message):
        resumed.featurize(data, batch_size=16)
    assert resumed.featurize(data, batch_size=16, repair=True) == 100
    fresh = attribute(second, tmp_path / "fresh")
    fresh.featurize(data, batch_size=16)
    np.testing.assert_array_equal(resumed.features()[:], fresh.features()[:])


@pytest.mark.parametrize("written", [0, 2])
@pytest.mark.parametrize("change", ["labels", "activation"])
def test_a_repair_that_died_is_resumed(written, change, model, train_set, checkpoints, tmp_path):
    """Also where it died before any row was stored again, so that nothing but the manifest is left."""
    first, last = train_set.tensors
    other = TensorDataset(first + 1, last) if change == "labels" else train_set
    second = with_activation(model, nn.Tanh()) if change == "activation" else model
    options = {"batch_size": 8, "block_size": 24}
    attribute(model, tmp_path / "a").featurize(train_set, checkpoints, **options)
    resumed = attribute(second, tmp_path / "a")
    with dying_at_block(written):
        resumed.featurize(other, checkpoints, repair=True, **options)
    resumed = attribute(second, tmp_path / "a")
    # Rows that are left of what was stored before are still refused.
    if change == "activation":
        with pytest.raises(StaleRowsError, match="computed again"):
            resumed.featurize(other, checkpoints, **options)
    resumed.featurize(other, checkpoints, repair=True, **options)
    fresh = attribute(second, tmp_path / "fresh")
    fresh.featurize(other, checkpoints, **options)
    for checkpoint in range(3):
        np.testing.assert_array_equal(
            resumed.features(checkpoint=checkpoint)[:], fresh.features(checkpoint=checkpoint)[:]
        )


def test_rows_are_computed_again_at_several_places(model, train_set, tmp_path):
    attribute(model, tmp_path).featurize(train_set, batch_size=16, block_size=16)
    (feature_set,) = (attribute(model, tmp_path).store.open(*key) for key in attribute(model, tmp_path).store.list())
    batches = [np.array(batch) for batch in stored_batches(feature_set)]
    assert len(batches[0]) == 16
    assert (np.diff(batches[0]) == 1).sum() >= 7  # eight pairs
    assert np.diff(batches[0]).max() <= 16  # spread over all 50 samples
    assert sorted(np.concatenate(batches)) == list(range(50))


def test_changed_code_that_touches_a_single_sample_is_noticed_while_there_is_time(
    model, train_set, tmp_path, monkeypatch
):
    monkeypatch.setattr("trak_lightning.featurize.job.SECONDS", 600.0)

    def collate(doubled):
        def collate_fn(samples):
            inputs, labels = default_collate(samples)
            return inputs * torch.where((inputs == doubled).all(1), 2.0, 1.0)[:, None], labels

        return collate_fn

    inputs = train_set.tensors[0]
    attribute(model, tmp_path).featurize(DataLoader(train_set, 4))
    with pytest.raises(StaleRowsError, match="sample 33"):
        attribute(model, tmp_path).featurize(DataLoader(train_set, 4, collate_fn=collate(inputs[33])))


class SmallNumbers(Task):
    """A regression whose numbers and outputs are of size `scale`."""

    def __init__(self, scale, factor=1.0, centered=False):
        self.scale = scale
        self.factor = [factor]
        self.centered = centered

    @property
    def state(self):  # an edit of the code is in no setting
        return {"scale": self.scale}

    def output(self, model, batch):
        output = self.scale * model(batch[0])[:, 0]
        return output - output.mean().detach() if self.centered else output

    def loss_weight(self, model, batch, output):
        return self.factor[0] * (self.scale * batch[1] - output)


@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-3])
def test_a_changed_loss_weight_is_noticed_whatever_its_unit(scale, model, train_set, tmp_path):
    attribute(model, tmp_path, SmallNumbers(scale)).featurize(train_set)
    assert attribute(model, tmp_path, SmallNumbers(scale)).featurize(train_set) == 0
    with pytest.raises(StaleRowsError, match="the loss weight of"):
        attribute(model, tmp_path, SmallNumbers(scale, factor=1.5)).featurize(train_set)


@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-3])
def test_an_output_that_depends_on_its_batch_is_refused_whatever_its_unit(scale, model, train_set, tmp_path):
    with pytest.raises(SampleDependenceError):
        attribute(model, tmp_path, SmallNumbers(scale, centered=True)).featurize(train_set)


@pytest.mark.parametrize("method", ["suspects", "report"])
@pytest.mark.parametrize("edited", ["a label", "the activation", "the weights of the checkpoint"])
def test_what_runs_the_model_refuses_one_that_the_stored_rows_are_not_of(
    edited, method, model, train_set, test_set, tmp_path
):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set)
    trak.score(test_set, name="test")
    error, message = StaleRowsError, "1 sample of 'train'.*: 7" if edited == "a label" else "rows of 'train'"
    if edited == "a label":
        train_set.tensors[1][7] = (train_set.tensors[1][7] + 1) % 3
    elif edited == "the activation":
        model[1] = nn.Tanh()
    else:
        model[0].weight.data += 1
        error, message = (
            IncompatibleRunError,
            "was made with checkpoint .* which is not among the checkpoints given now",
        )
        with pytest.raises(error, match=message):
            trak.featurize(train_set)
    if method == "suspects":
        with pytest.raises(error, match=message):
            trak.suspects()
    else:
        with pytest.raises(error, match="rows of 'train'" if edited == "the activation" else message):
            trak.report(test_set, name="test")


def test_a_signal_to_end_is_heard_although_nothing_is_left_to_compute(model, train_set, tmp_path, monkeypatch):
    attribute(model, tmp_path).featurize(train_set)
    verify = Featurizer.verify_stored_rows
    monkeypatch.setattr(
        Featurizer, "verify_stored_rows", lambda *call: os.kill(os.getpid(), signal.SIGTERM) or verify(*call)
    )
    with pytest.raises(TerminatedError, match="SIGTERM received; what is stored is kept"):
        attribute(model, tmp_path).featurize(train_set)
