"""A small GPT-2, trained from scratch on dictionary entries: 7,591 words with their definitions (WordNet 3.0)."""

from functools import cache
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from trak_lightning.demos.held_out import HeldOut
from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.pretrained import transformers
from trak_lightning_demos.words import BEGIN, END, PAD, Vocabulary, padded

LENGTH = 32
"""Number of tokens of an entry, begin and end included; longer entries are cut."""
VOCABULARY = 4000


@cache
def entries() -> list[str]:
    """Return the entries, ``word : gloss``, in the order of the file."""
    return [f"{gloss.word} : {gloss.gloss}" for gloss in read_glosses()]


@cache
def vocabulary() -> Vocabulary:
    """Return a vocabulary of the most frequent words of all entries."""
    return Vocabulary(entries(), VOCABULARY)


class DictionaryGPT(TransformerModule):
    """GPT-2 with two layers.

    Args:
        width: hidden size of all layers.
        layers: number of layers.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(self, width: int = 64, layers: int = 2, lr: float = 3e-3, weight_decay: float = 0.1) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        with transformers() as library:
            config = library.GPT2Config(
                vocab_size=len(vocabulary()),
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


class DictionaryDataModule(HeldOut):
    """Entries: `input_ids`, `attention_mask`, `labels` (−100 for padding).

    Args:
        num_targets: entries held out as the test set; the others are the training set.
        num_train: number of training samples, drawn at random by `seed`; all if None.
        batch_size: batch size of both loaders.
        seed: seed of the split.
    """

    def __init__(
        self, num_targets: int = 200, num_train: int | None = None, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__(num_targets, batch_size, seed)
        self.num_train = num_train

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = vocabulary()
        train, test = self.split(len(entries()))
        self.train_set, self.test_set = (
            Entries([entries()[i] for i in part]) for part in (train[: self.num_train], test)
        )

    @staticmethod
    def collate(samples: list[list[int]]) -> dict[str, Any]:
        """Collate entries to a padded batch."""
        ids: Tensor = padded(samples)
        there = ids != PAD
        return {"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~there, -100)}


class Entries(Dataset):
    """Texts as token ids, with begin and end tokens."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> list[int]:
        return [BEGIN, *vocabulary().encode(self.texts[index])[: LENGTH - 2], END]
