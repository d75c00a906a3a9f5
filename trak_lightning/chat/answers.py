"""What is asked of the model: given answers, answers that it writes itself, parts of answers, and differences of two."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.chat.encoding import Encoded, Encoder, as_messages, columns, conversation
from trak_lightning.chat.records import Record, Records
from trak_lightning.data.content import content_hash
from trak_lightning.errors import DataError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.tasks.tokens import IGNORE_INDEX

_LIMIT = "max_length, by default what the model takes"
MOST_NEW_TOKENS = 128
"""Length of an answer at most, unless it is given or there is less room after the prompt."""


@dataclass(frozen=True)
class Answer:
    """One target: an answer after its prompt.

    Attributes:
        encoded: its tokens; labels are −100 but for the answer, or the part of it that is asked about.
        text: the answer.
        record: the position of the example that it belongs to.
        group: answers of a group are scored together, next to being scored alone; None for none.
        coefficient: of this answer in its group: −1 for what is subtracted.
        reply: the tokens that the model wrote; None for an answer that was given.
        question: what the user said last before it; empty if nobody did.
        span: the part of the answer that is asked about; None for all of it.
    """

    encoded: Encoded
    text: str
    record: int
    group: str | None = None
    coefficient: float = 1.0
    reply: tuple[int, ...] | None = None
    question: str = ""
    span: str | None = None

    @property
    def prompt(self) -> list[int]:
        """The tokens that the model replied to."""
        ids: list[int] = self.encoded.input_ids.tolist()
        begins_with_prompt = len(self.encoded.labels) == len(ids) and self.reply is not None
        return ids[: -len(self.reply)] if begins_with_prompt and self.reply else ids


@dataclass(frozen=True)
class Generation:
    """How a model answers prompts.

    Args:
        max_new_tokens: length of an answer at most; if None, 128, or what there is room for after the prompt.
        temperature: 0 for the most probable token each time; otherwise tokens are drawn.
        seed: of the draws.
        weights: tells answers of these weights from those of others; see `trak_lightning.chat.loading.content_of`.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    weights: str = ""

    def after(self, prompt: Sequence[int], encoder: Encoder) -> "Generation":
        """The same with the length that an answer to this prompt may have."""
        if self.max_new_tokens is not None:
            return self
        return replace(self, max_new_tokens=min(MOST_NEW_TOKENS, _room(prompt, encoder)))

    def write(self, model: nn.Module, prompt: Sequence[int]) -> list[int]:
        """The tokens that `model` writes after a prompt, or in reply to it if it is an encoder-decoder."""
        ids = torch.tensor([prompt], device=next(model.parameters()).device)
        generator: Any = model
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            found = generator.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=_pad(generator), **options
            )[0].tolist()
        return found[1:] if generator.config.is_encoder_decoder else found[len(prompt) :]


def read_answers(
    records: Records, encoder: Encoder, model: Callable[[], nn.Module], generation: Generation, kept: Path | None = None
) -> list[Answer]:
    """Make targets of examples; what the model must write is written once.

    An example with an answer is one target. One with a ``prompt`` alone, or ``messages`` that do not end with an answer, is
    answered by the model. One with ``chosen`` and ``rejected`` is two targets, a group whose output is their difference.
    ``span``, text that occurs in the answer, restricts a target to its tokens; ``group`` names a group. The target in a
    conversation is its last answer.

    Args:
        records: the examples.
        encoder: encodes them. A target longer than its ``max_length`` is refused, and not cut off.
        model: returns the model; called if there is something to write.
        generation: how the model writes.
        kept: a file that keeps the answers; those in it are not written again.

    Raises:
        DataError: as `ask`; or a span does not occur in what the model wrote, or a prompt was answered by other weights, or with
            other settings, in `kept`.
    """
    asked = ask(records, encoder, generation)
    writer = _Writer(model, generation, encoder, _Kept.read(kept))
    found: list[Answer] = []
    without: list[str] = []
    for each in asked:
        encoded, text, reply = each.encoded, each.text, None
        if encoded is None:
            reply = writer.reply(each.prompt, each.where)
            written = _after(each.prompt, reply, encoder.encoder_decoder)
            _require_room(written, encoder.max_length, each.where)
            try:
                encoded, text = _narrowed(written, each.span, encoder, each.where)
            except DataError as error:
                without.append(str(error))
                encoded, text = _narrowed(written, None, encoder, each.where)
        found.append(Answer(encoded, text, each.record, each.group, each.coefficient, reply, each.question, each.span))
    if kept is not None:
        _keep(kept, found, generation, encoder)
    if without:  # raised now, so that what the model wrote is kept
        others = f"; the spans of {len(without)} questions do not occur" if len(without) > 1 else ""
        where = "" if kept is None else f" {kept} has all answers: name a part of them, or leave these questions out."
        raise DataError(f"{without[0]}{others}.{where}")
    return found


