"""Checkpoints are named by their weights, fit the model or are refused, and execute nothing."""

import json
import os
import re
from contextlib import nullcontext

import lightning as L
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from trak_lightning.errors import CheckpointError
from trak_lightning.model.checkpoints import Checkpoint, CheckpointWarning, expand, subset_path


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def sharded(state, folder):
    """As ``save_pretrained`` cuts a large model."""
    folder.mkdir()
    names = sorted(state)
    parts = {"model-1-of-2.safetensors": names[:3], "model-2-of-2.safetensors": names[3:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def in_folder(state, folder, file, save):
    folder.mkdir()
    save(state, folder / file)
    (folder / "config.json").write_text("{}")
    return folder


FORMATS = {
    "a state dict": lambda state, path: state,
    "torch.save": lambda state, path: torch.save(state, path) or str(path),
    "Lightning": lambda state, path: torch.save({"state_dict": state, "epoch": 3, "callbacks": {}}, path) or path,
    "a tutorial's": lambda state, path: torch.save({"model_state_dict": state, "epoch": 3}, path) or path,
    "safetensors": lambda state, path: (
        save_file(state, path.with_suffix(".safetensors")) or path.with_suffix(".safetensors")
    ),
    "a folder": lambda state, path: in_folder(state, path, "model.safetensors", save_file),
    "an old folder": lambda state, path: in_folder(state, path, "pytorch_model.bin", torch.save),
    "a sharded folder": sharded,
    "of a compiled model": lambda state, path: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "of a distributed model": lambda state, path: {f"module.{name}": tensor for name, tensor in state.items()},
    "of both": lambda state, path: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_weights_in_any_format_are_the_same_checkpoint(kind, model, tmp_path):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint.of(FORMATS[kind](state, tmp_path / "weights"), model)
    assert checkpoint.id == Checkpoint.of(state, model).id
    nn.init.zeros_(model[0].weight)
    checkpoint.load_into(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_other_weights_are_another_checkpoint(model):
    state = model.state_dict()
    changed = {name: tensor + (name == "0.bias") * 1e-7 for name, tensor in state.items()}
    assert Checkpoint.of(changed, model).id != Checkpoint.of(state, model).id


def test_weights_that_are_tied_in_the_model_may_be_in_the_file_once(tmp_path):
    config = GPT2Config(vocab_size=7, n_positions=4, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.of(tmp_path, model)
    expected = model.lm_head.weight.detach().clone()
    nn.init.zeros_(model.lm_head.weight)
    checkpoint.load_into(model)
    assert torch.equal(model.lm_head.weight, expected)
    assert model.lm_head.weight is model.transformer.wte.weight


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_adapter_is_put_around_the_weights_that_the_model_has(wrapped, tmp_path):
    base = Classifier()
    settings = LoraConfig(target_modules=["body"], modules_to_save=["head"], r=2, init_lora_weights=False)
    trained = get_peft_model(base, settings)
    trained.save_pretrained(tmp_path / "adapter")
    fresh = Classifier()
    fresh.load_state_dict(dict(zip(fresh.state_dict(), _base(trained), strict=True)))
    model = PeftModel.from_pretrained(fresh, tmp_path / "adapter", is_trainable=True)
    model = nn.ModuleDict({"inner": model}) if wrapped else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint.of(tmp_path / "adapter", model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.zeros_(parameter)
            assert before[name].any()
    checkpoint.load_into(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"holds an adapter, and Linear has none.*PeftModel.from_pretrained"):
        Checkpoint.of(tmp_path / "adapter", nn.Linear(1, 1))


def _base(peft_model):
    state = peft_model.get_base_model().state_dict()
    names = (
        "body.base_layer.weight",
        "body.base_layer.bias",
        "head.original_module.weight",
        "head.original_module.bias",
    )
    return [state[name] for name in names]


def test_wildcards_find_the_steps_of_a_run_in_order(tmp_path):
    for step in (1000, 500, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    np.save(tmp_path / "checkpoint-20.subset.npy", np.arange(3))
    found = expand([tmp_path / "checkpoint-*"])
    assert found == [str(tmp_path / f"checkpoint-{step}") for step in (20, 500, 1000)]
    assert subset_path(found[0]).exists()
    with pytest.raises(CheckpointError, match=r"no checkpoint matches .*step-\*"):
        expand([tmp_path / "step-*"])


def test_a_checkpoint_of_another_architecture_is_refused_with_the_first_misfit(model, tmp_path):
    torch.save(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"a.pt does not fit Sequential: 0.weight is \(5, 3\) in the checkpoint and \(4, 3\)"
    ):
        Checkpoint.of(tmp_path / "a.pt", model)


def test_a_checkpoint_of_another_size_names_the_hyperparameter_that_differs(tmp_path):
    class Net(L.LightningModule):
        def __init__(self, classes=2):
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(3, classes)

    trained = Net(classes=5)
    torch.save({"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"\(5, 3\).*differ: classes is 5 in the checkpoint and 2 in the model\..*link_arg"
    ):
        Checkpoint.of(tmp_path / "a.ckpt", Net())


class WithSettings(L.LightningModule):
    def __init__(self, activation="relu", temperature=1.0, lr=0.1, scheduler=None, trunk=None, extra=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, 2)


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize(
    ("trained_with", "message"),
    [
        ({}, None),
        ({"lr": 0.3, "scheduler": {"warmup": 3}}, None),
        (
            {"activation": "tanh"},
            "activation is 'tanh' in the checkpoint and 'relu' in the model.*load_from_checkpoint",
        ),
        ({"temperature": 2.0, "lr": 0.3}, "temperature is 2.0 in the checkpoint and 1.0 in the model"),
        (
            {"trunk": {"heads": 4, "sizes": (1, 3)}},
            "trunk.heads is 4 in the checkpoint and 2 in the model; trunk.sizes is",
        ),
    ],
)
def test_a_checkpoint_of_other_hyperparameters_is_a_warning_that_names_them(trained_with, message, where, tmp_path):
    own = {"trunk": {"heads": 2, "sizes": [1, 2]}}
    trained = WithSettings(**{**own, **trained_with})
    found = {"state_dict": trained.state_dict(), "hyper_parameters": {**trained.hparams, "_class_path": "other"}}
    torch.save(found, tmp_path / "a.ckpt")
    with pytest.warns(CheckpointWarning, match=message) if message else nullcontext():
        Checkpoint.of(found if where == "memory" else tmp_path / "a.ckpt", WithSettings(**own))


@pytest.mark.parametrize("holder", [lambda model: model, lambda model: nn.ModuleDict({"net": model})])
def test_a_folder_of_another_configuration_is_a_warning_that_names_it(holder, tmp_path):
    def tiny(**settings):
        return GPT2LMHeadModel(
            GPT2Config(n_embd=8, n_layer=1, vocab_size=12, n_positions=8, **{"n_head": 2, **settings})
        )

    tiny(pad_token_id=3, use_cache=False, problem_type="regression").save_pretrained(tmp_path / "same")
    Checkpoint.of(tmp_path / "same", holder(tiny()))
    tiny(n_head=4).save_pretrained(tmp_path / "other")
    with pytest.warns(CheckpointWarning, match="n_head is 4 in the checkpoint and 2 in the model"):
        Checkpoint.of(tmp_path / "other", holder(tiny()))


def test_a_module_with_another_activation_is_a_warning_that_names_it():
    def made(activation):
        return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))

    Checkpoint.of(made(nn.ReLU()), made(nn.ReLU()))
    with pytest.warns(
        CheckpointWarning, match=r"1 is 'LeakyReLU\(negative_slope=0.2\)' in the checkpoint and 'ReLU\(\)'"
    ):
        Checkpoint.of(made(nn.LeakyReLU(0.2)), made(nn.ReLU()))


def scaled_by(factor):
    model = nn.Linear(3, 3)
    model.register_buffer("scale", torch.full((3,), float(factor)), persistent=False)
    return model


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (scaled_by, "scale is 'content [0-9a-f]+' in the checkpoint and 'content"),
        (lambda heads: nn.MultiheadAttention(4, heads), "num_heads is 2 in the checkpoint and 1 in the model"),
        (lambda eps: nn.Sequential(nn.LayerNorm(3, eps=eps)), "0.eps is 2 in the checkpoint and 1 in the model"),
        (lambda size: nn.Sequential(nn.Conv1d(3, 3, 2, dilation=size)), r"0.dilation is \[2\] in the checkpoint"),
    ],
)
def test_a_module_with_other_attributes_is_a_warning_that_names_them(made, message):
    trained = made(2)
    trained.global_step = trained.training = 7  # which lead to the weights
    own = made(2)
    own.global_step = 3
    Checkpoint.of(trained, own)
    with pytest.warns(CheckpointWarning, match=message):
        Checkpoint.of(trained, made(1))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("averaged", "place"),
    [
        (lambda state: {"state_dict_ema": state}, "['state_dict_ema']"),
        (lambda state: {"model_ema": {f"module.{name}": each for name, each in state.items()}}, "['model_ema']"),
        (lambda state: {"callbacks": {"EMA": {"weights": state}}}, "['callbacks']['EMA']['weights']"),
    ],
)
def test_other_weights_of_the_same_model_are_a_warning_that_says_where(averaged, place, in_memory, model, tmp_path):
    state = model.state_dict()
    optimizer = {"state": {0: {"exp_avg": torch.zeros(4, 3)}}}
    whole = {"state_dict": state, "optimizer": optimizer, **averaged({name: each + 1 for name, each in state.items()})}
    torch.save(whole, tmp_path / "a.ckpt")
    with pytest.warns(CheckpointWarning, match=re.escape(f"under {place}")) as told:
        found = Checkpoint.of(whole if in_memory else tmp_path / "a.ckpt", model)
    assert len(told) == 1
    assert found.id == Checkpoint.of(state, model).id


def test_names_that_differ_by_a_prefix_are_refused_with_the_prefix(model):
    wrapped = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="only by the prefix 'net.' in the checkpoint"):
        Checkpoint.of(wrapped, model)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({"a.pt": b"not a checkpoint"}, "a.pt", "a text file and holds no weights; it begins with 'not a checkpoint'"),
        ({"a.pt": b"not\x00text"}, "a.pt", "cannot be read"),
        ({}, "a.pt", "there is no checkpoint file or folder"),
        ({"a.safetensors": b"not tensors"}, "a.safetensors", "a text file"),
        ({"a.safetensors": b"not\x00tensors"}, "a.safetensors", "cannot be read as safetensors"),
        ({"out/checkpoint-5/x": b"", "out/checkpoint-10/x": b""}, "out", r"2 checkpoints.*Name these: .*checkpoint-\*"),
        (
            {"out/config.json": b"{}"},
            "out",
            r"holds no weights: expected files \*.ckpt, or one of model.safetensors, .*; found config.json",
        ),
        (
            {"out/a/1.ckpt": b"", "out/b/1.ckpt": b""},
            "out",
            r"folders of them, such as a/1.ckpt. Name these: .*out/\*/\*.ckpt",
        ),
        ({"out/.metadata": b"", "out/__0_0.distcp": b""}, "out", "sharded checkpoint.*consolidate_checkpoint"),
        (
            {"out/model.safetensors.index.json": b'{"weight_map": {"a": "../../secret.safetensors"}}'},
            "out",
            "not an index of weights: ValueError: it names a file outside its folder",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused(files, source, message, model, tmp_path):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.of(tmp_path / source, model)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE_FOLDER"],)


@pytest.mark.parametrize("place", ["a.pt", "out/pytorch_model.bin", "out/adapter_model.bin"])
def test_pickled_code_is_not_executed(place, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_FOLDER", str(tmp_path / "executed"))
    (tmp_path / "out").mkdir()
    torch.save({"state_dict": {"0.weight": Hostile()}}, tmp_path / place)
    with pytest.raises(CheckpointError, match="weights_only=False"):
        Checkpoint.of(tmp_path / place.split("/")[0], model)
    assert not (tmp_path / "executed").exists()
