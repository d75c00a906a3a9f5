"""Tiny language models of every kind, and a tokenizer, made from scratch."""

from functools import cache

import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64}


@cache
def _bytes(*merges):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = ["<|pad|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces = [*alphabet, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE(vocab={each: number for number, each in enumerate(pieces)}, merges=list(merges)))
    tokenizer.add_special_tokens(alphabet[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def tokenizer(template=CHATML, *merges):
    """A tokenizer of bytes, and of pairs of bytes that it `merges`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bytes(*merges)), eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    made.chat_template = template
    return made


def special(made):
    return {"vocab_size": len(made), "eos_token_id": made.eos_token_id, "pad_token_id": 0, "bos_token_id": 1}


def llama(made):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**GROUPED, **special(made)))


def qwen(made):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**GROUPED, **special(made)))


def gemma(made):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, **special(made), sliding_window=32))


def gpt2(made):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=2, **special(made)))


def t5(made):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, **special(made), decoder_start_token_id=0))


MODELS = {"llama": llama, "qwen": qwen, "gemma": gemma, "gpt2": gpt2, "t5": t5}


def adapted(kind, model):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    lora = {"task_type": task, "r": 2, "target_modules": "all-linear", "init_lora_weights": False}
    lora["fan_in_fan_out"] = model.config.model_type == "gpt2"
    config = {
        "full": None,
        "lora": LoraConfig(**lora),
        "dora": LoraConfig(**lora, use_dora=True),
        "prompt": PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    }[kind]
    return model if config is None else get_peft_model(model, config)


def make(name, kind="full", seed=0):
    torch.manual_seed(seed)
    return adapted(kind, MODELS[name](tokenizer())).eval()


def chat(question, *answers):
    """A conversation in which the question is asked again for each answer."""
    turns = [(role, text) for each in answers for role, text in (("user", question), ("assistant", each))]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}
