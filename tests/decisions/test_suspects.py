"""Labels that are likely wrong: planted errors are found, and as many of the alarms are false as was said."""

import csv
import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK, Task
from trak_lightning.cli.commands.suspects import write
from trak_lightning.decisions.label_noise import fit_label_noise, learned_confusion
from trak_lightning.decisions.predictions import Predictions
from trak_lightning.decisions.suspects import find_suspects
from trak_lightning.errors import CheckpointError, DataError, IncompleteRunError, SettingsError
from trak_lightning.run.meaning import Meaning

CLASSES = 5


def labeled(sharpness, rate, seed=0, n=10_000, confusable=False, classes=CLASSES):
    """Log-probabilities that are `sharpness` times too soft, labels drawn from the right ones, and which of them are wrong."""
    generator = np.random.default_rng(seed)
    logits = 4 * generator.standard_normal((n, classes))
    right = (sharpness * logits + generator.gumbel(size=logits.shape)).argmax(1)
    wrong = generator.random(n) < rate
    shift = 1 if confusable else generator.integers(1, classes, n)
    return log_softmax(logits, axis=1), np.where(wrong, (right + shift) % classes, right), wrong


@pytest.mark.parametrize("confusable", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_share_of_false_alarms_is_the_one_asked_for(rate, confusable):
    log_p, labels, wrong = labeled(1.7, rate, confusable=confusable)
    model = fit_label_noise(log_p, labels)
    probability = model.probability_wrong(log_p, labels)
    assert model.rate == pytest.approx(rate, abs=0.015)
    ranking = np.argsort(-probability)
    for fdr in (0.05, 0.2):
        size = int((np.cumsum(1 - probability[ranking]) <= fdr * np.arange(1, len(ranking) + 1)).sum())
        found = wrong[ranking[:size]]
        assert 1 - found.mean() == pytest.approx(fdr, abs=0.04)


def suspected(log_p, labels):
    return find_suspects([], Predictions(log_p, labels, np.ones(len(labels), dtype=int)), Meaning())


def test_few_samples_keep_the_promised_share():
    found, right = 0, 0
    for seed in range(10):
        log_p, labels, wrong = labeled(1.7, 0.1, seed, 600, classes=3)
        suspects = suspected(log_p, labels)
        p = suspects.suspicion[suspects.indices]
        assert suspects.expected == pytest.approx((np.sum(1 - p) + np.sum(p * (1 - p)) ** 0.5) / len(p))
        found, right = found + len(suspects), right + (~wrong[suspects.indices]).sum()
    assert found > 300
    assert right <= 0.1 * found


@pytest.mark.parametrize(("blind", "promised"), [(0.1, True), (0.6, False)])
def test_models_that_are_mostly_wrong_promise_no_share_of_false_alarms(blind, promised):
    log_p, labels, _ = labeled(1.7, 0.2, n=2000)
    count = int(blind * len(labels))
    labels[:count] = np.arange(count) % CLASSES
    log_p[:count] *= 0.01
    suspects = suspected(log_p, labels)
    assert len(suspects) > 50
    assert (suspects.expected is not None) == promised
    assert ("are likely wrong" in suspects.describe()) == promised
    right = int((log_p.argmax(1) == labels).sum())
    poor = f"(no share of false alarms can be promised). The models get {right:,} of 2,000 labels right ({right / 20:.0f} %, and "
    assert (poor in suspects.describe()) != promised
    assert ("estimated to be wrong" in suspects.describe()) <= promised
    assert (suspects.first(1)[0].wrong is not None) == promised


def test_confident_models_that_agree_with_labels_little_more_than_by_chance_promise_nothing():
    """Of two classes, 65 % is little: confident mistakes on a third of the samples look like wrong labels of a third."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 1500)
    says = np.where(generator.random(1500) < 0.66, labels, 1 - labels)
    sure = np.where(generator.random(1500) < 0.5, 4.0, 1.0)
    suspects = suspected(log_softmax(sure[:, None] * np.eye(2)[says], axis=1), labels)
    assert suspects.expected is None
    assert suspects.errors is None
    assert "(68 %, and 50 % would be chance): too few for a reliable list" in suspects.describe()


def test_doubtful_predictions_are_no_label_errors():
    log_p, labels, _ = labeled(0.4, 0.0)
    assert fit_label_noise(log_p, labels).rate < 0.01


@pytest.mark.parametrize(("signal", "noise"), [(1, 1), (1, 2), (2, 4)])
def test_what_poor_models_contradict_is_not_called_wrong(signal, noise):
    for seed in range(10):
        generator = np.random.default_rng(seed)
        right = generator.integers(0, 3, 150)
        log_p = log_softmax(noise * generator.standard_normal((150, 3)) + signal * np.eye(3)[right], axis=1)
        labels = np.where(generator.random(150) < 0.05, (right + generator.integers(1, 3, 150)) % 3, right)
        found = suspected(log_p, labels)
        against = (log_p.argmax(1) != labels).sum()
        assert len(found) == 0
        assert (
            f"which does not mean that the labels are right: the models contradict {against} of 150 labels"
            in found.describe()
        )
        count = round(found.errors or 0)  # unknown, if the models are right on too few
        assert (f"at least about {count} label" in found.describe()) == (count > 0)


@pytest.mark.parametrize("signal", [0.4, 1.7])
def test_suspects_are_those_before_the_cut_and_the_ranking_has_all(signal, tmp_path):
    suspects = suspected(*labeled(signal, 0.1 * (signal > 1))[:2])
    assert bool(len(suspects)) == (signal > 1)
    write(suspects, tmp_path)
    frame = suspects.to_frame()
    assert frame["index"].tolist() == suspects.ranking.tolist()
    assert frame["before_cut"].sum() == len(suspects)
    tables = []
    for name in ("suspects", "ranking"):
        with (tmp_path / f"{name}.csv").open() as file:
            tables.append([(int(row["index"]), row["before_cut"] == "True") for row in csv.DictReader(file)])
    told = json.loads((tmp_path / "suspects.json").read_text())["suspects"]
    assert tables[0] == [(each["index"], each["before_cut"]) for each in told]
    listed = [(index, True) for index in suspects.indices]
    assert tables[0] == (listed or tables[1]), "the whole ranking, if nothing is before the cut"
    assert [index for index, _ in tables[1]] == suspects.ranking.tolist()
    assert [index for index, before in tables[1] if before] == suspects.indices.tolist()
    np.testing.assert_array_equal(np.load(tmp_path / "indices.npy"), suspects.indices)


def test_errors_that_the_models_have_learned_are_found():
    log_p, labels, wrong = labeled(1.7, 0.1, confusable=True)
    shift = np.roll(np.eye(CLASSES), 1, axis=1)
    learned = np.log(np.exp(log_softmax(1.7 * log_p, axis=1)) @ (0.9 * np.eye(CLASSES) + 0.1 * shift))
    model = fit_label_noise(learned, labels)
    assert model.learned is not None
    assert suspected(learned, labels).expected is None
    ranking = np.argsort(-model.probability_wrong(learned, labels))
    assert wrong[ranking[: wrong.sum() // 2]].mean() > 0.9
    assert fit_label_noise(*labeled(1.7, 0.1)[:2]).learned is None


@pytest.mark.parametrize("count", [3, 4, 10])
@pytest.mark.parametrize("n", [200, 1000])
def test_random_errors_that_happen_to_be_alike_are_not_taken_for_learned_ones(count, n):
    for seed in range(8):
        for rate in (0.05, 0.2):
            log_p, labels, _ = labeled(1.7, rate, seed, n, classes=count)
            assert learned_confusion(log_p, labels) is None


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(DataError, match=r"labels must be 4 integers in 0 … C − 1"):
        fit_label_noise(np.zeros((4, 3)), np.array([0, 1, 2, 3]))


@pytest.fixture(scope="module")
def noisy():
    """Three clouds of points, a tenth of the labels wrong."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (400,), generator=generator)
    points = torch.randn(400, 6, generator=generator) + 3 * torch.eye(3, 6)[classes]
    wrong = torch.randperm(400, generator=generator)[:40]
    labels = classes.clone()
    labels[wrong] = (labels[wrong] + torch.randint(1, 3, (40,), generator=generator)) % 3
    return TensorDataset(points, labels), wrong.numpy()


def trained_on(data, subset):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    points, labels = data[subset]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(points), labels).backward()
        optimizer.step()
    return model.eval().state_dict()


