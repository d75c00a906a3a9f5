"""A language model: GPT-2, four layers of width 128 with tied embeddings, pretrained on 5,491 dictionary entries and fine-tuned on
2,000 others; or smaller."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import DataLoader
from trak_lightning_demos.dictionary import entries
from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.pretrained import transformers
from trak_lightning_demos.words import padded

from trak_lightning.demos.held_out import HeldOut

LENGTH = 32
"""Tokens of a sample that are read."""
VOCABULARY = 2048
PAD, BEGIN, END = range(3)
PRETRAINING_EPOCHS = 4


@cache
def tokenizer(texts: tuple[str, ...]) -> Tokenizer:
    """Byte pairs, learned from the texts."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found.decoder = decoders.ByteLevel()
    found.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return found


class EntryGPT(TransformerModule):
    """GPT-2 without dropout, p = 1.06 M; AdamW, one cycle.

    Args:
        lr: peak learning rate.
        weight_decay: of AdamW.
        eps: of AdamW.
        width: of the embedding and of every layer.
        layers: number of layers.
    """

    def __init__(
        self, lr: float = 1e-3, weight_decay: float = 0.1, eps: float = 1e-8, width: int = 128, layers: int = 4
    ) -> None:
        super().__init__(lr, weight_decay, eps)
        with transformers() as library:
            config = library.GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=LENGTH,
                n_embd=width,
                n_layer=layers,
                n_head=4,
                bos_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                loss_type="ForCausalLM",
            )
            self.model = library.GPT2LMHeadModel(config)


class EntryData(HeldOut):
    """Dictionary entries, ``word : gloss``: 2,000 to fine-tune on, targets, and all others, which the model is pretrained on.

    Args:
        num_targets: entries held out as the test set.
        num_train: training samples.
        batch_size: of all loaders.
        seed: of the split.
    """

    def __init__(self, num_targets: int = 100, num_train: int = 2000, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__(num_targets, batch_size, seed)
        self.num_train = num_train

    @staticmethod
    def texts() -> tuple[str, ...]:
        """All entries, each a sample."""
        return tuple(entries())

    def setup(self, stage: str | None = None) -> None:
        texts = self.texts()
        encode = tokenizer(texts).encode
        rest, test = self.split(len(texts))
        self.train_set, self.test_set, self.pretraining_set = (
            [[BEGIN, *encode(texts[i]).ids[: LENGTH - 2], END] for i in part]
            for part in (rest[: self.num_train], test, rest[self.num_train :])
        )

    @staticmethod
    def collate(samples: list[list[int]]) -> dict[str, Any]:
        """A batch of entries, filled up."""
        ids: Tensor = padded(samples)
        there = ids != PAD
        return {"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~there, -100)}


def pretrained(data: EntryData, path: Path, make: Callable[..., TransformerModule] = EntryGPT) -> TransformerModule:
    """The model before fine-tuning, as `make` returns it, trained if `path` does not exist."""
    if not path.exists():
        L.seed_everything(0, verbose=False)
        loader = DataLoader(data.pretraining_set, data.batch_size, shuffle=True, collate_fn=data.collate)
        model = make(lr=3e-3, eps=1e-8)
        L.Trainer(
            accelerator="cpu",
            max_epochs=PRETRAINING_EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, loader)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    model = make()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model
