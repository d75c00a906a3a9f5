"""Evaluations on models whose answers are known."""

import numpy as np
import pytest
import yaml
from faults import trak
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from trak_lightning.errors import DataError, SettingsError
from trak_lightning.evaluation.lds import bootstrap_both, noise_ceiling, spearman
from trak_lightning.evaluation.leave_one_out import leave_one_out
from trak_lightning.evaluation.mislabeled import auc, known_positions, mislabeled
from trak_lightning.evaluation.removal import brittleness, choose_targets, counterfactual, rankings
from trak_lightning.evaluation.result import read_result
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.retraining.outputs import Retrained, missing
from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.tasks.language import CausalLM
from trak_lightning.tasks.regression import Regression

N, M = 60, 4


@pytest.fixture
def effects():
    """(M, N): what each training sample adds to each target's output, in a world where outputs are sums."""
    effects = np.random.default_rng(0).standard_normal((M, N))
    return effects - effects.mean(axis=1, keepdims=True) + 0.1  # every target's output is 6


@pytest.fixture
def retrained(effects, tmp_path):
    trained = []

    def retrain(plan, folder, retrainings):
        for job in missing(retrainings):
            trained.append(job.path)
            np.savez(job.path, subset=job.subset, outputs=effects[:, job.subset].sum(axis=1))

    found = Retrained(tmp_path, SubsetPlan("retrained", N, 1.0, seed=0), M, repeats=2, retrain=retrain)
    return found, trained


def test_counterfactual_curves_are_the_sums_of_what_was_removed(effects, retrained):
    targets = np.array([0, 2])
    ordered = rankings(effects[targets], -effects[targets], seed=0)
    result = counterfactual(ordered, targets, retrained[0], seed=0)
    sizes = result.values["sizes"]
    for column, k in enumerate(sizes):
        best, worst = (
            np.sort(effects[targets], axis=1)[:, part].sum(axis=1) for part in (slice(N - k, N), slice(0, k))
        )
        np.testing.assert_allclose(np.array(result.values["falls"]["scores"])[column], best, atol=1e-6)
        np.testing.assert_allclose(np.array(result.values["falls"]["gradient similarity"])[column], worst, atol=1e-6)
    assert result.figure.series[0].x == (0, *sizes)


def test_no_model_is_trained_twice(effects, retrained):
    found, trained = retrained
    ordered = rankings(effects, effects, seed=0)
    for _ in range(2):
        counterfactual(ordered, np.arange(M), found, seed=0)
        brittleness(ordered, np.arange(M), found)
    assert len(trained) == len(set(trained))


def test_brittleness_is_the_fewest_removals_that_turn_the_sum_negative(effects, retrained):
    targets = np.arange(M)
    ordered = rankings(effects, -effects, seed=0)
    result = brittleness(ordered, targets, retrained[0])
    exact = [int(np.argmax(6 - np.cumsum(-np.sort(-row)) < 0)) + 1 for row in effects]
    found = np.array(result.values["fewest"]["scores"])
    assert (found >= exact).all()
    assert (found - exact <= np.maximum(1, found // 8)).all()
    assert result.values["fewest"]["gradient similarity"] == [None] * M  # what harms is never missed


def test_targets_that_the_models_get_wrong_are_not_asked_about():
    meaning = ImageClassification().meaning
    assert choose_targets("brittleness", np.array([-1.0, 2.0, -0.1, 3.0, 0.5]), meaning, 2).tolist() == [1, 4]
    with pytest.raises(DataError, match="the label of none of 1 targets"):
        choose_targets("brittleness", np.array([-1.0]), meaning, 5)


@pytest.mark.parametrize("task", [Regression(), CausalLM()])
def test_outputs_without_a_right_and_a_wrong_side_can_fall_but_not_flip(task):
    outputs = np.array([-3.0, -2.0, -1.0])
    assert choose_targets("counterfactual", outputs, task.meaning, 2).tolist() == [0, 2]
    with pytest.raises(DataError, match=f"that of this run is the {task.meaning.output}. Use counterfactual"):
        choose_targets("brittleness", outputs, task.meaning, 2)


def test_leave_one_out_is_the_correlation_with_measured_effects(effects, retrained):
    samples = np.arange(0, N, 5)
    noisy = effects + np.random.default_rng(1).standard_normal(effects.shape)
    result = leave_one_out({"exact": effects[:, samples], "noisy": noisy[:, samples]}, samples, retrained[0], seed=0)
    expected = np.mean([spearmanr(noisy[z, samples], effects[z, samples]).statistic for z in range(M)])
    assert result.values["correlation"]["exact"][0] == pytest.approx(1)
    assert result.values["correlation"]["noisy"][0] == pytest.approx(expected)


def test_auc_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    values, known = rng.integers(0, 6, 80), rng.random(80) < 0.2
    assert auc(values, known) == pytest.approx(roc_auc_score(known, values))


def test_precision_counts_known_samples_among_the_most_suspicious():
    suspicion = np.arange(100.0)
    result = mislabeled({"rising": suspicion, "falling": -suspicion}, np.array([99, 98, 95, 0]))
    assert result.values["rising"]["precision"] == {"4": 0.5, "10": 0.3, "50": 0.06}
    assert result.values["falling"]["precision"]["10"] == 0.1
    assert result.headline.endswith("precision 0.50 at 4")  # not that at 50, the last column
    assert result.figure.series[0].y[-1] == 1


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.array([3, 100]), "mislabeled sample 100 is out of range"),
        (np.array([0.5]), "got float64 of shape"),
        (np.array([], dtype=int), "must hold some of the 100 training samples and not all"),
        (np.arange(100) % 2, r"If these 100 integers are a mask, make it boolean: mask.astype\(bool\)"),
    ],
)
def test_positions_that_make_no_sense_are_refused(positions, message, tmp_path):
    np.save(tmp_path / "known.npy", positions)
    with pytest.raises(DataError, match=message):
        known_positions(str(tmp_path / "known.npy"), None, 100)
    with pytest.raises(DataError, match="has no attribute 'mislabeled'"):
        known_positions("data", object(), 100)