@pytest.fixture(scope="module")
def halves(noisy):
    subsets = [np.random.default_rng(seed).permutation(400)[:200] for seed in range(6)]
    return subsets, [trained_on(noisy[0], subset) for subset in subsets]


def featurized(noisy, folder, checkpoints, task="image_classification", subsets=None):
    trak = TRAK(nn.Linear(6, 3).eval(), task, folder, projector="identity")
    trak.featurize(noisy[0], checkpoints, subsets=subsets)
    return trak


def test_planted_label_errors_are_found(noisy, halves, tmp_path):
    trak = featurized(noisy, tmp_path, halves[1], subsets=halves[0])
    weights = [parameter.clone() for parameter in trak.model.parameters()]
    suspects = trak.suspects(fdr=0.1, class_names=["red", "green", "blue"])
    found = np.isin(suspects.indices, noisy[1])
    assert found.mean() >= 0.85
    assert found.sum() >= 30
    assert suspects.expected <= 0.1
    first = suspects[0]
    label = int(noisy[0][first.index][1])
    assert first.label == ["red", "green", "blue"][label] != first.says
    assert first.says in first.why
    assert f"labels that are likely wrong: {suspects.size} of 400," in suspects.describe()
    assert all(map(torch.equal, weights, trak.model.parameters()))


