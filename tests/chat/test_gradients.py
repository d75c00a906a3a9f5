"""Gradients of padded, truncated, masked and packed conversations are those of each conversation alone, by autograd."""

import pytest
import torch
from tiny import chat, make, tokenizer

from trak_lightning import TRAK
from trak_lightning.chat import ChatDataset, Encoder, collate
from trak_lightning.errors import DataError
from trak_lightning.tasks.language import CausalLM

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LIMIT = 40
CHATS = [chat("a", "b"), chat("2+2", "four"), chat("hm", "yes", "no"), chat("why", "as it is too long to fit")]
PAIRS = [{"prompt": each["messages"][0]["content"], "completion": each["messages"][1]["content"]} for each in CHATS]


def conversations(name):
    encoder = Encoder(tokenizer(), LIMIT, encoder_decoder=name == "t5")
    found = [encoder.encode(row, "") for row in (PAIRS if name == "t5" else CHATS)]
    assert name == "t5" or len(found[-1].input_ids) == LIMIT < len(
        Encoder(tokenizer(), 99).encode(CHATS[-1], "").labels
    )
    return [each.sample for each in found]


def gradient(model, sample):
    """Of Σ log(p / (1 − p)) over the answers of one conversation alone, without padding."""
    ids, labels = sample["input_ids"][None], sample["labels"]
    if model.config.is_encoder_decoder:
        logits = model(input_ids=ids, labels=labels[None]).logits[0]
    else:
        logits, labels = model(input_ids=ids).logits[0, -len(labels) : -1], labels[1:]
    p = logits.softmax(-1)[labels != -100].gather(1, labels[labels != -100, None])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(torch.logit(p).sum(), parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def padded_left(samples):
    batch = collate([{name: tensor.flip(0) for name, tensor in sample.items()} for sample in samples])
    return {name: tensor.flip(1) for name, tensor in batch.items()}


def placed(samples):
    """Padded on the left, with the positions that a model with absolute positions must be given."""
    batch = padded_left(samples)
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def packed(rows):
    """Rows of conversations, as DataCollatorWithFlattening packs them."""
    labels = [torch.cat([torch.tensor([-100]), each["labels"][1:]]) for row in rows for each in row]
    return {
        "input_ids": torch.cat([each["input_ids"] for row in rows for each in row])[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(len(each["labels"])) for row in rows for each in row])[None],
    }


def features(model, name, samples, collate_fn, tmp_path, batch_size=4):
    loader = torch.utils.data.DataLoader(samples, batch_size=batch_size, collate_fn=collate_fn)
    task = "seq2seq_lm" if name == "t5" else "causal_lm"
    trak = TRAK(model, task, tmp_path, projector="identity", store="memory")
    trak.featurize(loader)
    return torch.tensor(trak.features("train")[:], dtype=torch.float64)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def every_model_and_every_kind():
    """All models in full, and each kind of adapter with a model of each way to call its layers; the others are slow."""
    fast = {("gpt2", "lora"), ("t5", "lora"), ("qwen", "dora"), ("gemma", "prompt"), ("t5", "prompt")}
    for name in ("llama", "qwen", "gemma", "gpt2", "t5"):
        for kind in ("full", "lora", "dora", "prompt"):
            slow = kind != "full" and (name, kind) not in fast
            yield pytest.param(name, kind, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("name", "kind"), [*every_model_and_every_kind()])
def test_a_conversation_has_the_gradient_that_it_has_alone(name, kind, tmp_path):
    model, samples = make(name, kind).double(), conversations(name)
    expected = torch.stack([gradient(model, sample) for sample in samples])
    assert_equal(features(model, name, samples, collate, tmp_path), expected)


LAYERS = {"target_modules": ["q_proj", "v_proj"]}
RANK = {**LAYERS, "r": 2}
KINDS = {
    **dict.fromkeys(("LOHA", "LOKR", "VERA", "HIRA", "HRA", "MISS", "DELORA", "SHIRA", "RANDLORA"), RANK),
    "ADALORA": {**RANK, "total_step": 10},
    "BOFT": {**LAYERS, "boft_block_size": 4},
    "C3A": {**LAYERS, "block_size": 8},
    "FOURIERFT": {**LAYERS, "n_frequency": 8},
    "IA3": {**LAYERS, "feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {**LAYERS, "oft_block_size": 4},
    "ROAD": {**LAYERS, "group_size": 4},
    "TRAINABLE_TOKENS": {"token_indices": [5, 70, 90]},
    "VBLORA": {**RANK, "num_vectors": 8, "vector_length": 4},
    "WAVEFT": {**LAYERS, "n_frequency": 8},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2},
    "CPT": {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1] * 3, "cpt_tokens_type_mask": [1, 2, 3]},
    "P_TUNING": {"num_virtual_tokens": 3},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_of_peft_gives_the_gradients_of_its_own_parameters(kind, tmp_path):
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        pytest.skip(f"this PEFT has no {kind}")
    model = get_peft_model(make("llama"), PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **KINDS[kind]))
    for parameter in model.parameters():  # away from zero, where many begin
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    model, samples = model.double().eval(), conversations("llama")
    expected = torch.stack([gradient(model, sample) for sample in samples])
    assert_equal(features(model, "llama", samples, collate, tmp_path), expected)


@pytest.mark.parametrize(("name", "kind"), [("llama", "lora"), ("qwen", "full"), ("gemma", "full"), ("gpt2", "lora")])
def test_padding_on_the_left_and_packing_change_nothing(name, kind, tmp_path):
    model, samples = make(name, kind).double(), conversations(name)
    expected = torch.stack([gradient(model, sample) for sample in samples])
    left = placed if name == "gpt2" else padded_left
    assert_equal(features(model, name, samples, left, tmp_path / "left"), expected)
    both = features(model, name, [samples[:2], samples[2:]], packed, tmp_path / "packed", batch_size=1)
    assert_equal(both, torch.stack([expected[:2].sum(0), expected[2:].sum(0)]))


def test_packed_conversations_are_refused_under_prompt_tuning():
    with pytest.raises(DataError, match="PEFT ignores them under prompt tuning"):
        CausalLM().output(make("llama", "prompt"), packed([conversations("llama")[:2]]))


def test_columns_of_a_dataset_that_the_model_does_not_take_are_left_out():
    rows = [{**each, "source": "wiki", "score": 0.5} for each in CHATS]
    assert ChatDataset(rows, Encoder(tokenizer(), LIMIT))[0].keys() == {"input_ids", "labels"}
