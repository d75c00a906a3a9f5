"""The page stands alone, shows what is in the run, and treats everything from data as text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hostile import HOSTILE, Margin, Rows
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import DataError, IncompleteRunError
from trak_lightning.evaluation.figures import Bar, Curves, Intervals, Series
from trak_lightning.evaluation.result import Result
from trak_lightning.report import write_report
from trak_lightning.run.formatting import format_significant
from trak_lightning.scoring.ranking import signed
from trak_lightning.scoring.scores import Scores

YOURSELF = '(page evaluation of the documentation, under "Models that you train yourself")'
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements with their attributes and all text; fails on tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(path.read_text())
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] not in (["script"], ["style"]):
            self.text += data

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


def notices(page):
    """The warnings at the top: below, there is one that script shows."""
    return [each for tag, each in page.elements if each.get("class") == "notice" and "hidden" not in each]


def require_whole(page):
    """A page refers to nothing outside of it, and to one thing by each name."""
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_kind_of_sample_makes_a_page_that_stands_alone_and_escapes_what_is_in_it(make, form):
    path = make(form)
    page = Page(path)
    assert [each.get("type") for each in page.all("script")] == ["application/json", None]
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert HOSTILE in page.text
    assert page.all("img") or form in ("text", "table")
    require_whole(page)
    assert "default-src 'none'" in next(each["content"] for each in page.all("meta") if "http-equiv" in each)


def test_targets_have_the_examples_and_scores_of_the_score_file(make):
    path = make("image", targets=[3, 7])
    text = Page(path).text
    scores = Scores(path.parents[1] / "scores" / "test.h5")
    for target in (3, 7):
        section = re.split(r"Target #\d+", text)[(3, 7).index(target) + 1]
        found = [int(number) for number in re.findall(r"#(\d+): the targets", section)][:20]
        helpful, harmful = scores.sides(10, target)
        assert found == [*helpful.indices, *harmful.indices]


def test_a_side_without_scores_of_its_sign_says_none(make, monkeypatch):
    sides = Scores.sides

    def without_harmful(scores, k, target):
        helpful, harmful = sides(scores, k, target)
        return helpful, signed(harmful, "top")

    monkeypatch.setattr(Scores, "sides", without_harmful)
    page = Page(make("image"))
    assert len(re.findall(r"▼[^#]*\snone\s", page.text)) == 6
    assert {each["data-harmful"] for each in page.all("article") if "data-harmful" in each} == {"0"}


def test_it_opens_with_findings_and_ends_with_settings(make):
    path = make("image")
    text = " ".join(Page(path).text.split())
    torch.manual_seed(0)
    model, data = nn.Linear(6, 3), Rows("image", 12, 2)
    mean = sum((scale * model(data.inputs)).softmax(-1) for scale in (1.0, 0.5))
    wrong = int((mean.argmax(-1) != data.labels).sum())
    assert 1 < wrong < 12
    assert f"{100 * (12 - wrong) / 12:.1f} % of 12 targets are predicted correctly; {wrong} are mistakes." in text
    assert text.count("in the scores has not been measured") == 2, "at the top, and under Trust"
    assert YOURSELF in text, "trak evaluate cannot retrain what was made in Python"
    assert "trak evaluate" not in text
    (path.parents[1] / "config.yaml").write_text(
        "store: {class_path: trak_lightning.stores.hdf5.HDF5Store}\ntarget_split: test"
    )
    write_report(path.parents[1], Rows("image", 40, 1), Rows("image", 12, 2))
    assert "trak evaluate measures it by retraining, where the model has a training_step." in Page(path).text
    assert text.index("predicted correctly") < text.index("Targets and their examples") < text.index("run directory")


@pytest.mark.usefixtures("no_figures")
def test_a_predicted_correlation_is_what_the_section_on_trust_says(tmp_path):
    torch.manual_seed(0)
    data, models = TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,))), [nn.Linear(4, 3) for _ in range(4)]
    trak = TRAK(nn.Linear(4, 3).eval(), "image_classification", tmp_path, projector="identity")
    trak.featurize(data, models, subsets=[np.random.default_rng(each).permutation(40)[:20] for each in range(4)])
    trak.score(data, name="test")
    text = " ".join(Page(write_report(tmp_path, data, data, num_targets=3)).text.split())
    sentence = Scores(tmp_path / "scores" / "test.h5").trust["sentence"]
    assert text.count(sentence) == 2
    assert sentence.startswith("not known yet")
    assert text.count(f"Trust is {sentence}.") == 2, "a number that may be anything is no headline"
    assert "not been measured" not in text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("task", "labels"), [("regression", lambda y: (y * 4).round() / 4), ("multilabel", lambda y: (y > 0).float())]
)
def test_a_page_says_what_the_number_of_its_task_means(task, labels, tmp_path):
    torch.manual_seed(0)
    outputs = 1 if task == "regression" else 3
    x, model = torch.randn(30, 4), nn.Linear(4, outputs).eval()
    data = TensorDataset(x, labels(torch.randn(30, outputs)))
    trak = TRAK(model, task=task, run_dir=tmp_path, projector="identity")
    trak.featurize(data)
    trak.score(data, name="test")
    written = trak.report(data, num_targets=3)
    page = Page(written)
    text = " ".join(page.text.split())
    first = int(next(each for each in page.all("article"))["data-index"])
    with torch.no_grad():
        y = data.tensors[1]
        if task == "regression":
            residuals = (y - model(x))[:, 0]
            label = format_significant(float(y[first]))
            shown = re.findall(r'<b class="label" dir="auto">([^<]*)</b>', written.read_text())
            assert 3 * 2 * 5 < len(shown) <= 3 * 2 * 10
            assert set(shown) <= {format_significant(each) for each in y[:, 0].tolist()}, "with as many digits as f"
            assert re.search(rf"labeled {label}(?!\d)", text), "as everywhere on the page"
            assert first == int(residuals.abs().argmax()), "mistakes are far from the label, whether above or below"
            assert "Most helpful" not in text
            assert "the targets whose prediction it raises and lowers" in text
            assert "helps and harms" not in text
            towards, away = ("Raise", "Lower") if residuals[first] > 0 else ("Lower", "Raise")
            section = text.split("Target #")[1]
            assert re.search(f"{towards} the prediction . towards the label", section)
            assert re.search(f"{away} the prediction . away from the label", section)
        else:
            p = torch.where(y == 1, model(x).sigmoid(), 1 - model(x).sigmoid()).log().mean(1).exp()
            assert first == int(p.argmin())
            assert f"geometric mean p(answer){p.min():.3f}" in text
            wrong = (model(x) > 0) != y.bool()
            right = f"{100 * (1 - wrong.float().mean()):.1f} % of 90 labels are predicted correctly"
            assert f"{right}; {wrong.any(1).sum()} of 30 targets have a mistake." in text
            worst = ", ".join(
                f"{place}: {'no' if y[first, place] else 'yes'} ({100 * max(q, 1 - q):.0f} %)"
                for place, q in enumerate(model(x[first]).sigmoid().tolist())
                if wrong[first, place]
            )
            assert f"mistakes{worst}" in text


@pytest.mark.usefixtures("no_figures")
def test_a_target_is_right_if_its_label_is_the_most_probable_class_however_close_another_is(tmp_path):
    torch.manual_seed(0)
    model, labels = nn.Linear(1, 3).eval(), torch.tensor([0, 1] * 10)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1e-4, 0.0, -9.0]))
    data = TensorDataset(torch.randn(20, 1) / 100, labels)
    trak = TRAK(model, "image_classification", tmp_path, projector="identity")
    trak.featurize(data)
    trak.score(data, name="test")
    page = Page(trak.report(data, targets=[0, 1], title="Two targets"))
    text = " ".join(page.text.split())
    assert "50.0 % of 20 targets are predicted correctly; 10 are mistakes." in text
    assert "Target #0 ✓ right" in text
    assert "Target #1 ✗ wrong" in text
    parallel = "Near duplicates are not listed: 90 pairs of training examples have nearly parallel gradients"
    assert parallel in text.split("Duplicates")[-1], "half of the gradients are parallel"
    assert notices(page) == [], "which makes nothing on the page wrong"
    assert text.startswith("Two targets")


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, first, second):
        return self.first(first), self.second(second)


@pytest.mark.usefixtures("no_figures")
def test_a_target_without_labels_that_count_is_in_no_mean(tmp_path):
    torch.manual_seed(0)
    model, masks = nn.Conv2d(1, 2, 1).eval(), torch.randint(0, 2, (12, 3, 3))
    masks[4] = 255
    data = TensorDataset(torch.randn(12, 1, 3, 3), masks)
    trak = TRAK(model, {"name": "segmentation", "ignore_index": 255}, tmp_path, projector="identity")
    trak.featurize(data)
    trak.score(data, name="test")
    text = " ".join(Page(trak.report(data, targets=[3, 4])).text.split())
    with torch.no_grad():
        log_p = model(data.tensors[0]).log_softmax(1).gather(1, masks.clamp(max=1)[:, None]).mean((1, 2, 3))
    mean = log_p.exp()[torch.arange(12) != 4].mean()
    assert f"{100 * mean:.0f} % is the mean over 11 targets of geometric mean p(pixel)." in text
    assert "none counts: the output, its gradient and all scores are 0" in text.split("Target #4")[1]


@pytest.mark.usefixtures("no_figures")
def test_masks_of_named_classes_have_one_legend_for_each_target_and_one_for_suspects(tmp_path):
    data = TensorDataset(torch.randn(12, 1, 8, 8), torch.arange(64).reshape(8, 8).repeat(12, 1, 1) % 3)
    data.classes = ["sky", "tree", "road"]
    trak = TRAK(nn.Conv2d(1, 3, 1).eval(), "segmentation", tmp_path, projector="identity")
    trak.featurize(data)
    trak.score(data, name="test")
    page = Page(trak.report(data, num_targets=2))
    require_whole(page)
    assert len([each for each in page.all("ul") if each.get("class") == "legend"]) == 3
    assert " ".join(page.text.split()).count("skytreeroad") == 3
    assert len([each for each in page.all("div") if each.get("class") == "pictures"]) >= 2 + 12


@pytest.mark.usefixtures("no_figures")
def test_a_page_of_pairs_speaks_of_no_labels(tmp_path):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(20, 4), torch.randn(20, 5))
    trak = TRAK(
        Towers().eval(), {"name": "contrastive", "negatives": 9, "logit_scale": 1.0}, tmp_path, projector="identity"
    )
    trak.featurize(data)
    trak.score(data, name="test")
    page = Page(write_report(tmp_path, data, data, num_targets=3))
    text = " ".join(page.text.split())
    assert "is the mean over 20 targets of p(pair)." in text
    assert "20 training examples ranked" not in text, "the number of all samples is no finding"
    worst = re.search(r"#(\d+) is the training example with the largest error, 0\.\d+", text)[1]
    assert (
        page.all("li")[[each.get("id", "") for each in page.all("li")].index(f"suspect-{worst}")]["data-shown"] == "1"
    )
    assert "Mark those that are wrong, and copy the list" in text
    assert "labeled" not in text
    assert not [each for each in page.all("option") if each.get("value") == "label"]


def test_every_image_has_words_for_who_cannot_see_it_and_controls_have_labels(scored_page):
    page = Page(scored_page("image"))
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("svg")
    require_whole(page)
    assert all(svg["aria-label"] for svg in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en"


@pytest.mark.usefixtures("no_figures")
def test_copies_are_found_across_train_and_targets_and_conflicting_labels_are_shown(twins, tmp_path):
    train, targets = twins
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    trak = TRAK(model, task="image_classification", run_dir=tmp_path, projector={"name": "sparse_jl", "dim": 16})
    trak.featurize(train)
    trak.score(targets, name="test")
    text = " ".join(Page(write_report(tmp_path, train, targets)).text.split())
    assert (
        "4 groups of samples with the same content, 1 with different labels, 4 of them in the training set and" in text
    )
    assert "train #0 · 0 train #1 · 1 target #0 · 0 target #1 · 1" in text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("inputs", ["features", None])  # a task that names them, and one that does not
def test_copies_are_found_whatever_their_number(inputs, tmp_path):
    X = torch.randn(40, 5)

    class Net(nn.Linear):
        def forward(self, features, row=None):
            return super().forward(features)[:, 0]

    def rows(numbers, samples):
        return [
            {"features": X[i], "outcome": X[i].sum(), "row": number}
            | ({"name": f"row {number}"} if inputs is None else {"part": row % 2})
            for row, (number, i) in enumerate(zip(numbers, samples, strict=True))
        ]

    train, targets = rows(range(30), range(30)), rows(range(3), [11, 12, 39])
    task = {"name": "regression", "inputs": inputs, "labels": "outcome"}
    trak = TRAK(Net(5, 1).eval(), task, tmp_path, projector="identity")
    trak.featurize(train)
    trak.score(targets, name="test")
    text = " ".join(Page(trak.report(targets, name="test")).text.split())
    assert "2 groups of samples with the same content, 2 of them in the training set and among the targets" in text


def test_what_is_wrong_is_named(make, tmp_path, twins):
    with pytest.raises(IncompleteRunError, match="there is no run directory"):
        write_report(tmp_path / "nowhere", *twins)
    path = make("image")
    with pytest.raises(DataError, match="target 99 is out of range"):
        make("image", targets=[99])
    with pytest.raises(DataError, match="the target data has 5 samples and the scores in .* are of 12"):
        write_report(path.parents[1], [(np.zeros(3), 0)] * 40, twins[1])


def test_a_missing_checkpoint_is_named_on_the_page(make, tmp_path):
    path = make("image")
    (tmp_path / "0.pt").unlink()
    write_report(path.parents[1], Rows("image", 40, 1), Rows("image", 12, 2), model=nn.Linear(6, 3), task=Margin())
    page = Page(path)
    assert "Predictions are not shown: there is no checkpoint file" in page.text
    assert len(notices(page)) == 1


FIGURES = {
    "lds": Intervals((Bar("ours", 0.4, 0.3, 0.5), Bar("random", 0.0, -0.1, 0.1)), "score"),
    "removal": Curves((Series("ours", (1.0, 2.0), (0.1, 0.2), (0.0, 0.1), (0.2, 0.3)),), "removed", "fall", x_log=True),
    "agreement": None,
}


def test_every_evaluation_is_shown_with_its_table_and_figure(make):
    path = make("image")
    for kind, figure in FIGURES.items():
        values = {"scores": {"ours": {"lds": 0.4, "low_models": 0.3, "high_models": 0.5}}, "num_models": 8}
        result = Result(
            kind, f"The {kind}", "How to read it.", "0.4", ("scores", "LDS"), (("ours", f"0.4{kind}"),), values
        )
        request = Scores(path.parents[1] / "scores" / "test.h5").settings["request"]
        replace(result, figure=figure, request=request).write(path.parents[1] / "evaluation" / f"{kind}-test.json")
    write_report(path.parents[1], Rows("image", 40, 1), Rows("image", 12, 2))
    page = Page(path)
    assert (
        "0.40 is the rank correlation (at best 1) of what the scores predict with 8 retrained models: good" in page.text
    )
    for kind, figure in FIGURES.items():
        assert f"The {kind} (test)" in page.text
        assert f"0.4{kind}" in page.text
        drawn = [svg for svg in page.all("svg") if svg["aria-label"] == f"The {kind}"]
        assert len(drawn) == (figure is not None)


def test_an_evaluation_of_an_earlier_version_is_left_out_with_a_note(make):
    path = make("image")
    folder = path.parents[1] / "evaluation"
    folder.mkdir()
    (folder / "lds-test.json").write_text('{"request": {}, "num_models": 3, "rows": [], "ceiling": null}')
    write_report(path.parents[1], Rows("image", 40, 1), Rows("image", 12, 2))
    page = Page(path)
    trust = page.text.split("How far to trust the scores")[1]
    assert "lds-test.json was written by another version of trak_lightning. Run trak evaluate again" in trust
    assert notices(page) == []


def test_one_group_of_copies_is_not_called_groups(tmp_path):
    data = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
    trak = TRAK(nn.Linear(4, 3).eval(), "image_classification", tmp_path, projector="identity")
    trak.featurize(data)
    targets = TensorDataset(data.tensors[0][3:4].clone(), torch.tensor([0]))
    trak.score(targets, name="test")
    text = " ".join(Page(trak.report(targets)).text.split())
    assert "1 group of samples with the same content, in the training set and among the targets." in text


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("image_classification", "p(label) is not exactly the sigmoid of the log-odds of the label."),
        ("segmentation", "geometric mean p(pixel) is not exactly the exponential of the negative loss."),
        ("regression", "What the models predict is averaged over 2 checkpoints."),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_a_mean_over_checkpoints_is_said_to_be_one(task, said, tmp_path):
    shape, model = ((12, 2, 3, 3), nn.Conv2d(2, 3, 1)) if task == "segmentation" else ((12, 4), nn.Linear(4, 3))
    labels = torch.randint(0, 3, (12, *shape[2:]))
    if task == "regression":
        model, labels = nn.Linear(4, 1), torch.randn(12)
    data = TensorDataset(torch.randn(*shape), labels)
    trak = TRAK(model.eval(), task, tmp_path, projector="identity")
    states = [{name: scale * each for name, each in model.state_dict().items()} for scale in (1, 2)]
    trak.featurize(data, states)
    trak.score(data, name="test")
    assert said in " ".join(Page(trak.report(data, num_targets=2)).text.split())