def test_a_smaller_share_of_false_alarms_gives_fewer_suspects_of_the_same_ranking(noisy, halves, tmp_path):
    trak = featurized(noisy, tmp_path, halves[1], subsets=halves[0])
    strict, loose = trak.suspects(fdr=0.01), trak.suspects(fdr=0.3)
    assert 0 < len(strict) < len(loose)
    assert strict.indices.tolist() == loose.indices[: len(strict)].tolist()


def test_without_recorded_subsets_the_ranking_says_what_it_is_made_from(noisy, halves, tmp_path):
    suspects = featurized(noisy, tmp_path, halves[1]).suspects()
    assert "corrected by leaving it out in closed form" in suspects.basis
    assert np.isin(suspects.ranking[:40], noisy[1]).mean() > 0.7


def test_models_trained_on_a_sample_promise_no_share_of_false_alarms_and_show_what_decides(noisy, halves, tmp_path):
    suspects = featurized(noisy, tmp_path, halves[1]).suspects()
    assert len(suspects) > 10
    assert suspects.expected is None
    assert suspects.errors is None
    assert suspects.describe() == (
        f"{len(suspects)} of 400 labels to review first (models trained on all samples cannot promise a share of false alarms). "
        "Basis: predictions of checkpoints trained on the sample, corrected by leaving it out in closed form"
    )
    predictions = suspects.predictions
    for each in suspects:
        log_p = predictions.log_probabilities[each.index]
        p = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
        shown = re.match(r"p\(\d\) (?:< )?(\d+) %, p\(\d\)", each.why)
        assert float(shown[1]) == pytest.approx(100 * p[int(each.label)], abs=1)
        assert each.says == str(p.argmax())
        assert each.wrong is None  # it would be far too high


def test_labels_that_are_certainly_wrong_are_ranked_by_how_much_speaks_against_them():
    labels = np.arange(60) % 3
    log_p = np.where(np.eye(3, dtype=bool)[labels], -0.01, -5.0)
    for index, gap in ((4, 500.0), (9, 700.0), (20, 600.0)):
        log_p[index] = -np.eye(3)[labels[index]] * gap - 0.01
    predictions = Predictions(log_p, labels, np.ones(60, dtype=int))
    assert find_suspects([], predictions, Meaning()).ranking[:3].tolist() == [9, 20, 4]