def combination(answers: Sequence[Answer]) -> tuple[list[str], list[int], list[float]] | None:
    """The names of all groups, the group of every answer, and its coefficient in it, so that the sum is the mean over the
    examples of a group. Answers without a group are groups of their own. None if no answer has a group."""
    if not any(answer.group for answer in answers):
        return None
    own = [answer.group or f"example {answer.record}" for answer in answers]
    names = list(dict.fromkeys(own))
    examples = {name: len({a.record for a, group in zip(answers, own, strict=True) if group == name}) for name in names}
    numbers = [names.index(group) for group in own]
    coefficients = [answer.coefficient / examples[group] for answer, group in zip(answers, own, strict=True)]
    return names, numbers, coefficients


@dataclass(frozen=True)
class Asked:
    """One target before the model has answered: a given answer as in `Answer`, or a prompt."""

    where: str
    record: int
    span: str | None
    group: str | None
    coefficient: float
    question: str
    prompt: Sequence[int] = ()
    encoded: Encoded | None = None
    text: str = ""


def ask(records: Records, encoder: Encoder, generation: Generation) -> list[Asked]:
    """Encode what is asked, without the model, so that what cannot be answered is named before anything is written.

    Raises:
        DataError: an example has no prompt, its answer is longer than ``max_length`` or has no such span, or prompts leave no room for
            an answer.
    """
    answers = replace(encoder, train_on="answers", max_length=sys.maxsize)
    found: list[Asked] = []
    for number, row in enumerate(records.rows):
        record = {name: value for name, value in row.items() if value is not None}  # which datasets fill up with
        where, span = records.where(number), None if record.get("span") is None else str(record["span"])
        for part, coefficient, group in _parts(record, number, where):
            prompt, question = _open_prompt(part), _question(part)
            if prompt is not None:
                ids = answers.prompt(prompt, where)
                found.append(Asked(where, number, span, group, coefficient, question, ids))
                continue
            encoded = answers.encode(part, where)
            _require_room(encoded, encoder.max_length, where)
            encoded, text = _narrowed(encoded, span, answers, where)
            found.append(Asked(where, number, span, group, coefficient, question, encoded=encoded, text=text))
    _require_room_to_answer([each for each in found if each.encoded is None], encoder, generation.max_new_tokens)
    return found


@dataclass(frozen=True)
class _Writer:
    """Answers that the model writes, or wrote in an earlier run."""

    model: Callable[[], nn.Module]
    generation: Generation
    encoder: Encoder
    kept: "_Kept"

    def reply(self, prompt: Sequence[int], where: str) -> tuple[int, ...]:
        """The tokens of the answer to a prompt.

        Raises:
            DataError: other weights or settings answered it.
        """
        generation = self.generation.after(prompt, self.encoder)
        found = self.kept.reply(prompt, generation, where)
        if found is None:
            found = self.kept.replies[tuple(prompt)] = tuple(generation.write(self._made, prompt))
        return found

    @cached_property
    def _made(self) -> nn.Module:
        return self.model()


