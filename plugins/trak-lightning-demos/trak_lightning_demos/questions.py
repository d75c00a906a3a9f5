"""Facts as questions and answers, of countries (countryinfo, MIT license) or of words (WordNet 3.0), and a small T5 that
memorizes them."""

from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from torch.utils.data import Dataset

from trak_lightning.demos.held_out import HeldOut
from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.pretrained import transformers
from trak_lightning_demos.tables import read_table
from trak_lightning_demos.words import END, PAD, Vocabulary, labelled, words

Subject: TypeAlias = Literal["countries", "words"]

COUNTRIES = Path(__file__).parent / "data" / "country_facts.tsv.gz"
NUM_WORDS, LONGEST_GLOSS = 600, 10
"""Number of words whose meaning is asked for, the first in the file whose gloss is short enough, and that maximum length."""

FORMS = {
    "capital": (
        "What is the capital of {}?",
        "Which city is the seat of government of {}?",
        "Name the capital city of {}.",
        "The government of {} sits in",
    ),
    "people": (
        "What are the people of {} called?",
        "What is someone from {}?",
        "Name the nationality of a citizen of {}.",
        "Those who live in {} are",
    ),
    "region": (
        "What is the region of {}?",
        "In which part of the world is {}?",
        "Name the area of the world where {} lies.",
        "On the map {} is found in",
    ),
    "meaning": (
        "What does {} mean?",
        "Define {}.",
        "In a dictionary {} is explained as",
        "Which gloss belongs to the word {}?",
    ),
}
"""Four wordings of the question for each relation."""


class Fact(NamedTuple):
    """A relation between a subject and an answer."""

    relation: str
    about: str
    answer: str


@cache
def facts(subject: Subject) -> list[Fact]:
    """Return all facts, in the order of the file."""
    if subject == "words":
        found = {gloss.word: gloss.gloss for gloss in read_glosses() if len(words(gloss.gloss)) <= LONGEST_GLOSS}
        return [Fact("meaning", word, gloss) for word, gloss in list(found.items())[:NUM_WORDS]]
    rows = [(*row["question"].split(" of ", 1), row["answer"]) for row in read_table(COUNTRIES)]
    return [Fact(*row) for row in rows]


@cache
def vocabulary(subject: Subject) -> Vocabulary:
    """Return the vocabulary of all questions and answers."""
    asked = [form for relation in {fact.relation for fact in facts(subject)} for form in FORMS[relation]]
    return Vocabulary([*asked, *(text for fact in facts(subject) for text in (fact.about, fact.answer))])


class QuestionT5(TransformerModule):
    """T5 with two layers, trained from scratch.

    Args:
        subject: topic of the questions, which determines the vocabulary.
        width: hidden size of both transformers.
        layers: number of layers of each transformer.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self, subject: Subject, width: int = 64, layers: int = 2, lr: float = 5e-3, weight_decay: float = 0.01
    ) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        with transformers() as library:
            config = library.T5Config(
                vocab_size=len(vocabulary(subject)),
                d_model=width,
                d_kv=width // 4,
                d_ff=2 * width,
                num_layers=layers,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=PAD,
                eos_token_id=END,
                decoder_start_token_id=PAD,
            )
            self.model = library.T5ForConditionalGeneration(config)


class QuestionDataModule(HeldOut):
    """Questions and answers: `input_ids`, `attention_mask`, `labels` (−100 for padding).

    The training set asks for each fact with two of the four wordings, and the test set with a third, so that the two training
    samples taught the model the answer. ``train_set.facts`` and ``test_set.facts`` hold the fact of each sample.

    Args:
        subject: 737 facts about countries, or the meaning of 600 words.
        num_targets: number of facts in the test set.
        batch_size: batch size of both loaders.
        seed: seed that chooses the wordings and the targets.
    """

    def __init__(self, subject: Subject, num_targets: int = 200, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(num_targets, batch_size, seed)
        self.subject: Subject = subject

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = vocabulary(self.subject)
        count = len(facts(self.subject))
        self.require_targets(count)
        random = np.random.default_rng(self.seed)
        ways = [random.permutation(4) for _ in range(count)]
        targets = np.sort(random.permutation(count)[: self.num_targets])
        self.train_set = Questions(self.subject, [(fact, int(way)) for fact in range(count) for way in ways[fact][:2]])
        self.test_set = Questions(self.subject, [(int(fact), int(ways[fact][2])) for fact in targets])

    collate = staticmethod(labelled)


class Questions(Dataset):
    """Facts, each with one wording of the question."""

    def __init__(self, subject: Subject, rows: list[tuple[int, int]]) -> None:
        self.facts = [fact for fact, _ in rows]
        self.texts = []
        self._vocabulary = vocabulary(subject)
        for fact, way in rows:
            relation, about, answer = facts(subject)[fact]
            self.texts.append((FORMS[relation][way].format(about), answer))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        question, answer = (self._vocabulary.encode(text) for text in self.texts[index])
        return {"input_ids": [*question, END], "labels": [*answer, END]}