def test_a_task_without_classes_is_ranked_by_the_error_and_not_cut(noisy, tmp_path):
    points, _ = noisy[0].tensors
    values = points @ torch.arange(6.0)
    values[7] += 100
    trak = TRAK(nn.Linear(6, 1).eval(), "regression", tmp_path, projector="identity")
    trak.featurize(TensorDataset(points, values))
    suspects = trak.suspects()
    assert (suspects.ranking[0], len(suspects), suspects.expected) == (7, 0, None)
    assert "no cut: the task has no classes" in suspects.describe()
    line = rf"#7 labeled {values[7]:#.4g}: label [\d.]+ above the prediction · x\[0\]: .* · x\[1\]: .*$"
    assert re.search(line, repr(suspects), re.MULTILINE)
    assert "Not to be trusted" not in suspects.describe()
    (tmp_path / "suspects").mkdir()
    (tmp_path / "suspects" / "indices.npy").touch()  # of a version that wrote it without a cut
    write(suspects, tmp_path / "suspects")
    assert not (tmp_path / "suspects" / "indices.npy").exists()
    with (tmp_path / "suspects" / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "label", "says", "error", "why", "text"]
    predicted = trak.model(points).detach()[:, 0]
    for row in rows:
        i = int(row["index"])
        assert float(row["says"]) == pytest.approx(float(predicted[i]), rel=1e-4)
        assert ("above" if values[i] > predicted[i] else "below") in row["why"]
    assert [int(row["index"]) for row in rows] == suspects.ranking.tolist()
    assert float(rows[0]["error"]) == pytest.approx(float((values[7] - trak.model(points[7])).detach().abs()), rel=1e-5)
    assert [each["index"] for each in suspects.to_json()["suspects"]] == suspects.ranking.tolist()
    assert suspects.to_json()["indices"] is None
    with pytest.raises(IndexError, match=r"0 samples are before the cut; see first\(k\)"):
        suspects[0]


def test_a_task_with_a_loss_of_its_own_is_ranked_by_the_slope_of_its_loss(tmp_path):
    class Poisson(Task):
        meaning = Meaning("log of the rate", "raise the rate", "lower the rate")

        def output(self, model, batch):
            return model(batch[0])[:, 0]

        def loss_weight(self, model, batch, output):
            return batch[1] - output.exp()

        def curvature(self, model, batch, output):
            return output.exp()

    torch.manual_seed(0)
    points, counts = torch.randn(100, 4), torch.poisson(torch.ones(100))
    counts[:5] = 40
    trak = TRAK(nn.Linear(4, 1).eval(), Poisson(), tmp_path, projector="identity")
    trak.featurize(TensorDataset(points, counts), checkpoints=[trak.model])
    suspects = trak.suspects()
    assert set(suspects.ranking[:5]) == set(range(5))
    assert suspects.basis.startswith("slope of the loss, |q|, of checkpoints")


