"""Tables of samples in a terminal."""

import numpy as np
import pytest
from rich.console import Console

from trak_lightning.report import Samples
from trak_lightning.scoring.display import UNREAD, print_table, ranking_table, sample_columns
from trak_lightning.scoring.ranking import Ranking
from trak_lightning.scoring.token_scores import TokenScores


def printed(samples):
    console = Console(width=400, record=True)
    console.print(ranking_table("title", "train", ["Most helpful"], [Ranking(np.arange(2), np.ones(2))], samples))
    return console.export_text()


@pytest.mark.parametrize(("text", "times"), [({}, 1), ({"text": "a poem"}, 0)])
def test_a_table_of_token_ids_says_once_how_to_read_them(text, times):
    assert printed(Samples([{"input_ids": [3, 4 + i], **text} for i in range(2)])).count(UNREAD) == times


def test_a_table_shows_brackets_as_they_are(capsys):
    print_table(("label", "share"), [("[red]", "1 %")], numeric=(1,), title="[of]")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[red]", "[of]", "1 %"))


def test_a_column_without_labels_is_left_out():
    named, unnamed = Samples([("a poem", 3), ("b", 1)]), Samples(["a poem", "b"])
    assert sample_columns([1, 0], named) == {"label": ["1", "3"], "sample": ["b", "a poem"]}
    assert sample_columns([1, 0], unnamed) == {"sample": ["b", "a poem"]}
    assert sample_columns([1, 0], None) == {}


def test_a_ranking_is_written_in_a_line_for_each_of_a_few_targets():
    indices, values = np.arange(5), np.array([3, 2, 1, 0.5, -1], np.float32)
    assert repr(Ranking(indices, values)) == "Ranking of 5 samples: #0 +3, #1 +2, #2 +1, #3 +0.5, #4 -1"
    assert repr(Ranking(indices[:1], values[:1], np.array([0.016]))) == "Ranking of 1 samples: #0 +3.000 ± 0.016"
    assert repr(Ranking(np.arange(40), np.ones(40))).endswith("#9 +1, …")
    assert repr(Ranking(indices[:0], values[:0])) == "Ranking of 0 samples: none"
    several = repr(Ranking(np.tile(indices, (30, 1)), np.tile(values, (30, 1)))).splitlines()
    assert several[0] == "Ranking of 5 samples for each of 30 targets"
    assert several[1] == "target 0: #0 +3, #1 +2, #2 +1, #3 +0.5, #4 -1"
    assert len(several) == 5
    assert several[-1] == "…"


def test_token_scores_name_their_strongest_pair():
    values = np.array([[0.1, 0.0], [0.2, -0.5], [0.0, 0.0]])
    written = repr(TokenScores(3, 7, values, np.array([4, 5, 6]), np.array([1, 2])))
    assert written == (
        "TokenScores of target 3 and training sample 7: -0.2 = sum over 3 × 2 tokens; the strongest: -0.5 of the training sample's token at 2 for "
        "the target's at 5"
    )
