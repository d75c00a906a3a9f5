"""Checkpoints are named by their weights, fit the model or are refused, and execute nothing."""

import os

import pytest
import torch
from torch import nn

from trak_lightning.checkpoints import Checkpoint
from trak_lightning.errors import CheckpointError


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_id_depends_on_the_weights_and_not_on_where_they_lie(model, tmp_path):
    state = model.state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "b.ckpt")
    ids = {Checkpoint.of(source, model).id for source in (state, tmp_path / "a.pt", str(tmp_path / "b.ckpt"))}
    assert len(ids) == 1
    changed = {name: tensor + (name == "0.bias") * 1e-7 for name, tensor in state.items()}
    assert Checkpoint.of(changed, model).id not in ids


def test_loading_restores_the_weights(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pt")
    checkpoint = Checkpoint.of(tmp_path / "a.pt", model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nn.init.zeros_(model[0].weight)
    checkpoint.load_into(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_of_another_architecture_is_refused_with_the_first_misfit(model, tmp_path):
    torch.save(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"a.pt does not fit Sequential: 0.weight is \(5, 3\) in the checkpoint and \(4, 3\)"
    ):
        Checkpoint.of(tmp_path / "a.pt", model)


def test_names_that_differ_by_a_prefix_are_refused_with_the_prefix(model):
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="only by the prefix 'module.' in the checkpoint"):
        Checkpoint.of(wrapped, model)


@pytest.mark.parametrize(
    ("content", "message"), [(b"not a checkpoint", "cannot be read"), (None, "there is no checkpoint file")]
)
def test_what_is_no_checkpoint_is_refused(content, message, model, tmp_path):
    if content is not None:
        (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.of(tmp_path / "a.pt", model)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE_FOLDER"],)


def test_pickled_code_is_not_executed(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_FOLDER", str(tmp_path / "executed"))
    torch.save({"state_dict": {"0.weight": Hostile()}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        Checkpoint.of(tmp_path / "a.pt", model)
    assert not (tmp_path / "executed").exists()
