"""Folders of trainers are loaded as they are, and one that does not fit is refused by name."""

import json

import pytest
import torch
from peft import PeftModel
from tiny import make, tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from trak_lightning import TRAK
from trak_lightning.chat import ChatData, LanguageModel, load_model, load_tokenizer
from trak_lightning.errors import CheckpointError, DataError, UnsupportedModelError
from trak_lightning.model.checkpoints import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def saved_adapter(tmp_path, folder, kind="lora", name="llama"):
    make(name, kind).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": folder}))
    return str(tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["lora", "dora", "prompt"])
def test_an_adapter_is_put_on_its_base_and_can_be_attributed(kind, folder, tmp_path):
    adapter = saved_adapter(tmp_path, folder, kind)
    model, ids = LanguageModel(adapter), torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(input_ids=ids).logits, make("llama", kind)(input_ids=ids).logits)
    assert any(parameter.requires_grad for parameter in model.parameters())
    checkpoint = Checkpoint.of(adapter, model)
    assert checkpoint.id == Checkpoint.of(model, model).id


def test_a_sharded_folder_is_a_checkpoint_of_a_model_inside_a_lightning_module(folder, tmp_path):
    other = make("llama", seed=1)
    other.save_pretrained(tmp_path / "other", max_shard_size="8KB")
    assert len(list((tmp_path / "other").glob("*.safetensors"))) > 1
    model, ids = LanguageModel(folder), torch.tensor([[5, 6, 7]])
    Checkpoint.of(str(tmp_path / "other"), model).load_into(model)
    torch.testing.assert_close(model(input_ids=ids).logits, other(input_ids=ids).logits)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(folder, tmp_path):
    assert load_tokenizer(saved_adapter(tmp_path, folder)).get_vocab() == tokenizer().get_vocab()


def test_an_adapter_whose_base_has_moved_asks_for_it(folder, tmp_path):
    adapter = saved_adapter(tmp_path, "/moved/model")
    with pytest.raises(CheckpointError, match=r"was trained on /moved/model, and there is no such folder.*--base"):
        load_model(adapter)
    assert load_model(adapter, base=folder)


def test_an_adapter_of_another_base_is_refused(folder, tmp_path):
    make("gpt2").save_pretrained(tmp_path / "gpt2")
    adapter = saved_adapter(tmp_path, folder)
    with pytest.raises(CheckpointError, match=r"adapter .* does not fit its base model, .*gpt2"):
        load_model(adapter, base=tmp_path / "gpt2")


def test_an_adapter_of_another_width_is_refused(folder, tmp_path):
    adapter = saved_adapter(tmp_path, folder)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, "r": 3}))
    with pytest.raises(CheckpointError, match=r"adapter .* does not fit its base model"):
        load_model(adapter)


def test_a_folder_of_checkpoints_names_them(tmp_path):
    (tmp_path / "out" / "checkpoint-300").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"^\S*out holds checkpoints: name \S*out/checkpoint-\*, or one of them$"):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_nowhere_is_named_after_one_question_to_the_hub(load, monkeypatch):
    asked = []

    def unreachable(url):
        asked.append(url)
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(
        CheckpointError,
        match=r"there is no folder nope \(looked in .*: --base FOLDER\. .*from the hub either: connection refused",
    ):
        load("nope")
    assert len(asked) == 1


def test_a_folder_without_a_tokenizer_says_how_to_name_one(tmp_path):
    make("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"bare holds no tokenizer.*--tokenizer FOLDER"):
        load_tokenizer(tmp_path / "bare")


def with_other_numbers():
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"A": 200})))


def of_a_larger_vocabulary():
    other = tokenizer()
    other.add_tokens(["one more"])
    return other


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (of_a_larger_vocabulary, r"tokens up to number 259, and .*model embeds 259: .* another model.*--tokenizer"),
        (with_other_numbers, r"has number None in the tokenizer and \d+ in that of .*model: .* another model"),
    ],
)
def test_the_tokenizer_of_another_model_is_refused(other, message, folder, tmp_path):
    other().save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match=message):
        _ = ChatData(folder, "a", "b", tokenizer=str(tmp_path / "other")).encoder


def test_a_length_that_the_model_does_not_take_is_refused(folder):
    with pytest.raises(DataError, match=r"max_length is 65, and .*model takes 64 tokens"):
        _ = ChatData(folder, "a", "b", max_length=65).encoder


def test_an_adapter_loaded_without_is_trainable_is_told_so(folder, tmp_path):
    model = PeftModel.from_pretrained(make("llama"), saved_adapter(tmp_path, folder)).eval()
    with pytest.raises(UnsupportedModelError, match=r"is_trainable=True"):
        TRAK(model, "causal_lm", tmp_path / "run")
