"""Score files are written whole, read lazily, and ranked."""

import copy
import io
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from trak_lightning.errors import CorruptFileError, DataError
from trak_lightning.run.sample_lines import SampleLine
from trak_lightning.scoring.base import Scoring
from trak_lightning.scoring.display import ranking_table
from trak_lightning.scoring.ranking import Ranking
from trak_lightning.scoring.scores import Scores, write_scores


class Given(Scoring):
    def __init__(self, values):
        self.num_targets, self.num_train = values.shape
        self.settings, self._values = {"rule": "given"}, values

    def tiles(self, start, stop):
        edges = [0, 3, 4, 40, 41, 60, self.num_train]
        for first, last in itertools.pairwise(edges):
            yield self._values[start:stop, first:last]


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(-40, 40, (6, 250)).astype(np.float32)


@pytest.fixture
def scores(values, tmp_path):
    return write_scores(tmp_path / "scores/test.h5", Given(values), {"request": 1})


def test_values_are_an_array_that_is_mapped_and_not_read(scores, values):
    assert isinstance(scores.values, np.memmap)
    np.testing.assert_array_equal(scores.values, values)
    assert Scores(scores.path).settings == {"request": 1, "scoring": {"rule": "given"}}


@pytest.mark.parametrize("band", [1, 4 * 6 * 7, 4 * 6 * 30, 4 * 6 * 1000])
def test_the_matrix_is_the_same_however_much_of_it_is_written_at_once(band, values, scores, tmp_path, monkeypatch):
    monkeypatch.setattr("trak_lightning.scoring.score_writer.BAND_BYTES", band)
    monkeypatch.setattr("trak_lightning.scoring.scores.TARGETS_AT_ONCE", 4)
    found = write_scores(tmp_path / "again.h5", Given(values), {"request": 1})
    assert found.path.read_bytes() == scores.path.read_bytes()


@pytest.mark.parametrize("k", [1, 10, 100, 101, 250])
def test_top_and_bottom_are_a_stable_sort(k, scores, values):
    for found, keys in ((scores.top(k), -values), (scores.bottom(k), values)):
        order = np.argsort(keys, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(found.values, np.take_along_axis(values, order, axis=1))
        np.testing.assert_array_equal(found.values, np.take_along_axis(values, found.indices, axis=1))
    one = scores.top(k, target=3)
    np.testing.assert_array_equal(one.indices, scores.top(k).indices[3])


def test_helpful_samples_have_positive_and_harmful_ones_negative_scores(tmp_path, capsys):
    given = np.array([[3, -1, 2, 0], [1, 2, 3, 4]], np.float32)
    scores = write_scores(tmp_path / "signs.h5", Given(given), {})
    helpful, harmful = scores.sides(3, 0)
    assert (helpful.indices.tolist(), harmful.indices.tolist()) == ([0, 2], [1])
    assert scores.bottom(3, target=0).indices.tolist() == [1, 3, 2]
    scores[1].show(3)
    assert "none" in capsys.readouterr().out
    assert repr(scores[1]).endswith("… none")
    assert "<td>none</td>" in scores[1]._repr_html_()


def test_pickled_scores_are_the_file_or_refused(scores, values):
    scores.samples = object(), lambda: None  # a dataset that cannot be pickled
    assert copy.deepcopy(scores).samples is scores.samples
    pickled = pickle.dumps(scores[3])
    assert len(pickled) < values.nbytes
    np.testing.assert_array_equal(pickle.loads(pickled).values, values[3])
    write_scores(scores.path, Given(-values), {})
    for again in (lambda: pickle.loads(pickled), lambda: pickle.dumps(scores)):
        with pytest.raises(DataError, match="was replaced or deleted"):
            again()


def test_out_of_range_requests_are_refused(scores):
    with pytest.raises(DataError, match="k must be an integer in 1 … 250"):
        scores.top(251)
    with pytest.raises(DataError, match="target 6 is out of range.*targets 0 … 5"):
        scores.bottom(1, target=6)


def test_a_file_that_is_no_score_file_is_refused(tmp_path):
    (tmp_path / "x.h5").write_text("nothing")
    with pytest.raises(CorruptFileError, match=r"x.h5 is not a score file"):
        Scores(tmp_path / "x.h5")


def test_scoring_does_not_import_torch():
    code = "import sys, trak_lightning.cli.commands.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_table_of_samples_fits_every_terminal_and_marks_text_that_it_cuts(width):
    class Samples:
        def show(self, index):
            line = ["short", "word " * 19 + "end", "https://" + "x" * 80][index]
            return SampleLine("business and economy", line)

    sides = [Ranking(np.array(order), np.ones(len(order)), np.ones(len(order))) for order in ([1, 2], [0])]
    console = Console(width=width, file=io.StringIO())
    console.print(ranking_table("title", "train", ("helpful", "harmful"), sides, Samples()))
    lines = [line for line in console.file.getvalue().splitlines() if line[:1] in tuple("┏┃┡│└")]
    assert {len(line) for line in lines} == {len(lines[0])}, "the columns of both tables line up"
    assert len(lines[0]) <= width
    cells = [line.split("│")[4].strip() for line in lines if line.startswith("│")]
    assert " ".join(cells).count("word") == 19
    assert " ".join(cells).count("end") == 1
    (address,) = [cell for cell in cells if cell.startswith("https")]
    assert address.endswith("…" if width < 160 else "x" * 80)