def test_a_loss_has_no_label_to_show(noisy, tmp_path):
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    suspects = featurized(noisy, tmp_path, None, task={"name": "loss", "function": loss}).suspects()
    assert "label" not in repr(suspects).replace(suspects.describe(), "")
    first = suspects.first(1)[0]
    assert (first.label, first.says, first.why) == (None, None, "")
    assert re.fullmatch(rf"#{first.index}: error [\d.]+ · x\[0\]: .*", repr(first))
    suspects.to_csv(tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text().startswith("index,error,text\n"), (
        "that all models were trained on it is said once"
    )
    assert first.error == suspects.suspicion.max()


@pytest.mark.parametrize("pictures", [False, True])
def test_suspects_are_listed_with_their_text_and_pictures_are_not_read_for_it(pictures, noisy, tmp_path):
    read = []

    def render(sample):
        read.append(sample)
        return torch.rand(1, 4, 4) if pictures else {"question": "why?", "answer": f"class {int(sample[1])}"}

    trak = featurized(noisy, tmp_path, None)
    suspects = trak.suspects(render=render)
    first = suspects.first(1)[0]
    assert first.text == (None if pictures else f"question: why? · answer: class {first.label}")
    assert repr(first).endswith(first.why if pictures else f" · {first.text}")
    read.clear()
    suspects.to_csv(tmp_path / "all.csv", whole=True)
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ("text" in rows[0]) is not pictures
    assert (len(read) < 30) is pictures
    assert pictures or all(row["text"].endswith(f"class {row['label']}") for row in rows)
    assert pickle.loads(pickle.dumps(suspects)).first(1)[0] == replace(first, text=None)


def test_the_prediction_of_a_number_is_that_of_the_models_not_trained_on_it(noisy, halves, tmp_path):
    points, _ = noisy[0].tensors
    values, models = points @ torch.arange(6.0), [nn.Linear(6, 1).eval() for _ in range(3)]
    trak = TRAK(nn.Linear(6, 1).eval(), "regression", tmp_path, projector="identity")
    subsets = [np.arange(200), np.arange(100, 300), np.arange(400)]
    trak.featurize(TensorDataset(points, values), models, subsets=subsets)
    suspects = {each.index: each for each in trak.suspects().first(400)}
    predicted = np.stack([model(points).detach().numpy()[:, 0] for model in models])
    for index, used, who in (
        (50, [1], "1 model not trained on it"),
        (350, [0, 1], "2 models not trained on it"),
        (150, [0, 1, 2], "models trained on it"),
    ):
        assert float(suspects[index].says) == pytest.approx(predicted[used, index].mean(), rel=1e-4)
        errors = np.abs(values[index].numpy() - predicted[used, index])
        assert suspects[index].error == pytest.approx(errors.mean(), rel=1e-4)
        assert suspects[index].why.endswith(f"prediction of {who}")


def test_who_judged_the_error_of_a_sample_is_said_with_a_verb(noisy, tmp_path):
    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0])[:, 0], batch[1], reduction="none")

    points, _ = noisy[0].tensors
    trak = TRAK(nn.Linear(6, 1).eval(), {"name": "loss", "function": loss}, tmp_path, projector="identity")
    models = [nn.Linear(6, 1).eval() for _ in range(2)]
    trak.featurize(TensorDataset(points, torch.ones(400)), models, subsets=[np.arange(200), np.arange(300)])
    first = {each.index: each for each in trak.suspects().first(400)}
    assert first[350].why == "judged by 2 models not trained on it"
    assert re.fullmatch(r"#350: error [\d.]+ judged by 2 models not trained on it · .*", repr(first[350]))


@pytest.mark.parametrize("fdr", [0.0, 1.0, float("nan")])
def test_a_share_of_false_alarms_lies_between_0_and_1(fdr, noisy, halves, tmp_path):
    with pytest.raises(SettingsError, match="must lie between 0 and 1"):
        featurized(noisy, tmp_path, halves[1][:1]).suspects(fdr=fdr)


def test_suspects_need_features(tmp_path):
    with pytest.raises(IncompleteRunError, match="call featurize"):
        TRAK(nn.Linear(6, 3).eval(), "image_classification", tmp_path).suspects()