def test_the_interval_over_models_covers_the_correlation_of_many_models():
    """Against the score over ten times as many targets and models, which stands in for the truth."""
    rng = np.random.default_rng(0)
    observed = rng.standard_normal((400, 40))
    predicted = observed + rng.standard_normal((400, 40))
    truth = spearman(predicted, observed).mean()
    covered = 0
    for start in range(0, 400, 40):
        low, high = bootstrap_both(predicted[start : start + 40], observed[start : start + 40], seed=start)
        covered += low <= truth <= high
    assert covered >= 8


def test_the_noise_ceiling_is_what_the_noiseless_prediction_scores():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((3000, 5))
    first, second = (truth + 0.7 * rng.standard_normal(truth.shape) for _ in range(2))
    ceiling = spearman(truth, first).mean()
    assert noise_ceiling(first, second)[0] == pytest.approx(ceiling, abs=0.02)
    covered = 0
    for start in range(0, 400, 40):
        _, low, high, low_models, high_models = noise_ceiling(first[start : start + 40], second[start : start + 40])
        assert low_models <= high_models
        assert low <= high
        covered += low_models <= ceiling <= high_models
    assert covered >= 8


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(SettingsError, match="evaluation.ceiling is 9, more than the 5 models"):
        EvaluationSettings(models=5, ceiling=9)
    with pytest.raises(SettingsError, match=r"evaluation.fraction must lie in \(0, 1\], got 2"):
        EvaluationSettings(fraction=2)
    with pytest.raises(SettingsError, match=r"evaluation.removed must lie in \(0, 1\), got 1"):
        EvaluationSettings(removed=1)
    with pytest.raises(SettingsError, match="evaluation.ceiling must be 0 with evaluation.protocol fixed_seed, got 3"):
        EvaluationSettings(protocol="fixed_seed", ceiling=3)
    for name in ("models", "ceiling", "leave_one_out"):
        with pytest.raises(SettingsError, match=rf"evaluation.{name} must be 0 or at least 2, got 1"):
            EvaluationSettings(**{name: 1})
    with pytest.raises(SettingsError, match="evaluation.workers must be at least 1, got 0"):
        EvaluationSettings(workers=0)


@pytest.mark.slow
def test_everything_at_once_from_the_command_line(tmp_path):
    settings = {
        "run_dir": str(tmp_path / "run"),
        "model": {"class_path": "trak_lightning.demos.DigitsCNN", "init_args": {"width": 8}},
        "data": {
            "class_path": "trak_lightning.demos.DigitsDataModule",
            "init_args": {"num_targets": 400, "label_noise": 0.1},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 10},
        "ensemble": {"size": 2},
        "projector": {"name": "sparse_jl", "dim": 64},
        "evaluation": {
            "models": 3,
            "ceiling": 3,
            "counterfactual": 1,
            "leave_one_out": 2,
            "mislabeled": "data",
            "agreement": True,
            "repeats": 1,
            "workers": 2,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    done = trak("run", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "run" / "evaluation"
    lds = read_result(folder / "lds-test.json")
    assert 0 <= lds.values["ceiling"] <= 1
    ours = lds.values["scores"]["Trak()"]
    assert ours["low_models"] <= ours["lds"] <= ours["high_models"]
    for kind, figure in (
        ("lds", True),
        ("counterfactual", True),
        ("leave-one-out", False),
        ("mislabeled", True),
        ("agreement", False),
    ):
        result = read_result(folder / f"{kind}-test.json")
        assert result.headline in done.stdout
        assert [(folder / f"{kind}-test{suffix}").exists() for suffix in (".svg", ".png")] == [figure] * 2
    models = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    again = trak("evaluate", "--config", tmp_path / "config.yaml")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == models
