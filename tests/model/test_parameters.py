"""Which parameters are attributed to."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from trak_lightning import TRAK
from trak_lightning.errors import IncompatibleRunError, SettingsError
from trak_lightning.gradients import ParameterLayout


@pytest.fixture
def net():
    model = nn.Sequential()
    model.stem = nn.Conv2d(1, 2, 3)
    model.norm = nn.GroupNorm(1, 2)
    model.layer4 = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model.head = nn.Linear(4, 2)
    return model


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layer4.*", "!*.bias"], ["layer4.0.weight", "layer4.1.weight"]),
        (["!layer4.*", "!*.bias", "head.bias"], ["stem.weight", "norm.weight", "head.weight", "head.bias"]),
        (["type:Linear"], ["layer4.0.weight", "layer4.0.bias", "head.weight", "head.bias"]),
        (["type:_ConvNd"], ["stem.weight", "stem.bias"]),
        (["last:1"], ["head.weight", "head.bias"]),
        (["last:2", "!*.bias"], ["layer4.1.weight", "head.weight"]),
    ],
)
def test_patterns_apply_in_order(net, patterns, expected):
    layout = ParameterLayout.of(net, patterns)
    assert [slot.name for slot in layout] == expected
    assert layout[0].offset == 0
    assert layout.numel == sum(net.get_parameter(name).numel() for name in expected)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layr4.*"], "'layr4.*' matches nothing.*layer4"),
        (["type:Liner"], "'type:Liner' matches nothing.*nearest are Linear"),
        (["!nothing"], "'nothing' matches nothing"),
        (["kind:Linear"], "type:CLASS or last:NUMBER"),
        (["last:none"], "positive number"),
        (["head.*", "!head.*"], "leave nothing"),
        ([], "empty list"),
        ("head.*", "must be a list"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(net, patterns, message):
    with pytest.raises(SettingsError, match=message):
        ParameterLayout.of(net, patterns)


def test_parametrized_weights_belong_to_their_layer(net):
    weight_norm(net.head)
    weight = [f"head.parametrizations.weight.original{part}" for part in (0, 1)]
    assert [slot.name for slot in ParameterLayout.of(net, ["last:1"])] == ["head.bias", *weight]
    assert len(ParameterLayout.of(net, ["last:2"])) == 5


def test_frozen_parameters_are_never_selected(net):
    net.stem.requires_grad_(False)
    assert "stem.weight" not in ParameterLayout.of(net, ["*.weight"]).by_name
    with pytest.raises(SettingsError, match=r"2 parameters of Sequential, all of them frozen, such as stem\.bias"):
        ParameterLayout.of(net, ["stem.*"])


def test_names_are_those_of_the_model_that_was_compiled():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    expected = ParameterLayout.of(inner).fingerprint
    inner[0] = torch.compile(inner[0])
    assert ParameterLayout.of(torch.compile(inner)).fingerprint == expected


def test_features_of_a_selection_are_those_of_its_gradients_and_belong_to_it(model, train_set, tmp_path):
    options = {"task": "image_classification", "projector": "identity", "store": "hdf5"}
    every = TRAK(model, run_dir=tmp_path / "every", **options)
    last = TRAK(model, run_dir=tmp_path / "last", parameters=["last:1"], **options)
    every.featurize(train_set)
    last.featurize(train_set)
    rows = [next(iter(trak.store.open(*trak.store.list()[0]).blocks())).features for trak in (every, last)]
    torch.testing.assert_close(torch.tensor(rows[0][:, -27:]), torch.tensor(rows[1]))
    with pytest.raises(
        IncompatibleRunError, match="was made with dim = 27, .* The model has other parameters, or others"
    ):
        TRAK(model, run_dir=tmp_path / "last", parameters=["!last:1"], **options).featurize(train_set)


@pytest.mark.parametrize("how", ["wrapped", "inside", "in place"])
def test_a_compiled_model_gives_the_features_of_the_model_itself(how, model, train_set, checkpoints, tmp_path):
    options = {"task": "image_classification", "projector": "identity", "store": "memory"}
    plain = TRAK(model, run_dir=tmp_path / "plain", **options)
    plain.featurize(train_set, checkpoints)
    expected = next(iter(plain.store.open(*plain.store.list()[0]).blocks())).features
    if how == "wrapped":
        compiled = torch.compile(model)
    elif how == "inside":
        compiled = model
        compiled[0] = torch.compile(model[0])
        checkpoints = [{f"0._orig_mod.{k[2:]}" if k[0] == "0" else k: v for k, v in c.items()} for c in checkpoints]
    else:
        compiled = model
        compiled.compile()
    trak = TRAK(compiled, run_dir=tmp_path / "compiled", **options)
    trak.featurize(train_set, checkpoints)
    found = next(iter(trak.store.open(*trak.store.list()[0]).blocks())).features
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    if how == "inside":
        assert type(compiled[0]).__name__ == "OptimizedModule"


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))


@pytest.fixture
def tied():
    model = nn.Sequential()
    model.table, model.layer, model.lm_head = nn.Embedding(6, 4), Conv1D(), nn.Linear(4, 6, bias=False)
    model.lm_head.weight = model.table.weight
    return model


def test_the_second_name_of_tied_weights_is_explained(tied):
    with pytest.raises(
        SettingsError, match=r"lm_head.weight, which is the same tensor as table.weight .*write 'table.weight'"
    ):
        ParameterLayout.of(tied, ["lm_head.*"])


def test_linear_layers_that_are_not_of_class_linear_are_pointed_out(tied, caplog):
    assert [slot.name for slot in ParameterLayout.of(tied, ["type:Linear"])] == ["table.weight"]
    assert "type:Linear leaves out the layers of class Conv1D" in caplog.text
