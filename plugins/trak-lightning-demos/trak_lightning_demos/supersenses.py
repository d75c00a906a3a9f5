"""A small BERT that tags each word of a WordNet gloss with its category, which the dictionary's own entry of the word gives."""

from functools import cache

from torch.utils.data import Dataset

from trak_lightning.demos.held_out import HeldOut
from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.pretrained import transformers
from trak_lightning_demos.words import PAD, Vocabulary, labelled, words

LENGTH = 32
"""Maximum number of words of a gloss; longer glosses are cut."""
VOCABULARY = 4000
SHORTEST = 4
"""Minimum number of letters of a tagged word. The entries of ``a``, ``can`` and the like do not have the meaning that these words
have in a gloss."""


@cache
def glosses() -> list[str]:
    """Return the glosses that have a tagged word."""
    return [gloss.gloss for gloss in read_glosses() if any(tags(gloss.gloss))]


@cache
def categories() -> list[str]:
    """Return the categories, in alphabetical order."""
    return sorted({gloss.category for gloss in read_glosses()})


@cache
def _dictionary() -> dict[str, str]:
    """Return the category of every word that has only one."""
    found: dict[str, set[str]] = {}
    for gloss in read_glosses():
        found.setdefault(gloss.word.lower(), set()).add(gloss.category)
    return {word: min(kinds) for word, kinds in found.items() if len(kinds) == 1 and len(word) >= SHORTEST}


def tags(gloss: str) -> list[str | None]:
    """Look up the category of each word of a gloss; None for words that are not tagged."""
    return [_dictionary().get(word) for word in words(gloss)]


@cache
def vocabulary() -> Vocabulary:
    """Return a vocabulary of the most frequent words of all glosses."""
    return Vocabulary(glosses(), VOCABULARY)


class SupersenseTagger(TransformerModule):
    """BERT with two layers, trained from scratch.

    Args:
        width: hidden size of all layers.
        layers: number of layers.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(self, width: int = 32, layers: int = 2, lr: float = 5e-3, weight_decay: float = 0.1) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        with transformers() as library:
            config = library.BertConfig(
                vocab_size=len(vocabulary()),
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=2 * width,
                max_position_embeddings=LENGTH,
                num_labels=len(categories()),
                pad_token_id=PAD,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            self.model = library.BertForTokenClassification(config)


class SupersenseDataModule(HeldOut):
    """Glosses: `input_ids`, `attention_mask`, `labels` (−100 for words without a tag and padding).

    Args:
        num_targets: number of glosses held out as the test set.
        num_train: number of training samples, drawn at random by `seed`; all if None.
        batch_size: batch size of both loaders.
        seed: seed of the split.
    """

    def __init__(
        self, num_targets: int = 200, num_train: int | None = None, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__(num_targets, batch_size, seed)
        self.num_train = num_train

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = vocabulary()
        train, test = self.split(len(glosses()))
        self.train_set, self.test_set = (
            TaggedGlosses([glosses()[i] for i in part]) for part in (train[: self.num_train], test)
        )

    collate = staticmethod(labelled)


class TaggedGlosses(Dataset):
    """Glosses as token ids, with the ids of their tags."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        text = self.texts[index]
        labels = [-100 if tag is None else categories().index(tag) for tag in tags(text)]
        return {"input_ids": vocabulary().encode(text)[:LENGTH], "labels": labels[:LENGTH]}
