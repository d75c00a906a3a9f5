"""From an example to token ids, and which of them are answers.

Text is rendered once, as in training, and tokenized once; answers are intervals of characters of the rendered text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, TypeAlias

import torch
from torch import Tensor

from trak_lightning.chat.records import Record, TrainOn
from trak_lightning.errors import DataError
from trak_lightning.tasks.tokens import IGNORE_INDEX

Messages: TypeAlias = Sequence[dict[str, str]]
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """One example.

    Attributes:
        input_ids: (T,)
        labels: of a decoder (T,), `input_ids` where a token is trained on and −100 elsewhere; of an encoder-decoder (U,).
        merged: whether the tokens that the prompt has alone do not begin the example, such as where a token holds the end of the prompt
            and the beginning of the answer.
    """

    input_ids: Tensor
    labels: Tensor
    merged: bool = False

    @property
    def sample(self) -> dict[str, Tensor]:
        """The sample of a dataset."""
        return {"input_ids": self.input_ids, "labels": self.labels}


@dataclass(frozen=True)
class Encoder:
    """Encode examples as a trainer does.

    ===================================  ==========================================================================
    ``messages``                         the chat template of the tokenizer; answers are the turns of the assistant
    ``prompt`` and ``completion``        strings, or lists of messages; the answer is the completion
    ``text``                             all of it is trained on
    ===================================  ==========================================================================

    The turns of the assistant are what the template marks with ``{% generation %}``. From a template without such marks they
    are found by rendering the conversation up to each turn, and must then be beginnings of the whole. Where there is no
    template, the end-of-sequence token is appended.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        max_length: longer examples are cut off at the end.
        train_on: which tokens of a conversation are trained on: the ``answers`` of the assistant, or ``all``.
        encoder_decoder: encode prompt and completion separately, for models such as T5.
    """

    tokenizer: Any
    max_length: int
    train_on: TrainOn = "answers"
    encoder_decoder: bool = False

    def encode(self, record: Record, where: str) -> Encoded:
        """Encode one example; `where` names it in messages.

        Raises:
            DataError: the example is of no known form, has no answer, or its answer lies behind `max_length`.
        """
        encoded = self._pair(record, where) if self.encoder_decoder else self._sequence(record, where)
        limit = self.max_length
        cut = replace(encoded, input_ids=encoded.input_ids[:limit], labels=encoded.labels[:limit])
        predicted = cut.labels if self.encoder_decoder else cut.labels[1:]
        if not (predicted != IGNORE_INDEX).any():
            length = len(encoded.input_ids)
            reason = (
                f"within max_length={limit} of its {length} tokens" if length > limit else f"in its {length} tokens"
            )
            raise DataError(f"{where} has no answer to train on {reason}. Leave it out, or raise max_length.")
        return cut

    def prompt(self, messages: Messages | str, where: str) -> list[int]:
        """The token ids after which the model answers a conversation or a text."""
        if isinstance(messages, str):
            ids: list[int] = self.tokenizer(messages)["input_ids"]
            # What a tokenizer puts at the end of a text would end the answer before it has begun.
            ends = not self.encoder_decoder and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
            return ids[:-1] if ends else ids
        text = self._render(messages, where, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pair(self, record: Record, where: str) -> Encoded:
        prompt, completion = record.get("prompt"), record.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(
                f"{where} has {columns(record)}; an encoder-decoder needs a prompt and a completion, both of them text"
            )
        ids, labels = self.tokenizer(prompt)["input_ids"], self.tokenizer(text_target=completion)["input_ids"]
        return Encoded(torch.tensor(ids), torch.tensor(labels))

    def _sequence(self, record: Record, where: str) -> Encoded:
        messages = conversation(record)
        if messages is not None:
            return self._chat(messages, where, as_messages(record.get("prompt")))
        prompt, answer = record.get("prompt"), record.get("completion")
        if isinstance(prompt, str) and isinstance(answer, str):
            encoded = self._text(prompt + answer)
            return encoded if self.train_on == "all" else _after(self.tokenizer(prompt)["input_ids"], encoded)
        if isinstance(text := record.get("text"), str):
            return self._text(text)
        raise DataError(
            f"{where} has {columns(record)}; expected messages, prompt and completion, or text. Rename the columns, or convert what is in "
            'them: text is a string, messages a list of {"role": …, "content": …}, and prompt and completion are both strings or both such lists.'
        )

    def _text(self, text: str) -> Encoded:
        ids, end = self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id
        ids = ids if end is None or (ids and ids[-1] == end) else [*ids, end]
        return _encoded(ids, [True] * len(ids))

    def _chat(self, messages: Messages, where: str, prompt: Messages | None) -> Encoded:
        if not any(message.get("role") == "assistant" for message in messages):
            raise DataError(
                f"{where} has no turn of the assistant (roles: {', '.join(str(m.get('role')) for m in messages)}), so there "
                'is no answer in it. Leave it out, or rename the columns: an answer is {"role": "assistant", "content": …}.'
            )
        marked = "{% generation" in self._template(where) or "{%- generation" in self._template(where)
        if marked and self.train_on == "answers" and prompt is None:
            found = self._apply(messages, where, return_assistant_tokens_mask=True, return_dict=True)
            return _encoded(found["input_ids"], [bool(each) for each in found["assistant_masks"]])
        whole = self._render(messages, where)
        found = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        if self.train_on == "answers" and prompt is not None:
            ids = found["input_ids"]
            return _after(self.prompt(prompt, where), _encoded(ids, [True] * len(ids)))
        spans = [(0, len(whole))] if self.train_on == "all" else list(self._turns(messages, whole, where))
        return _encoded(found["input_ids"], _inside(found["offset_mapping"], spans))

    def _turns(self, messages: Messages, whole: str, where: str) -> Iterator[Span]:
        """Where the answers of the assistant are in the rendered conversation, with what ends each."""
        end = self.tokenizer.eos_token
        for place, message in enumerate(messages):
            if message.get("role") == "assistant":
                start = self._beginning(messages[:place], whole, place, where)
                stop = self._beginning(messages[: place + 1], whole, place, where, answered=True)
                answer = whole[start:stop]
                yield start, start + (answer.rindex(end) + len(end) if end and end in answer else len(answer))

    def _beginning(self, messages: Messages, whole: str, turn: int, where: str, *, answered: bool = False) -> int:
        """The length of the first turns of a rendered conversation, and of what asks for an answer unless it is `answered`."""
        text = self._render(messages, where, **({} if answered else {"add_generation_prompt": True}))
        if not whole.startswith(text):
            raise DataError(
                f"the chat template renders turn {turn} of {where} otherwise in the whole conversation than at its end, "
                "so the tokens of the assistant cannot be told from it. Mark them in the template with "
                "{% generation %} … {% endgeneration %}, or use train_on='all'."
            )
        return len(text)

    def _render(self, messages: Messages, where: str, **options: Any) -> str:
        return str(self._apply(messages, where, tokenize=False, **options))

    def _apply(self, messages: Messages, where: str, **options: Any) -> Any:
        self._template(where)
        try:
            return self.tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses {where}: {type(error).__name__}: {error}") from error

    def _template(self, where: str) -> str:
        template = getattr(self.tokenizer, "chat_template", None)
        if not template:
            raise DataError(
                f"{where} is a conversation, and the tokenizer has no chat template. Give the folder of a tokenizer with the "
                "template that the model was trained with, or examples with prompt and completion."
            )
        return str(template)


def conversation(record: Record) -> Messages | None:
    """The messages of an example, those of its prompt and completion together; None if it is no conversation."""
    if (found := as_messages(record.get("messages"))) is not None:
        return found
    prompt, completion = as_messages(record.get("prompt")), as_messages(record.get("completion"))
    return None if prompt is None or completion is None else [*prompt, *completion]


def is_plain(record: Record) -> bool:
    """Whether an example is plain text, and no part of it a conversation."""
    chat = any(as_messages(record.get(name)) is not None for name in ("messages", "prompt", "chosen"))
    return not chat and any(isinstance(record.get(name), str) for name in ("prompt", "text"))


def as_messages(value: Any) -> Messages | None:
    """A list of messages; None for anything else."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        return None
    return [dict(message) for message in value] if all(isinstance(each, dict) for each in value) else None


def _inside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token overlaps with one of the intervals; tokens without characters do not."""
    return [any(start < last and end > first for first, last in spans) and end > start for start, end in offsets]


def _after(prompt: Sequence[int], encoded: Encoded) -> Encoded:
    """An example of whose tokens the first are not trained on, as many as begin like the tokens of the prompt (the rule of TRL since 1.15)."""
    pairs = zip(prompt, encoded.input_ids.tolist(), strict=False)
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    before = torch.arange(len(encoded.labels)) < common
    return Encoded(encoded.input_ids, encoded.labels.masked_fill(before, IGNORE_INDEX), common < len(prompt))


def _encoded(ids: Sequence[int], counted: Sequence[bool]) -> Encoded:
    input_ids = torch.tensor(ids, dtype=torch.long)
    return Encoded(input_ids, input_ids.masked_fill(~torch.tensor(counted, dtype=torch.bool), IGNORE_INDEX))


def columns(record: Record) -> str:
    """The columns of an example and what is in them, in words."""
    found = ", ".join(f"{name} ({type(value).__name__})" for name, value in record.items())
    return f"the columns {found}" if found else "no columns"
