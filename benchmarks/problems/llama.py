"""A second language model: Llama with RMSNorm, rotary positions, SwiGLU, grouped queries and an output layer of its own, pretrained
on 11,152 film reviews and fine-tuned on 1,500 others."""

from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.pretrained import transformers

from problems.gpt import BEGIN, END, LENGTH, PAD, VOCABULARY, EntryData
from problems.reviews import reviews


class ReviewLlama(TransformerModule):
    """Llama with three layers of width 96, p = 698,016; AdamW, one cycle.

    Args:
        lr: peak learning rate.
        weight_decay: of AdamW.
        eps: of AdamW.
    """

    def __init__(self, lr: float = 1e-3, weight_decay: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__(lr, weight_decay, eps)
        with transformers() as library:
            config = library.LlamaConfig(
                vocab_size=VOCABULARY,
                max_position_embeddings=LENGTH,
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=False,
                bos_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )
            self.model = library.LlamaForCausalLM(config)


class ReviewData(EntryData):
    """Film reviews in place of dictionary entries, with byte pairs of their own; each text once."""

    @staticmethod
    def texts() -> tuple[str, ...]:
        return tuple(dict.fromkeys(review["text"] for review in reviews()))
