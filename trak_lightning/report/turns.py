"""Turns of a conversation in what a chat template wrote."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.report.shown import ANSWER, PROMPT
from trak_lightning.run.arrays import Array
from trak_lightning.tasks.tokens import IGNORE_INDEX

_TURNS = (
    re.compile(r"<\|im_start\|>\s*(\w+)\s(.*?)(?:<\|im_end\|>|$)", re.DOTALL),
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|$)", re.DOTALL),
    re.compile(r"<start_of_turn>\s*(\w+)\s(.*?)(?:<end_of_turn>|$)", re.DOTALL),
    re.compile(r"<\|(user|assistant|system)\|>\s*(.*?)(?=<\|(?:user|assistant|system|end)\|>|</s>|$)", re.DOTALL),
)
"""As the chat templates of ChatML, Llama 3, Gemma and Zephyr write them."""

_ROLES = ("system", "user", "assistant", "user", "assistant")
_SAID = ("\uf8f0", "\uf8f1", "\uf8f2", "\uf8f3", "\uf8f4")
"""The conversation by which a template is read: what is said are characters of nobody's text."""


def turns_in(text: str) -> list[tuple[str, str]]:
    """The role and the text of each turn; none if `text` is no conversation."""
    return next(
        ([(role, said.strip()) for role, said in found] for each in _TURNS if (found := each.findall(text))), []
    )


def masked_turns(ids: Array, labels: Array, decode: Callable[[list[int]], str]) -> list[tuple[str, str]]:
    """The prompts and answers in token ids (T,) whose `labels` (T,) are −100 in prompts, with their roles; none if there are no prompts or no
    answers."""
    answered = labels != IGNORE_INDEX
    end = int(np.flatnonzero(answered)[-1]) + 1 if answered.any() else 0  # padding follows
    starts = [0, *(np.flatnonzero(np.diff(answered[:end])) + 1)]
    found = [
        (ANSWER if answered[start] else PROMPT, _plain(decode(piece.tolist())))
        for start, piece in zip(starts, np.split(ids[:end], starts[1:]), strict=True)
    ]
    told = [(role, text) for role, text in found if text]
    return told if {role for role, _ in told} == {ANSWER, PROMPT} else []


def _plain(text: str) -> str:
    return " ".join(said for _, said in turns_in(text)) or text.strip()


def decoder(tokenizer: Any) -> Callable[[list[int]], str] | None:
    """Return what converts token ids to text; special tokens are left out, except for those around turns of a conversation, which
    are those of ChatML where the template of the tokenizer writes others that `turns_in` does not know.

    None if `tokenizer` does not decode.
    """
    decode = getattr(tokenizer, "decode", None)
    if decode is None:
        return None
    templates = [found for roles in (_ROLES, _ROLES[1:]) if (found := _Template.of(tokenizer, roles)) is not None]

    def text(ids: list[int]) -> str:
        whole = str(decode(ids))
        if turns_in(whole):
            return whole
        turns = next((found for each in templates if (found := each.turns(whole))), None)
        if turns is None:
            return str(decode(ids, skip_special_tokens=True))
        return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)

    return text


@dataclass(frozen=True)
class _Template:
    """What a chat template writes around turns, as patterns that take any white space, since tokenizers do not keep all of it.

    Attributes:
        system: whether the first turn is that of the system.
        start: before the first turn.
        first: between the turn of the system and the first question; without one, as `to_answer`.
        to_answer: between a question and its answer.
        to_question: between an answer and the next question.
        end: after the last answer.
    """

    system: bool
    start: str
    first: str
    to_answer: str
    to_question: str
    end: str

    @classmethod
    def of(cls, tokenizer: Any, roles: Sequence[str]) -> "_Template | None":
        """The template of a tokenizer; None if there is none, it refuses these roles or writes nothing between turns."""
        said = _SAID[: len(roles)]
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        try:
            written = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:  # there is no template, or it raises what it likes
            return None
        found = re.fullmatch("(.*)".join(("", *said, "")), written, re.DOTALL)
        if found is None:
            return None
        start, *between, end = map(_spaced, found.groups())
        first, to_answer, to_question = between[0], between[-3], between[-2]
        return cls(len(between) > 3, start, first, to_answer, to_question, end) if to_answer and to_question else None

    def turns(self, text: str) -> list[tuple[str, str]]:
        """The role and the text of each turn; none if the text does not begin as the template does, or has no answer."""
        begins = re.match(rf"\s*{self.start}\s*", text)
        if begins is None:
            return []
        rest, turns = text[begins.end() :], []
        if self.system:
            said, *others = re.split(self.first, rest, maxsplit=1)
            if not others or re.search(self.to_answer, said):
                return []
            rest, turns = others[0], [("system", said.strip())]
        spoken = re.split(f"{self.to_answer}|{self.to_question}", rest)
        spoken[-1] = re.sub(rf"{self.end}\s*$", "", spoken[-1])
        turns += [(("user", "assistant")[place % 2], said.strip()) for place, said in enumerate(spoken)]
        return turns if len(spoken) > 1 else []


def _spaced(text: str) -> str:
    """A pattern for a text with any white space, which a tokenizer may also put between its tokens."""
    return r"\s*".join(map(re.escape, "".join(text.split())))