@dataclass(frozen=True)
class _Kept:
    """Answers that were written earlier.

    Attributes:
        replies: prompt → reply, in tokens.
        generations: prompt → the settings that it was answered with.
        path: the file that they were read from.
    """

    replies: dict[tuple[int, ...], tuple[int, ...]]
    generations: dict[tuple[int, ...], dict[str, Any]]
    path: Path | None

    @classmethod
    def read(cls, path: Path | None) -> "_Kept":
        """What a file holds; nothing if there is none."""
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        rows = [row for row in map(json.loads, lines) if "answer_ids" in row]
        replies = {tuple(row["prompt_ids"]): tuple(row["answer_ids"]) for row in rows}
        return cls(replies, {tuple(row["prompt_ids"]): row["generation"] for row in rows}, path)

    def reply(self, prompt: Sequence[int], generation: Generation, where: str) -> tuple[int, ...] | None:
        """The reply to a prompt; None if it was not answered.

        Raises:
            DataError: other weights answered it, or other settings.
        """
        now = asdict(generation)
        before = self.generations.get(tuple(prompt), now)
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            how = " and ".join(
                "other weights or files of the model" if n == "weights" else f"{n} {before.get(n)} (now {now[n]})"
                for n in other
            )
            raise DataError(
                f"{self.path} has an answer to {where} that was written with {how}. Scores next to it explain that answer. Use "
                + (
                    "another run directory"
                    if "weights" in other
                    else "another name of these targets, trak sft --name again"
                )
                + ", or in Python another file of answers."
            )
        return self.replies.get(tuple(prompt))


def _after(prompt: Sequence[int], reply: Sequence[int], encoder_decoder: bool) -> Encoded:
    """A prompt and the reply to it, of which only the reply is predicted."""
    ids, answer = torch.tensor(prompt), torch.tensor(reply)
    if encoder_decoder:
        return Encoded(ids, answer)
    return Encoded(torch.cat([ids, answer]), torch.cat([torch.full_like(ids, IGNORE_INDEX), answer]))


def _require_room(encoded: Encoded, limit: int, where: str) -> None:
    length = max(len(encoded.input_ids), len(encoded.labels))
    if length > limit:
        raise DataError(
            f"{where} is {length} tokens long, and may have {limit} ({_LIMIT}); a target is not cut off. Shorten it, or raise "
            "max_length if the model takes more."
        )


def _room(prompt: Sequence[int], encoder: Encoder) -> int:
    """How many tokens an answer to a prompt may have."""
    return encoder.max_length if encoder.encoder_decoder else encoder.max_length - len(prompt)


def _require_room_to_answer(asked: Sequence[Asked], encoder: Encoder, most: int | None) -> None:
    """Refuse prompts after which there is no room for `most` tokens, or for any, all of them at once."""
    limit = encoder.max_length
    rooms = [limit - len(each.prompt) for each in asked]
    short = [room for room in rooms if room < (0 if encoder.encoder_decoder else most or 1)]
    if not short:
        return
    least = min(short)
    remedy = "Shorten these prompts"
    if least > 0:
        remedy = f"Lower max_new_tokens to {least}, with which all prompts fit, or shorten these"
    length = f", which may have {most} tokens (max_new_tokens)" if most else ""
    raise DataError(
        f"{len(short)} of {len(asked)} prompts leave no room for an answer{length}: the longest, "
        f"{asked[rooms.index(least)].where}, is {limit - least} tokens long, and prompt and answer together may have {limit} ({_LIMIT}). "
        f"{remedy}."
    )


def _parts(record: Record, number: int, where: str) -> list[tuple[Record, float, str | None]]:
    """The answers of an example: what is encoded, its coefficient, and its group."""
    pair = {"chosen", "rejected"} & record.keys()
    asked = conversation(record) or record.get("prompt") or record.get("text")
    if len(pair) == 1 or not (pair or isinstance(asked, (str, list))):
        raise DataError(
            f"{where} has {columns(record)}; expected messages or a prompt that the model answers, or, with an answer: messages, prompt "
            "and completion, prompt and chosen and rejected, or text. Rename the columns."
        )
    group = None if record.get("group") is None else str(record["group"])
    if not pair:
        return [(record, 1.0, group)]
    name = group or f"example {number}: chosen − rejected"
    return [(_continued(record, "chosen"), 1.0, name), (_continued(record, "rejected"), -1.0, name)]


