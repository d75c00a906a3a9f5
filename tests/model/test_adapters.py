"""Adapters are loaded as PEFT loads them, and give the gradients of the model that PEFT loaded."""

import warnings

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from trak_lightning import TRAK
from trak_lightning.errors import CheckpointError, UnsupportedModelError
from trak_lightning.model.checkpoints import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config)


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    return BertForSequenceClassification(config)


CAUSAL = {"task_type": "CAUSAL_LM"}
ADAPTERS = {
    "LoRA": (llama, LoraConfig(**CAUSAL, target_modules=["q_proj"], r=2)),
    "LoRA of embeddings": (llama, LoraConfig(**CAUSAL, target_modules=["embed_tokens", "o_proj"], r=2)),
    "LoRA with biases of its own": (
        bert,
        LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2, bias="lora_only"),
    ),
    "LoRA with all biases": (bert, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=2, bias="all")),
    "rank-stabilized LoRA": (llama, LoraConfig(**CAUSAL, target_modules=["q_proj", "v_proj"], r=2, use_rslora=True)),
    "DoRA": (llama, LoraConfig(**CAUSAL, target_modules=["v_proj", "down_proj"], r=2, use_dora=True)),
    "IA3": (llama, IA3Config(**CAUSAL, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "prompt tuning": (llama, PromptTuningConfig(**CAUSAL, num_virtual_tokens=3)),
    "prefix tuning": (llama, PrefixTuningConfig(**CAUSAL, num_virtual_tokens=3)),
    "saved modules": (llama, LoraConfig(**CAUSAL, target_modules=["q_proj"], modules_to_save=["lm_head"], r=2)),
}


def trained(kind):
    """A model with an adapter none of whose weights is as it was made."""
    base, config = ADAPTERS[kind]
    model = get_peft_model(base(), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def fresh(kind):
    base, config = ADAPTERS[kind]
    return get_peft_model(base(), config).eval()


IDS = torch.randint(5, 40, (4, 7), generator=torch.Generator().manual_seed(2))


def gradient(model, ids):
    """Of the margin that the tasks take, by autograd, for one sample."""
    output = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits
    logits = output[0] if output.ndim == 2 else output[0, -len(ids) : -1]
    labels = torch.tensor([1]) if output.ndim == 2 else ids[1:]
    logits = logits.reshape(-1, logits.shape[-1])
    chosen = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((chosen - others).sum(), parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_gives_the_gradients_of_the_model_that_it_was_saved_from(kind, tmp_path):
    model = trained(kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        warnings.filterwarnings("ignore", message="Could not find a config file")
        model.save_pretrained(tmp_path / "adapter")
    expected = torch.stack([gradient(model, ids) for ids in IDS])
    causal = ADAPTERS[kind][0] is llama
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in IDS]
    rows = rows if causal else [{**row, "label": 1} for row in rows]
    trak = TRAK(
        fresh(kind),
        "causal_lm" if causal else "text_classification",
        tmp_path / "run",
        projector="identity",
        store="memory",
    )
    trak.featurize(rows, checkpoints=tmp_path / "adapter")
    found = torch.tensor(next(iter(trak.store.open(*trak.store.list()[0]).blocks())).features)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)


SETTINGS = {"target_modules": ["body"], "r": 2, "init_lora_weights": False}


@pytest.fixture
def saved(tmp_path):
    get_peft_model(Classifier(), LoraConfig(**SETTINGS, lora_alpha=8)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_trained_with_another_scale_is_refused(saved):
    model = get_peft_model(Classifier(), LoraConfig(**SETTINGS, lora_alpha=16))
    with pytest.raises(CheckpointError, match=r"trained with lora_alpha=8, and the adapter of PeftModel has 16"):
        Checkpoint.of(saved, model)


def test_an_adapter_with_fewer_layers_than_the_model_is_refused(saved):
    model = get_peft_model(Classifier(), LoraConfig(**SETTINGS | {"target_modules": ["body", "head"]}, lora_alpha=8))
    with pytest.raises(CheckpointError, match=r"adapter .* does not fit PeftModel: 2 missing, such as .*head\.lora_A"):
        Checkpoint.of(saved, model)


def test_the_output_of_a_prompt_encoder_is_refused_and_all_weights_are_accepted(tmp_path):
    model = get_peft_model(llama(), PromptEncoderConfig(**CAUSAL, num_virtual_tokens=3, encoder_hidden_size=8))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"PEFT saves its output.*whole state_dict\(\)"):
        Checkpoint.of(tmp_path, model)
    assert Checkpoint.of(model.state_dict(), model).id == Checkpoint.of(model, model).id


def test_weights_that_the_adapter_leaves_alone_are_warned_of(saved):
    model = get_peft_model(Classifier(), LoraConfig(**SETTINGS, lora_alpha=8))
    model.base_model.model.head.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"leaves 2 trainable parameters as they are.*head\.weight.*modules_to_save"):
        Checkpoint.of(saved, model)


def test_an_adapter_loaded_for_inference_is_told_how_to_load_it(saved, tmp_path):
    model = PeftModel.from_pretrained(Classifier(), saved).eval()
    for parameters in (None, ["*lora_*"]):
        with pytest.raises(Exception, match=r"is_trainable=True") as caught:
            TRAK(model, "image_classification", tmp_path / "run", parameters=parameters)
        assert "requires_grad_" not in str(caught.value)


def test_a_merged_adapter_is_refused(saved, tmp_path):
    model = PeftModel.from_pretrained(Classifier(), saved, is_trainable=True).eval()
    model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match=r"body.* is merged.*unmerge_adapter"):
        TRAK(model, "image_classification", tmp_path / "run")


def test_an_adapter_is_put_on_the_weights_that_the_model_came_with(saved, tmp_path):
    """Also after a checkpoint with another base."""
    data = torch.utils.data.TensorDataset(torch.randn(6, 3), torch.randint(0, 2, (6,)))
    torch.manual_seed(0)
    model = PeftModel.from_pretrained(_Callable(), saved, is_trainable=True).eval()
    other = {name: tensor + 1.0 for name, tensor in model.state_dict().items()}

    def rows(name, checkpoints):
        trak = TRAK(model, "image_classification", tmp_path / name, projector="identity", store="memory")
        trak.featurize(data, checkpoints)
        return [
            next(iter(trak.store.open("train", record.id).blocks())).features for record in trak.run.read().checkpoints
        ]

    assert (rows("both", [other, saved])[1] == rows("alone", [saved])[0]).all()


class _Callable(Classifier):
    def forward(self, x):
        return self.head(self.body(x).tanh())
