"""The output layer alone: the gradient that autograd finds for its weight, without a backward pass through the rest."""

import numpy as np
import pytest
import torch
from test_gradients import LIMIT, conversations
from tiny import chat, make, tokenizer

from trak_lightning import TRAK
from trak_lightning.chat import ChatDataset, Encoder, LanguageModel, collate, output_layer_only
from trak_lightning.chat.output_layer import _say_of_copy
from trak_lightning.cli import main
from trak_lightning.errors import SettingsError, UnsupportedModelError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.stores.configured import open_store

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NAMES = ("llama", "qwen", "gemma", "gpt2", "t5")


def closed_form(model, sample):
    """``Σ_t ∂f/∂logits_t ⊗ h_t`` with f = Σ log(p / (1 − p)), so that ∂f/∂logits = (y − p)/(1 − p of the label)."""
    kept = []
    layer = model.get_output_embeddings()
    handle = layer.register_forward_hook(lambda _, given, output: kept.extend((given[0][0], output[0])))
    ids, labels = sample["input_ids"][None], sample["labels"]
    if model.config.is_encoder_decoder:
        model(input_ids=ids, labels=labels[None])
        hidden, logits = kept
    else:
        model(input_ids=ids)
        (hidden, logits), labels = (each[-len(labels) : -1] for each in kept), labels[1:]
    handle.remove()
    if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
        pytest.skip(f"logits are capped at {cap}")
    counted = labels != -100
    p = logits[counted].softmax(-1)
    y = torch.nn.functional.one_hot(labels[counted], p.shape[1])
    moved = (y - p) / (1 - p[y.bool()])[:, None]
    return torch.einsum("tv,td->vd", moved, hidden[counted])


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_outer_products_of_hidden_states_and_residuals(name, kind, tmp_path):
    model, samples = output_layer_only(make(name, kind)), conversations(name)
    (weight,) = (n for n, parameter in model.named_parameters() if parameter.requires_grad and n.endswith("weight"))
    task = "seq2seq_lm" if name == "t5" else "causal_lm"
    trak = TRAK(model, task, tmp_path, parameters=[weight], projector="identity")
    loader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate)
    trak.featurize(loader, [model])
    with torch.no_grad():
        expected = torch.stack([closed_form(model, sample).flatten() for sample in samples])
    torch.testing.assert_close(
        torch.from_numpy(trak.features()[:]), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "gpt2"])
def test_nothing_below_the_output_layer_is_differentiated(name, tmp_path, monkeypatch):
    """Also where nothing is done but to choose the layer, if its weight is not tied."""
    model = make(name)
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        output_layer_only(model)
    graphs, body = [], type(model.base_model)
    forward = body.forward

    def watched(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        graphs.append(output.last_hidden_state.requires_grad)
        return output

    monkeypatch.setattr(body, "forward", watched)
    trak = TRAK(model, "causal_lm", tmp_path, parameters=["last:1"], projector={"name": "lowrank", "rank": 4})
    assert [slot.name for slot in trak.spec.layout] == ["lm_head.weight"]
    trak.featurize(torch.utils.data.DataLoader(conversations(name) * 8, batch_size=4, collate_fn=collate), [model])
    assert len(graphs) > 8
    assert not any(graphs[-7:])  # the first of 8 batches is compared with autograd, which keeps the graph


@pytest.mark.filterwarnings("ignore:checkpoint .* leaves 1 trainable parameters as they are")  # of the adapter's base
def test_trak_sft_takes_a_first_look_with_tied_weights_and_with_adapters(lines, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    _say_of_copy.cache_clear()  # said in this process by other tests
    rows = [chat(f"{a}+1", f"{a + 1}") for a in range(8)]
    files = ["--data", lines("train.jsonl", rows), "--targets", lines("targets.jsonl", rows[:2])]
    tokenizer().save_pretrained(base := str(tmp_path / "base"))
    make("gemma").save_pretrained(base)
    tokenizer().save_pretrained(adapter := str(tmp_path / "adapter"))
    made = make("gemma", "lora")
    made.peft_config["default"].base_model_name_or_path = base
    made.save_pretrained(adapter)
    for folder in (base, adapter):
        options = ["--model", folder, *files, "--model.attribute_to", "output_layer", "--projector", "lowrank"]
        run = tmp_path / f"look-{folder == base}"
        assert main(["sft", str(run), *options]) == 0
        assert "is a copy of" in caplog.text
        samples = ChatDataset(rows, Encoder(tokenizer(), LIMIT))
        loader = torch.utils.data.DataLoader(samples, batch_size=8, collate_fn=collate)
        model = LanguageModel(folder, attribute_to="output_layer").eval()
        trak = TRAK(model, "causal_lm", tmp_path / f"python-{folder == base}", projector="lowrank")
        trak.featurize(loader, [folder])
        found = open_store(RunDirectory(run)).open("train", trak.run.require_checkpoints()[0].id).rows(0, 8).features
        assert found.shape == (8, 256)
        np.testing.assert_allclose(found, trak.features()[:], rtol=1e-3, atol=1e-3 * abs(found).max())
    notices = [each.message for each in caplog.records if "is a copy of" in each.message]
    assert notices
    assert len(notices) == len(set(notices))


def test_a_model_without_an_output_layer_and_another_word_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Linear has no output layer with a weight"):
        output_layer_only(torch.nn.Linear(2, 2))
    with pytest.raises(SettingsError, match="attribute_to must be one of trained, output_layer, got 'head'"):
        LanguageModel(tmp_path, attribute_to="head")