def _open_prompt(record: Record) -> Any:
    """What the model is to answer; None if there is an answer already."""
    messages = conversation(record)
    if messages is not None:
        return None if messages[-1].get("role") == "assistant" else messages
    if "completion" in record or "text" in record or "prompt" not in record:
        return None
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else as_messages(prompt)


def _question(record: Record) -> str:
    """What the user said last."""
    prompt = record.get("prompt")
    turns = conversation(record) or as_messages(prompt) or ()
    said = [str(turn.get("content")) for turn in turns if turn.get("role") == "user"]
    return said[-1] if said else prompt if isinstance(prompt, str) else ""


def _continued(record: Record, part: str) -> Record:
    """The example with one of its two answers."""
    answer, prompt = record[part], record.get("prompt")
    if prompt is None:
        return {"messages": answer}
    if isinstance(answer, str) and as_messages(prompt) is not None:
        answer = [{"role": "assistant", "content": answer}]
    return {"prompt": prompt, "completion": answer}


def _narrowed(encoded: Encoded, span: str | None, encoder: Encoder, where: str) -> tuple[Encoded, str]:
    """The last answer of a conversation, or the tokens of it that hold `span`; and the text of the whole answer."""
    labels = encoded.labels if encoder.encoder_decoder else _last_answer(encoded.labels, encoder.tokenizer.eos_token_id)
    answer = labels != IGNORE_INDEX
    text = encoder.tokenizer.decode(labels[answer], skip_special_tokens=True)
    if span is not None:
        inside = torch.zeros_like(answer)
        inside[answer] = _tokens_of(encoder.tokenizer, labels[answer], span, where)
        labels = labels.masked_fill(~inside, IGNORE_INDEX)
    return Encoded(encoded.input_ids, labels), text


def _last_answer(labels: Tensor, end: int | None) -> Tensor:
    """The labels of the last answer of a conversation, up to what ends it; the ones before it belong to what was asked."""
    counted = (labels != IGNORE_INDEX).nonzero()[:, 0]
    gaps = (counted.diff() > 1).nonzero()[:, 0]
    start = int(counted[int(gaps[-1]) + 1]) if len(gaps) else int(counted[0])
    ends = torch.eq(labels, -1 if end is None else end).nonzero()[:, 0]
    stop = int(ends[-1]) + 1 if len(ends) else len(labels)
    places = torch.arange(len(labels))
    return labels.masked_fill((places < start) | (places >= stop), IGNORE_INDEX)


def _tokens_of(tokenizer: Any, ids: Tensor, span: str, where: str) -> Tensor:
    """Which tokens of an answer hold the text `span`, where it occurs first: (T,) bool."""
    ends = [len(tokenizer.decode(ids[: place + 1])) for place in range(len(ids))]
    text = tokenizer.decode(ids)
    first = text.find(span)
    if first < 0 or not span:
        raise DataError(f"{where} asks about the span {span!r}, which does not occur in its answer {text!r}")
    starts = [0, *ends[:-1]]
    return torch.tensor([s < first + len(span) and e > first for s, e in zip(starts, ends, strict=True)])


def _keep(kept: Path, answers: Sequence[Answer], generation: Generation, encoder: Encoder) -> None:
    lines = []
    for number, answer in enumerate(answers):
        line: dict[str, Any] = {
            "target": number,
            "example": answer.record,
            "question": answer.question,
            "answer": answer.text,
            "content": content_hash(answer.encoded.sample),
        }
        if answer.span is not None:
            line["span"] = answer.span
        if answer.group is not None:
            line |= {"group": answer.group, "coefficient": answer.coefficient}
        if answer.reply is not None:
            settings = asdict(generation.after(answer.prompt, encoder))
            line |= {"prompt_ids": answer.prompt, "answer_ids": answer.reply, "generation": settings}
        lines.append(json.dumps(line, ensure_ascii=False))
    with atomic_write(kept) as part:
        part.write_text("\n".join(lines) + "\n")


def _pad(model: Any) -> int:
    """A token to fill up with, which `generate` asks for and one prompt does not need."""
    found = model.generation_config.pad_token_id
    ends = model.generation_config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    return int(found if found is not None else end if end is not None else 0)
