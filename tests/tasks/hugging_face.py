"""Tiny models of `transformers`, with random weights."""

VOCABULARY = 31
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {**TOWER, "num_hidden_layers": 1}
    return BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, max_position_embeddings=8, num_labels=3, **sizes)
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, **SPECIAL))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **SPECIAL,
        )
    )


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0))


def mt5():
    from transformers import MT5Config, MT5ForConditionalGeneration

    return MT5ForConditionalGeneration(MT5Config(**T5, decoder_start_token_id=0))


def clip():
    from transformers import CLIPConfig, CLIPModel

    text = {**TOWER, **SPECIAL, "vocab_size": VOCABULARY, "max_position_embeddings": 12}
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 16, "patch_size": 8}, projection_dim=8)
    )
