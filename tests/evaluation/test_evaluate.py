"""All evaluations of a run go through one function: it retrains what is missing, after everything else was checked."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from trak_lightning.cli import main
from trak_lightning.cli.commands.evaluate import agrees
from trak_lightning.cli.output import print_trust, print_trust_or_why_not, trust_in
from trak_lightning.errors import (
    CorruptFileError,
    DataError,
    IncompatibleRunError,
    IncompleteRunError,
    PluginError,
    SettingsError,
    StaleRowsError,
)
from trak_lightning.evaluation.experiments import evaluate
from trak_lightning.evaluation.mislabeled import suspicions
from trak_lightning.evaluation.repetitions import RecordedRun, store_repetitions
from trak_lightning.evaluation.result import measured_lds, read_result
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.report.trust import trusted
from trak_lightning.retraining.outputs import missing
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, RunRecord
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.score_run import score_run
from trak_lightning.scoring.scores import Scores, write_matrix
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC, filled_store

LDS_ONLY = EvaluationSettings(models=5)


class Training:
    """Models whose outputs are the sums of the scores of their subsets."""

    def __init__(self, scored, recipe=None):
        self.scored, self.recipe, self.trained = scored, recipe or {"epochs": 1}, 0

    def retrain(self, plan, folder, retrainings):
        replace(plan, recipe=self.recipe).record(folder)
        for each in missing(retrainings):
            each.path.parent.mkdir(exist_ok=True)
            outputs = np.asarray(self.scored.scores)[:, each.subset].sum(axis=1)
            np.savez(each.path, subset=each.subset, outputs=outputs)
            self.trained += 1


@pytest.fixture
def scored(tmp_path):
    run, store = RunDirectory(tmp_path), HDF5Store()
    for split in ("train", "test"):
        filled_store(store, run.features, replace(SPEC, split=split))
    run.write(RunRecord(checkpoints=(CheckpointRecord("a1", "a.ckpt"),)))
    return ScoredRun(run, store, Trak(regularization=0.1), "test")


def test_a_result_is_computed_once_and_read_as_it_was(scored):
    training = Training(scored)
    [(first, computed)] = evaluate(scored, LDS_ONLY, training.retrain)
    assert (computed, training.trained) == (True, 5)
    assert first.values["scores"]["Trak(regularization=0.1)"]["lds"] == pytest.approx(1)
    [(again, computed)] = evaluate(scored, LDS_ONLY, training.retrain)
    assert (computed, training.trained) == (False, 5)
    assert again == first


def test_the_title_says_that_compared_scorers_have_default_settings(scored):
    settings = EvaluationSettings(models=5, compare=["tracin", "gradient_cosine"])
    [(result, _)] = evaluate(scored, settings, Training(scored).retrain)
    assert result.title.endswith(" targets; tracin and gradient_cosine with default settings")
    [(alone, _)] = evaluate(scored, LDS_ONLY, Training(scored).retrain)
    assert "default" not in alone.title


def test_two_models_are_too_few_to_judge_by(scored):
    [(result, _)] = evaluate(scored, EvaluationSettings(models=2), Training(scored).retrain)
    assert (
        result.headline == "LDS 1.000 over 2 retrained models: too few to judge by, 3 are the fewest and 100 are sure"
    )
    assert {row[2:] for row in result.rows} == {("too few models", "too few models")}
    assert result.figure is None
    assert "NaN" not in json.dumps(result.to_json())


class Noisy(Training):
    """Models whose outputs are off, so that intervals have a width."""

    def retrain(self, plan, folder, retrainings):
        super().retrain(plan, folder, retrainings)
        for seed, each in enumerate(retrainings):
            found = dict(np.load(each.path))
            noise = np.random.default_rng(seed).standard_normal(found["outputs"].shape)
            np.savez(each.path, **found | {"outputs": found["outputs"] + noise * found["outputs"].std()})


def test_where_one_interval_stands_alone_it_is_that_over_models_too(scored, capsys):
    [(result, _)] = evaluate(scored, replace(LDS_ONLY, models=12), Noisy(scored).retrain)
    ours = next(iter(result.values["scores"].values()))
    assert ours["low_models"] < ours["low"] < ours["high"] < ours["high_models"]
    measured = f"LDS {ours['lds']:.3f} [{ours['low_models']:.3f}, {ours['high_models']:.3f}] over 12 retrained models"
    assert result.headline == measured
    found = score_run(scored.run, scored.store, scored.scorer, targets="test", name="test")[0]
    print_trust(scored.run, found)
    assert capsys.readouterr().out.endswith(f", as measured: {measured}\n")


def test_what_was_measured_of_some_scores_is_said_of_these_alone(scored, capsys):
    training = Training(scored)
    other = replace(scored, scorer=Trak(regularization=0.2))
    [(result, _)] = evaluate(scored, LDS_ONLY, training.retrain)
    of_models = {"low_models": 0.25, "high_models": 0.5}  # what is called weak or good
    next(iter(result.values["scores"].values())).update(of_models)
    result.write(scored.run.evaluation / "lds-test.json")
    for each, name in ((scored, "test"), (other, "other")):
        found = score_run(scored.run, scored.store, each.scorer, targets="test", name=name)[0]
        print_trust(scored.run, found)
        headline = trusted(scored.run, found).headline
        measured = each is scored
        assert (
            ", as measured: LDS 1.000 [0.250, 0.500] over 5 retrained models" in capsys.readouterr().out
        ) is measured
        assert (headline.number == "1.00") is measured
        print_trust_or_why_not(scored.run, found)
        assert ("trust      unknown: needs 4 checkpoints" in capsys.readouterr().out) is not measured
        told = trust_in(scored.run, found)  # what --json prints
        assert ((told["trust"] or {}).get("lds") == pytest.approx(1)) is (told["trust_unknown"] is None) is measured


def test_a_measured_score_that_may_be_anything_is_not_told_and_the_predicted_one_is(scored, capsys, monkeypatch):
    [(result, _)] = evaluate(scored, LDS_ONLY, Training(scored).retrain)
    next(iter(result.values["scores"].values())).update(lds=0.22, low_models=-0.53, high_models=0.51)
    result.write(scored.run.evaluation / "lds-test.json")
    found = score_run(scored.run, scored.store, scored.scorer, targets="test", name="test")[0]
    print_trust(scored.run, found)
    said = capsys.readouterr().out
    assert "not known yet: the LDS is anywhere in [-0.530, 0.510] over 5 retrained models" in said
    headline = trusted(scored.run, found).headline
    assert (headline.number, "0.22" in headline.text + said) == ("Trust", False)
    predicted = {"lds": 0.3, "low": 0.25, "high": 0.35, "sentence": "moderate: of about 0.30"}
    monkeypatch.setattr(Scores, "trust", predicted)
    text = trusted(scored.run, found).text
    assert text.index("Trust is not known yet") < text.index("Predicted from the checkpoints, moderate: of about 0.30.")


def test_more_models_are_a_new_result_for_which_only_the_new_ones_are_trained(scored):
    training = Training(scored)
    list(evaluate(scored, LDS_ONLY, training.retrain))
    for models, trained in ((7, 7), (4, 7)):
        [(result, computed)] = evaluate(scored, replace(LDS_ONLY, models=models), training.retrain)
        assert (computed, training.trained, result.values["num_models"]) == (True, trained, models)
    [(_, computed)] = evaluate(scored, replace(LDS_ONLY, ceiling=2), training.retrain)
    assert (computed, training.trained) == (True, 9)


def test_at_a_fixed_seed_all_models_share_it_and_are_kept_next_to_those_of_the_other_protocol(scored):
    training, asked = Training(scored), []
    list(evaluate(scored, LDS_ONLY, training.retrain))

    def retrain(plan, folder, retrainings):
        asked.extend(retrainings)
        training.retrain(plan, folder, retrainings)

    settings = EvaluationSettings(models=4, protocol="fixed_seed", removed=0.25)
    [(result, computed)] = evaluate(scored, settings, retrain)
    assert (computed, training.trained, result.kind) == (True, 9, "fixed-seed")
    assert len({each.seed for each in asked}) == 1
    assert {len(each.subset) for each in asked} == {round(0.75 * scored.num_train)}
    assert all(each.keep_batches and each.path.parent.name == "models-fixed_seed-0.25" for each in asked)
    assert result.values["scores"]["Trak(regularization=0.1)"]["lds"] == pytest.approx(1)
    [(_, again)] = evaluate(scored, settings, retrain)
    assert (again, training.trained) == (False, 9)


FEW = EvaluationSettings(models=4, protocol="fixed_seed", removed=0.25)


@pytest.fixture
def recorded(scored):
    """Scores of a recorded training, those of `scored`, and repetitions of it."""
    values = np.asarray(scored.scores)
    settings = {"request": {"recording": 1}, "repeated_by": "Replay.repeat"}
    made = write_matrix(scored.run.path, "replayed", values, "given", settings)
    store_repetitions(made, lambda subset: values[:, subset].sum(axis=1), models=4, removed=0.25)
    return RecordedRun(scored.run, scored.store, scored.scorer, "replayed")


def test_scores_of_a_recorded_training_are_judged_by_its_repetitions_next_to_scorers_on_features(recorded):
    recorded.require(FEW)
    [(result, computed)] = evaluate(recorded, FEW, recorded.retrain)
    assert (computed, result.values["scores"]["replayed"]["lds"]) == (True, pytest.approx(1))
    assert list(result.values["scores"]) == ["replayed", "λ = 0, unweighted (paper)", "gradient dot product", "random"]
    assert (recorded.run.evaluation / "fixed-seed-replayed.json").exists()
    assert measured_lds(recorded.run, recorded.stored) == result
    [(_, again)] = evaluate(recorded, FEW, recorded.retrain)
    assert not again


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        (
            "replayed",
            replace(FEW, protocol="halves"),
            SettingsError,
            "evaluation.protocol must be fixed_seed, got halves",
        ),
        ("replayed", replace(FEW, agreement=True), SettingsError, "evaluation.agreement must be False, got True"),
        ("replayed", replace(FEW, models=7), IncompleteRunError, "3 of 7 repetitions .* Make them with Replay.repeat"),
        ("test", FEW, DataError, "is not about a recorded training: leave out --name"),
    ],
)
def test_of_a_recorded_training_only_its_repetitions_are_asked(name, settings, error, message, recorded):
    scored = replace(recorded, target_split=name)

    def ask():
        scored.require(settings)
        list(evaluate(scored, settings, scored.retrain))

    with pytest.raises(error, match=message):
        ask()


def test_without_features_the_scores_of_a_recorded_training_are_offered(recorded, tmp_path, capsys):
    settings = {"request": {"recording": 1}, "repeated_by": "Replay.repeat"}
    made = write_matrix(tmp_path / "alone", "replayed", np.asarray(recorded.scores), "given", settings)
    assert main(["evaluate", str(tmp_path / "alone")]) == 1
    assert "Evaluate these: --name replayed --evaluation.protocol fixed_seed" in capsys.readouterr().err
    made.path.unlink()
    assert main(["evaluate", str(tmp_path / "alone")]) == 1
    assert "--name" not in capsys.readouterr().err


def test_without_features_of_its_targets_scores_of_a_recorded_training_stand_alone(recorded):
    alone = replace(recorded, compared_split="other")
    [(result, _)] = evaluate(alone, FEW, alone.retrain)
    assert list(result.values["scores"]) == ["replayed", "random"]
    with pytest.raises(
        IncompleteRunError, match="evaluation.compare needs features of the .* targets of scores replayed"
    ):
        alone.require(replace(FEW, compare=["tracin"]))


def test_repetitions_of_another_training_are_refused(recorded):
    settings = {"request": {"recording": 2}, "repeated_by": "Replay.repeat"}
    write_matrix(recorded.run.path, "replayed", recorded.scores, "given", settings)
    other = replace(recorded)
    with pytest.raises(IncompatibleRunError, match="recording = 1, and 2 is asked for"):
        list(evaluate(other, FEW, other.retrain))


def test_targets_of_another_split_have_retrained_outputs_of_their_own(scored, tmp_path):
    filled_store(scored.store, scored.run.features, replace(SPEC, split="other"))
    training = Training(scored)
    list(evaluate(scored, LDS_ONLY, training.retrain))
    list(evaluate(replace(scored, target_split="other"), LDS_ONLY, training.retrain))
    assert training.trained == 10
    scored.run.discard_results()
    list(evaluate(scored, LDS_ONLY, training.retrain))
    assert training.trained == 15


def test_removing_less_than_one_sample_is_refused(scored):
    settings = EvaluationSettings(models=4, protocol="fixed_seed", removed=0.001)
    with pytest.raises(DataError, match="evaluation.removed = 0.001 of .* training samples is less than one sample"):
        list(evaluate(scored, settings, Training(scored).retrain))


def test_models_trained_with_other_settings_are_refused_even_if_the_result_is_stored(scored):
    list(evaluate(scored, LDS_ONLY, Training(scored).retrain))
    with pytest.raises(IncompatibleRunError, match="epochs = 1, and 2 is asked for"):
        list(evaluate(scored, LDS_ONLY, Training(scored, {"epochs": 2}).retrain))


def rewritten(scored, split, **columns):
    """The same run with other rows of a split, of the same settings, as after its features were deleted."""
    store = HDF5Store()
    store.bind(scored.run.features)
    rows = store.open(split, "a1")
    for block in range(rows.spec.num_blocks):
        rows.write_block(
            block,
            replace(
                rows.read_block(block),
                **{name: change(getattr(rows.read_block(block), name)) for name, change in columns.items()},
            ),
        )
    return replace(scored, store=store)


@pytest.mark.parametrize(
    "settings", [LDS_ONLY, replace(LDS_ONLY, protocol="fixed_seed"), EvaluationSettings(models=0, leave_one_out=3)]
)
@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        ("train", {"content": lambda column: column + 1}, "other training samples"),
        ("test", {"content": lambda column: column + 1}, "other targets"),
        ("test", {"output": lambda column: column * 1.2}, "another function"),
    ],
)
def test_models_of_other_samples_or_of_another_function_are_refused_until_they_are_deleted(
    split, columns, message, settings, scored
):
    training = Training(scored)
    list(evaluate(scored, settings, training.retrain))
    trained, changed = training.trained, rewritten(scored, split, **columns)
    for _ in range(2):
        with pytest.raises(StaleRowsError, match=f"stored rows are of {message}") as error:
            list(evaluate(changed, settings, training.retrain))
    assert training.trained == trained
    shutil.rmtree(re.search("delete (.*), so", str(error.value))[1])
    [(_, computed)] = evaluate(changed, settings, training.retrain)
    assert computed
    assert training.trained == 2 * trained


def test_outputs_that_are_rounded_otherwise_are_those_of_the_same_function(scored):
    list(evaluate(scored, LDS_ONLY, Training(scored).retrain))
    list(evaluate(rewritten(scored, "test", output=lambda column: column * 1.0001), LDS_ONLY, Training(scored).retrain))


def test_results_of_models_that_were_deleted_are_not_taken_for_those_of_new_ones(scored):
    class Prepared(Training):
        """As `trak run` does, which records the plan before it looks for a stored result."""

        def retrain(self, plan, folder, retrainings):
            super().retrain(plan, folder, retrainings)
            for each in retrainings:
                np.savez(each.path, subset=each.subset, outputs=np.load(each.path)["outputs"] * self.sign)

    training = Prepared(scored)
    training.sign = 1
    list(evaluate(scored, LDS_ONLY, training.retrain))
    shutil.rmtree(scored.run.evaluation / "models")
    training.sign = -1  # the code of the training was edited
    [(result, computed)] = evaluate(scored, LDS_ONLY, training.retrain)
    assert computed
    assert result.values["scores"]["Trak(regularization=0.1)"]["lds"] == pytest.approx(-1)


@pytest.mark.parametrize(
    "old",
    [
        {"request": {}, "num_models": 3, "num_targets": 2, "rows": [{"name": "Trak()", "lds": 0.1}], "ceiling": None},
        {"request": {}, "kind": "mislabeled", "rows": [["a"]], "columns": ["b"], "series": [], "x_log": False},
    ],
    ids=["lds", "others"],
)
def test_results_of_earlier_versions_are_computed_again(old, scored):
    path = scored.run.evaluation / "lds-test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(old))
    with pytest.raises(IncompatibleRunError, match="Run trak evaluate again to renew it"):
        read_result(path)
    [(result, computed)] = evaluate(scored, LDS_ONLY, Training(scored).retrain)
    assert computed
    assert read_result(path) == result


@pytest.mark.parametrize("content", ["[1, 2]", '{"format": 2, "request": {}}', "{"])
def test_files_that_are_no_result_are_refused(content, scored, tmp_path):
    path = tmp_path / "lds-test.json"
    path.write_text(content)
    with pytest.raises(CorruptFileError, match="lds-test.json is not"):
        read_result(path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"mislabeled": "data"}, DataError, "object has no attribute 'mislabeled'"),
        ({"mislabeled": "nowhere.npy"}, DataError, "must be a .npy file of positions or 'data'; nowhere.npy"),
        ({"agreement": True}, DataError, "needs at least two; this run has one"),
        ({"compare": ["tracinn"]}, PluginError, "did you mean 'tracin'"),
    ],
)
def test_what_is_impossible_is_refused_before_a_model_is_retrained(settings, error, message, scored):
    training = Training(scored)
    with pytest.raises(error, match=message):
        list(evaluate(scored, replace(LDS_ONLY, **settings), training.retrain, object))
    assert training.trained == 0


@pytest.mark.parametrize(("of", "column"), [("output", "output"), ("loss_weight", "loss_weight"), (None, None)])
def test_outputs_are_taken_for_probabilities_only_as_the_task_says(of, column, scored):
    record = scored.run.read()
    scored.run.write(replace(record, meaning=Meaning(probability=of, probability_name="p(x)")))
    found = suspicions(scored)
    assert ("1 − p(x)" in found) is (of is not None)
    if column:
        values = scored.checkpoints[0].train.column(column)
        expected = 1 / (1 + np.exp(values)) if of == "output" else np.clip(values, 0, 1)
        np.testing.assert_allclose(found["1 − p(x)"], expected, rtol=1e-6)


RECORDED = {
    "model": {"class_path": "demos.CNN", "init_args": {"width": 4, "depth": 2}},
    "trainer": {"max_epochs": 3, "logger": False},
    "optimizer": None,
}


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({}, True),
        ({"model": {"class_path": "demos.CNN"}, "trainer": {"max_epochs": 3}}, True),
        ({"model": {"class_path": "demos.CNN", "init_args": {"width": 4}, "depth": 2}}, True),
        ({"model": {"class_path": "demos.MLP"}}, False),
        ({"model": {"class_path": "demos.CNN", "init_args": {"width": 4}, "width": 5}}, False),
        ({"trainer": {"max_epochs": 4}}, False),
        ({"trainer": {"precision": "bf16-mixed"}}, False),
        ({"optimizer": {"class_path": "Adam"}}, False),
    ],
)
def test_settings_agree_with_recorded_ones_if_none_of_them_differs(given, same):
    assert agrees(given, RECORDED) is same
