"""Checkpoints as people write them: each gives the weights that plain PyTorch would load, or is refused."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from trak_lightning.errors import CheckpointError
from trak_lightning.model.checkpoints import Checkpoint, CheckpointWarning, distinct, expand


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.module = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)


@pytest.fixture
def model():
    return Net().eval()


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return {name: torch.rand_like(tensor) if tensor.ndim else tensor for name, tensor in Net().state_dict().items()}


def loaded(source, model):
    """The weights that a checkpoint puts into a model."""
    model = copy.deepcopy(model)
    Checkpoint.of(source, model).load_into(model)
    return nn.Module.state_dict(model)


def filled(state):
    net = Net()
    net.load_state_dict(state)
    return net


def nested(state):
    """A model with a wrapper around one of its parts, as saved."""
    net = filled(state)
    net.body = nn.Sequential(nn.DataParallel(net.body[0]), torch.compile(net.body[1]))
    return net.state_dict()


WRITTEN = {
    "a state dict": lambda state, path: state,
    "in a list": lambda state, path: [state],
    "by name": lambda state, path: {"seed0": state},
    "of numpy arrays": lambda state, path: {name: tensor.numpy() for name, tensor in state.items()},
    "a module": lambda state, path: filled(state),
    "a Lightning checkpoint in memory": lambda state, path: {"state_dict": state, "epoch": 3},
    "a path as text": lambda state, path: torch.save(state, path / "a.ckpt") or str(path / "a.ckpt"),
    "a path": lambda state, path: torch.save(state, path / "a.ckpt") or path / "a.ckpt",
    "a pattern": lambda state, path: torch.save(state, path / "a.ckpt") or str(path / "*.ckpt"),
    "a folder": lambda state, path: torch.save(state, path / "a.ckpt") or path,
    "of an averaged model": lambda state, path: AveragedModel(filled(state)).state_dict(),
    "of a compiled DataParallel": lambda state, path: torch.compile(nn.DataParallel(filled(state))).state_dict(),
    "with wrapped parts": lambda state, path: nested(state),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_checkpoint_may_be_written_as_people_do(how, model, trained, tmp_path):
    (source,) = expand(WRITTEN[how](trained, tmp_path))
    found = loaded(source, model)
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in trained)


def test_a_module_pickled_whole_is_read_from_a_trusted_file(model, trained, tmp_path):
    torch.save(filled(trained), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        Checkpoint.of(tmp_path / "whole.pt", model)
    assert Checkpoint.of(tmp_path / "whole.pt", model, weights_only=False).id == Checkpoint.of(trained, model).id


@pytest.mark.parametrize("source", [3, [torch.ones(2)], {"head.weight": "text", "head.bias": torch.ones(2)}])
def test_what_is_no_checkpoint_is_refused_by_type(source, model):
    with pytest.raises(CheckpointError, match=r"must be a (path|tensor)"):
        Checkpoint.of(source, model)


def test_a_folder_of_checkpoint_files_is_a_list_in_order(model, trained, tmp_path):
    for name in ("epoch=10.ckpt", "epoch=9.ckpt", "notes.txt"):
        torch.save(trained, tmp_path / name)
    assert [Path(str(path)).name for path in expand(tmp_path)] == ["epoch=9.ckpt", "epoch=10.ckpt"]
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"Name its folder of checkpoints: .*version_0/checkpoints"):
        Checkpoint.of(tmp_path / "version_0", model)


def test_a_pattern_that_matches_folders_lists_the_files_in_them(model, trained, tmp_path):
    for name in ("10/a.ckpt", "9/b.ckpt", "9/a.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save(trained, tmp_path / name)
    found = expand(str(tmp_path / "*"))
    assert [str(Path(str(path)).relative_to(tmp_path)) for path in found] == ["9/a.ckpt", "9/b.ckpt", "10/a.ckpt"]


def test_a_file_that_repeats_another_is_left_out_with_a_warning(model, trained, tmp_path):
    torch.save(trained, tmp_path / "best.ckpt")
    torch.save({**trained, "head.bias": torch.zeros(2)}, tmp_path / "first.ckpt")
    torch.save({"state_dict": trained, "epoch": 3}, tmp_path / "last.ckpt")
    checkpoints = [Checkpoint.of(source, model) for source in expand(tmp_path)]
    with pytest.warns(CheckpointWarning, match=r"last\.ckpt holds the same weights as .*best\.ckpt and is left out"):
        assert distinct(checkpoints) == [0, 1]


def test_weights_of_the_model_itself_are_copied(model, trained):
    """They are those of an ensemble whose other members are loaded into the same model."""
    own = model.state_dict()
    before = {name: tensor.clone() for name, tensor in own.items()}
    mine = [Checkpoint.of(source, model) for source in (own, model)]
    Checkpoint.of(trained, model).load_into(model)
    for checkpoint in mine:
        checkpoint.load_into(model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["criterion.weight", "loss_fn.pos_weight", "head.ce_loss.weight", "val_acc.tp", "class_weights"]
)
def test_what_belongs_to_the_loss_is_ignored_with_a_warning(name, model, trained):
    with pytest.warns(CheckpointWarning, match=f"1 tensors that the model does not have, such as '{name}'"):
        found = loaded({**trained, name: torch.ones(2)}, model)
    assert torch.equal(found["head.weight"], trained["head.weight"])


def test_class_weights_of_a_loss_that_the_model_has_without_are_ignored_with_a_warning(model, trained):
    model.objective = nn.CrossEntropyLoss()
    with pytest.warns(CheckpointWarning, match="such as 'objective.weight'"):
        loaded({**trained, "objective.weight": torch.ones(2)}, model)


@pytest.mark.parametrize("name", ["body.2.weight", "norm.weight", "decoder.weight", "head.scale"])
def test_what_may_belong_to_another_model_is_refused(name, model, trained):
    with pytest.raises(CheckpointError, match=f"1 unexpected, such as '{name}'"):
        Checkpoint.of({**trained, name: torch.ones(2)}, model)


def test_a_prefix_is_named_next_to_the_state_of_a_loss(model, trained):
    with pytest.raises(CheckpointError, match="only by the prefix 'net.' in the checkpoint"):
        Checkpoint.of(
            {"criterion.weight": torch.ones(2)} | {f"net.{name}": each for name, each in trained.items()}, model
        )


class Frozen(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.strict_loading = False
        self.encoder, self.decoder = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)


class Partial(Frozen):
    """As Lightning's documentation leaves out a frozen encoder."""

    def state_dict(self, *args, **kwargs):
        return {name: each for name, each in super().state_dict(*args, **kwargs).items() if "encoder" not in name}


