"""Text next to tensors: the collators of transformers get what they can collate, and other collate functions are left alone."""

import pytest
import torch
from torch.utils.data import DataLoader

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError


def pad(samples):
    """Collate as ``DataCollatorWithPadding`` does: every column must become a tensor."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    return {
        name: torch.tensor(
            [s[name] + [0] * (longest - len(s[name])) if name == "input_ids" else s[name] for s in samples]
        )
        for name in samples[0]
    }


class Padding:
    __module__ = "transformers.data.data_collator"

    def __call__(self, samples):
        return pad(samples)


SAMPLES = [
    {
        "id": f"document-{i}",
        "words": ["a", "word"],
        "answers": {"text": ["a"], "start": [1]},
        "input_ids": [1] * (i + 1),
        "index": i,
        "label": i % 2,
    }
    for i in range(4)
]


def batch(samples, collate_fn):
    return AttributionData.of(DataLoader(samples, batch_size=2, collate_fn=collate_fn)).batch([1, 2])


def test_columns_that_cannot_become_tensors_are_left_out_for_collators_of_transformers():
    found = batch(SAMPLES, Padding())
    assert {name: value.tolist() for name, value in found.items()} == {
        "input_ids": [[1, 1, 0], [1, 1, 1]],
        "index": [1, 2],
        "label": [1, 0],
    }


def test_a_collator_that_uses_the_text_gets_it():
    class Tokenizing(Padding):
        def __call__(self, samples):
            return torch.tensor([len(sample["id"]) for sample in samples])

    assert batch(SAMPLES, Tokenizing()).tolist() == [10, 10]


def test_a_function_of_the_user_is_not_called_again_without_text():
    with pytest.raises(DataError, match="ValueError: too many dimensions 'str'"):
        batch(SAMPLES, pad)


def test_what_the_collator_says_first_is_raised_if_the_text_is_not_the_reason():
    broken = [{**sample, "index": [0] * position} for position, sample in enumerate(SAMPLES)]
    with pytest.raises(DataError, match="ValueError: too many dimensions 'str'"):
        batch(broken, Padding())
