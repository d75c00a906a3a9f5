"""Targets for language models: one continuation, or one token of it, instead of a whole sequence."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trak_lightning.errors import DataError
from trak_lightning.tasks.language import TARGET_MASK
from trak_lightning.tasks.tokens import IGNORE_INDEX


def continuation(input_ids: Tensor, prompt_length: int) -> dict[str, Tensor]:
    """Make one sample for ``causal_lm`` of what a model wrote after a prompt: only the continuation is predicted.

    >>> tokens = model.generate(prompt, max_new_tokens=20)[0]  # prompt (1, t), tokens (T,)
    >>> scores = trak.score([continuation(tokens, prompt.shape[1])], name="generated")

    Args:
        input_ids: (T,), the prompt and what follows it, as ``generate`` returns them for one prompt, without padding.
        prompt_length: t, the number of tokens of the prompt.

    Raises:
        DataError: nothing follows the prompt, or `input_ids` is not one sequence.
    """
    if input_ids.ndim != 1:
        raise DataError(f"continuation expects one sequence (T,), got a tensor of shape {tuple(input_ids.shape)}")
    if not 0 < prompt_length < len(input_ids):
        raise DataError(
            f"prompt_length must lie in 1 … {len(input_ids) - 1} for {len(input_ids)} tokens, got {prompt_length}"
        )
    labels = input_ids.clone()
    labels[:prompt_length] = IGNORE_INDEX
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


class TokenTargets(Dataset):
    """Split one sequence into targets, one per predicted token: what taught the model *this* word?

    Every sample is the whole sequence with a ``target_mask`` that leaves one label; the scores of the tokens add up to
    those of the sequence (with ``reduction="sum"`` and ``level="sequence"``, up to rounding).

    >>> tokens = TokenTargets(continuation(generated, prompt_length))
    >>> trak.score(tokens, name="words").top(5).indices[tokens.positions.tolist().index(17)]  # for label 17 of the sequence

    Args:
        sample: a sequence without batch dimension, as a dataset returns it, whose labels (T,) say which tokens are predicted.
        label_key: the entry that holds the labels.
    """

    def __init__(self, sample: Mapping[str, Any], label_key: str = "labels") -> None:
        if label_key not in sample:
            raise DataError(f"the sample has no {label_key!r}; its keys are {sorted(map(str, sample))}")
        labels = torch.as_tensor(sample[label_key])
        if labels.ndim != 1:
            raise DataError(f"TokenTargets expects one sequence, with labels (T,); got {tuple(labels.shape)}")
        self._sample = dict(sample)
        self._length = len(labels)
        self.positions = (labels != IGNORE_INDEX).nonzero()[:, 0]
        """Positions of the targets among the labels, in order."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.zeros(self._length, dtype=torch.long)
        mask[self.positions[index]] = 1
        return {**self._sample, TARGET_MASK: mask}
