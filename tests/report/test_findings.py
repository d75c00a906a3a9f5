"""What the page opens with: findings of about three lines each."""

from types import SimpleNamespace

import numpy as np
import pytest

from trak_lightning.decisions.predictions import Predictions
from trak_lightning.decisions.suspects import Suspects
from trak_lightning.report.suspicion import Suspicion

LONGEST = 130
"""About three lines of a card."""


def suspects(size, expected, several=False, **options):
    """Ten samples of two classes, of which `size` are before the cut."""
    log_p, labels = np.log(np.full((10, 2), 0.5)), np.zeros(10, np.int64)
    predictions = Predictions(log_p, labels, np.ones(10), label_of=labels if several else None, term="token")
    basis = "predictions of checkpoints not trained on the sample"
    return Suspects(
        np.arange(10), size, 0.1, expected, 6.0, basis, np.full(10, 0.9), predictions=predictions, **options
    )


@pytest.mark.parametrize(
    ("found", "number", "text", "in_section"),
    [
        (
            suspects(2, 0.094),
            "2",
            "of 10 labels are likely wrong, about 9 % of them false alarms.",
            "Labels that are likely wrong: 2 of 10, of which about 9 % are expected to be false alarms (in trials",
        ),
        (
            suspects(2, 0.1, several=True),
            "2",
            "of 10 training examples have a label that is likely wrong, about 10 % of them false alarms.",
            "Samples with a label that is likely wrong: 2 of 10, ",
        ),
        (
            suspects(2, None, unpromised="models trained on all samples cannot promise a share of false alarms"),
            "2",
            "of 10 labels to review first; no share of false alarms is promised.",
            "(models trained on all samples cannot promise a share of false alarms)",
        ),
        (
            suspects(0, None, contradicted="3 of 10 labels"),
            "0",
            "labels are listed as wrong: none is certain enough for 10 % false alarms. Others may be wrong too.",
            "the models contradict 3 of 10 labels, which may be mistakes of their own. Review the ranking from the top: at least about 6 labels",
        ),
    ],
)
def test_a_card_has_three_lines_and_the_section_has_the_rest(found, number, text, in_section):
    samples = SimpleNamespace(show=lambda index: SimpleNamespace(label=None))
    suspicion = Suspicion.of(found, samples)
    assert (suspicion.headline.number, suspicion.headline.text) == (number, text)
    assert len(text) < LONGEST
    finding, order = suspicion.text
    assert in_section in finding
    assert "Basis" not in finding, "said once, next to it"
    assert order == "most suspicious first, by predictions of checkpoints not trained on the sample"


def test_without_a_cut_the_finding_is_the_largest_error():
    errors = np.array([0.1, 0.73, 0.2])
    found = Suspects(np.array([1, 2, 0]), 0, 0.1, None, None, "1 − p(pixel) of checkpoints", errors)
    samples = SimpleNamespace(show=lambda index: SimpleNamespace(label=None))
    suspicion = Suspicion.of(found, samples)
    assert suspicion.headline.number == "#1"
    assert suspicion.headline.text.startswith("is the training example with the largest error, 0.7300.")
    assert [each.why for each in suspicion.suspects] == ["error 0.7300", "error 0.2000", "error 0.1000"]
