"""Samples that models are trained on are those that are attributed, position by position, augmented or not."""

import logging

import pytest
import torch

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError
from trak_lightning.retraining.same_order import require_same_order

ROWS = [
    (torch.randn(4, generator=torch.Generator().manual_seed(i)), i * i % 7 % 2, f"sentence {i % 50}") for i in range(60)
]


def augmented(rows):
    return [(x + 0.1 * torch.randn(4), label, text + " again") for x, label, text in rows]


ORDERS = {
    "reversed": ROWS[::-1],
    "rotated": ROWS[13:] + ROWS[:13],
    "shuffled": [ROWS[i] for i in torch.randperm(60, generator=torch.Generator().manual_seed(1))],
    "sorted": sorted(ROWS, key=lambda row: row[1]),
}


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_another_order_is_refused(order, noise):
    message = (
        "entry '1' of sample [0-9]+ is [01] in theirs and [01] in ours; .* as if the order"
        if noise
        else "of theirs is sample"
    )
    with pytest.raises(DataError, match=message):
        compare(augmented(ORDERS[order]) if noise else ORDERS[order])


def test_two_samples_that_changed_places_are_refused():
    with pytest.raises(DataError, match="sample (20|40) of theirs is sample (20|40) of ours"):
        compare([ROWS[{20: 40, 40: 20}.get(i, i)] for i in range(60)])


def test_targets_of_a_regression_in_another_order_are_refused():
    rows = [(x, float(x.sum())) for x, _, _ in ROWS]
    with pytest.raises(DataError, match="entry '1'.* as if"):
        compare([(x + 1, y) for x, y in rows[::-1]], rows)
    compare([(x + 1, y + 1e-3) for x, y in rows], rows)


@pytest.mark.parametrize(
    ("trained", "warns"),
    [
        (ROWS, False),
        (augmented(ROWS), False),
        ([(x, torch.tensor([label]), text.upper()) for x, label, text in ROWS], False),
        ([(x, torch.tensor([0.3, 0.7]), text) for x, _, text in ROWS], False),  # mixed labels
        ([(x + 1, 1 - label if i % 9 == 0 else label, "") for i, (x, label, _) in enumerate(ROWS)], True),
    ],
)
def test_augmented_samples_in_the_same_order_are_taken(trained, warns, caplog):
    with caplog.at_level(logging.WARNING):
        compare(trained)
    assert ("entry '1' of sample 0 is 1 in theirs and 0 in ours; it differs in 7 of the 60" in caplog.text) == warns


def compare(trained, attributed=ROWS):
    require_same_order(*(AttributionData.of(rows) for rows in (attributed, trained)), names=("ours", "theirs"))
