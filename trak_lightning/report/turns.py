"""Turns of a conversation in what a chat template wrote."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from trak_lightning.report.shown import ANSWER, PROMPT
from trak_lightning.run.arrays import Array
from trak_lightning.tasks.tokens import IGNORE_INDEX

_TURNS = (
    re.compile(r"<\|im_start\|>\s*(\w+)\n(.*?)(?:<\|im_end\|>|$)", re.DOTALL),
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|$)", re.DOTALL),
    re.compile(r"<start_of_turn>\s*(\w+)\n(.*?)(?:<end_of_turn>|$)", re.DOTALL),
    re.compile(r"<\|(user|assistant|system)\|>\s*(.*?)(?=<\|(?:user|assistant|system|end)\|>|</s>|$)", re.DOTALL),
)
"""As the chat templates of ChatML, Llama 3, Gemma and Zephyr write them."""

_SAID = ("\uf8f0", "\uf8f1", "\uf8f2", "\uf8f3")
"""What is said in a conversation by which a template is read: characters of nobody's text."""


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
    between = _between_turns(tokenizer)

    def text(ids: list[int]) -> str:
        whole = str(decode(ids))
        if turns_in(whole):
            return whole
        if between is not None and whole.startswith(between[0]) and between[1] in whole:
            start, to_answer, to_question, end = between
            said = re.split("|".join(map(re.escape, (to_answer, to_question))), whole[len(start) :].removesuffix(end))
            roles = ("user", "assistant") * len(said)
            return "".join(f"<|im_start|>{role}\n{each}<|im_end|>\n" for role, each in zip(roles, said, strict=False))
        return str(decode(ids, skip_special_tokens=True))

    return text


def _between_turns(tokenizer: Any) -> tuple[str, str, str, str] | None:
    """What the chat template writes before a question, between it and its answer, between that and the next question, and at the end."""
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": said} for role, said in zip(roles, _SAID, strict=True)]
    try:
        written = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # there is no template, or it raises what it likes
        return None
    found = re.split("|".join(_SAID), written)
    return (
        (found[0], found[1], found[2], found[4]) if len(found) == 5 and found[1].strip() and found[2].strip() else None
    )