def without_encoder(model):
    return {name: tensor for name, tensor in nn.Module.state_dict(model).items() if "encoder" not in name}


@pytest.mark.parametrize("kind", [Frozen, Partial])
def test_a_model_that_loads_loosely_keeps_what_the_checkpoint_lacks(kind):
    model, other = kind(), kind()
    found = loaded(without_encoder(other), model)
    assert torch.equal(found["encoder.weight"], model.encoder.weight)
    assert torch.equal(found["decoder.weight"], other.decoder.weight)
    # Another encoder gives other gradients.
    assert Checkpoint.of(without_encoder(other), other).id != Checkpoint.of(without_encoder(other), model).id


def test_a_model_that_loads_loosely_warns_of_trained_weights_that_are_missing():
    model = Frozen()
    with pytest.warns(
        CheckpointWarning, match=r"leaves 1 trainable parameters as they are in the model, such as 'decoder\.bias'"
    ):
        Checkpoint.of({"decoder.weight": torch.ones(2, 4)}, model)
    with pytest.raises(CheckpointError, match="4 missing"):
        Checkpoint.of({"other.weight": torch.ones(2, 4)}, model)


def test_a_strict_model_says_how_to_leave_out_frozen_weights():
    model = Frozen()
    model.strict_loading = True
    with pytest.raises(CheckpointError, match=r"2 missing, such as 'encoder\.weight'.*strict_loading = False"):
        Checkpoint.of(without_encoder(model), model)


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("left_out", ["head.weight", "embedding.weight", None])
def test_tied_weights_may_be_saved_under_either_name(left_out):
    weight = torch.rand(5, 3)
    source = {name: weight.clone() for name in ("embedding.weight", "head.weight") if name != left_out}
    assert all(torch.equal(tensor, weight) for tensor in loaded(source, Tied()).values())


def test_weights_that_were_not_tied_are_refused_by_a_model_that_ties_them():
    with pytest.raises(CheckpointError, match=r"different weights for embedding\.weight and head\.weight"):
        Checkpoint.of(Tied(tie=False).state_dict(), Tied())
    with pytest.raises(CheckpointError, match=r"1 missing, such as 'head\.weight'"):
        Checkpoint.of({"embedding.weight": torch.rand(5, 3)}, Tied(tie=False))


class Renaming(nn.Module):
    """Reads checkpoints of its older version, as PyTorch lets modules do."""

    def __init__(self):
        super().__init__()
        self.new = nn.Linear(2, 2)
        self.register_load_state_dict_pre_hook(self._rename)

    def _rename(self, module, state_dict, prefix, *args):
        for name in [name for name in state_dict if name.startswith(f"{prefix}old")]:
            state_dict[name.replace("old", "new")] = state_dict.pop(name)


def test_hooks_that_translate_names_of_older_versions_are_asked():
    model = nn.Sequential(Renaming())
    old = {"0.old.weight": torch.rand(2, 2), "0.old.bias": torch.rand(2)}
    before = model[0].new.weight.clone()
    Checkpoint.of(old, model)
    assert torch.equal(model[0].new.weight, before)
    assert torch.equal(loaded(old, model)["0.new.weight"], old["0.old.weight"])


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_extra_state_of_modules_is_loaded_and_part_of_the_id(tmp_path):
    trained, model = nn.Sequential(Counting()), nn.Sequential(Counting())
    plain = Checkpoint.of(trained.state_dict(), model).id
    trained[0].scale = 3.0
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    checkpoint = Checkpoint.of(tmp_path / "a.pt", model)
    checkpoint.load_into(model)
    assert model[0].scale == 3.0
    assert checkpoint.id != plain


def test_a_file_that_changes_is_noticed(model, trained, tmp_path):
    torch.save(trained, tmp_path / "a.pt")
    checkpoint = Checkpoint.of(tmp_path / "a.pt", model)
    torch.save({**trained, "head.bias": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="has changed since this run first read it"):
        checkpoint.load_into(model)