def test_a_checkpoint_file_that_was_overwritten_is_refused(noisy, halves, tmp_path):
    from trak_lightning.model.checkpoints import read_checkpoints

    torch.save(halves[1][0], tmp_path / "model.pt")
    trak = featurized(noisy, tmp_path / "run", [tmp_path / "model.pt"])
    torch.save(halves[1][1], tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds other weights"):
        read_checkpoints(trak.run, trak.model)


def test_the_wrong_one_of_several_labels_is_found_and_named(tmp_path):
    torch.manual_seed(0)
    n, names = 300, ("round", "red", "large")
    x, weight = torch.randn(n, 6), 8 * torch.randn(3, 6)
    right = (x @ weight.T > 0).float()
    wrong = np.random.default_rng(0).permutation(n)[:24]
    labels = right.clone()
    labels[wrong, wrong % 3] = 1 - labels[wrong, wrong % 3]
    labels[np.setdiff1d(np.arange(n), wrong)[:50], 1] = float("nan")  # not known, and so not wrong
    models = []
    for seed in range(4):
        models.append(nn.Linear(6, 3).eval())
        models[-1].load_state_dict({"weight": weight + 0.1 * seed, "bias": torch.zeros(3)})
    trak = TRAK(models[0], "multilabel", tmp_path, projector="identity")
    halves = [np.random.default_rng(seed).permutation(n)[: n // 2] for seed in range(2)]
    subsets = [part for half in halves for part in (half, np.setdiff1d(np.arange(n), half))]
    trak.featurize(TensorDataset(x, labels), models, subsets=subsets)
    found = trak.suspects(class_names=names)
    assert np.isin(wrong, found.indices).mean() >= 0.9
    assert np.isin(found.indices, wrong).mean() >= 0.8
    assert found.errors == pytest.approx(24, abs=8)
    for each in found:
        if each.index in wrong:
            answer = ("no", "yes")[int(labels[each.index, each.index % 3])]
            assert each.says != each.label == f"{names[each.index % 3]}: {answer}"
            assert each.why.startswith(f"2 models not trained on it: p({answer}) ")
    assert "samples with a label that is likely wrong" in found.describe()
    assert re.fullmatch(r"\d+ of 850 labels, in \d+ of 300 samples", found.contradicted)


def test_several_labels_of_models_trained_on_all_samples_promise_no_share(tmp_path):
    x, model = torch.randn(80, 4), nn.Linear(4, 2).eval()
    trak = TRAK(model, "multilabel", tmp_path, projector="identity")
    trak.featurize(TensorDataset(x, (model(x) > 0).float()), [model])
    found = trak.suspects()
    assert found.expected is None
    assert found.errors is None
    assert found.basis == "predictions of checkpoints trained on the sample"
    assert all(each.why.startswith("p(") for each in found.first(3))
    assert "the models contradict 0 of 160 labels, in 0 of 80 samples" in found.describe()


class TagEach(nn.Module):
    """Logits (B, T, 3) of numbers (B, T): the class is the number, for sure."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(12.0))

    def forward(self, x):
        return self.scale * nn.functional.one_hot(x, 3)


def test_the_wrong_label_of_a_token_is_named_where_sequences_differ_in_length(tmp_path):
    generator = np.random.default_rng(0)
    samples = []
    for length in sorted(generator.integers(2, 9, 200)):  # batches of ever longer sequences
        x = torch.tensor(generator.integers(0, 3, length))
        samples.append((x, x.clone()))
    wrong = {int(i): int(generator.integers(len(samples[i][0]))) for i in generator.permutation(200)[:16]}
    for i, token in wrong.items():
        samples[i][1][token] = (samples[i][1][token] + generator.integers(1, 3)) % 3

    def collate(batch):
        return tuple(
            nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=fill)
            for part, fill in zip(zip(*batch, strict=True), (0, -100), strict=True)
        )

    trak = TRAK(TagEach().eval(), "token_classification", tmp_path, projector="identity")
    loader = torch.utils.data.DataLoader(samples, 10, collate_fn=collate)
    states = [{"scale": torch.tensor(12.0)}, {"scale": torch.tensor(11.0)}]
    trak.featurize(loader, states, subsets=[np.arange(100), np.arange(100, 200)])
    found = trak.suspects(class_names="abc")
    assert {each.index for each in found.first(len(wrong))} == set(wrong)
    for each in found.first(len(wrong)):
        x, y = samples[each.index]
        token = wrong[each.index]
        assert (each.label, each.says) == (f"token {token}: {'abc'[y[token]]}", f"token {token}: {'abc'[x[token]]}")


def test_a_ranking_of_numbers_that_training_scaled_is_said_not_to_be_trusted(tmp_path):
    points = torch.randn(60, 6)
    prices = 15_000 + points @ torch.arange(6.0) * 1_000
    model = nn.Linear(6, 1).eval()
    with torch.no_grad():  # as if trained on prices / 1000
        model.weight.copy_(torch.arange(6.0)[None])
        model.bias.fill_(15.0)
    trak = TRAK(model, "regression", tmp_path, projector="identity")
    trak.featurize(TensorDataset(points, prices))
    assert re.search(r"Not to be trusted: .*1000·f .*does training_step scale the labels", repr(trak.suspects()))
    targets = TensorDataset(points[:3], prices[:3])
    trak.score(targets, name="test")
    assert "Scores and suspects are not to be trusted: predictions differ" in trak.report(targets, "test").read_text()
