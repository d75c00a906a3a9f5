"""The Python API, from datasets and checkpoints to scores."""

import re
import resource
import shutil
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from trak_lightning import TRAK, Task
from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import (
    CheckpointError,
    DataError,
    IncompatibleRunError,
    IncompleteRunError,
    NonFiniteGradientError,
    PluginError,
    SampleDependenceError,
    SettingsError,
    StorageError,
    TrainModeError,
)
from trak_lightning.report import write_report
from trak_lightning.scoring import regularization
from trak_lightning.scoring.scores import open_scores
from trak_lightning.stores.memory import MemoryStore
from trak_lightning.tasks.margin import margin


def attribute(model, run_dir, **options):
    return TRAK(model, task="image_classification", run_dir=run_dir, **{"projector": "identity", **options})


def rows(trak, split="train"):
    """Features of every checkpoint, in order."""
    checkpoints = [record.id for record in trak.run.read().checkpoints]
    sets = [trak.store.open(split, checkpoint) for checkpoint in checkpoints]
    return np.stack([np.concatenate([block.features for block in found.blocks()]) for found in sets])


def test_scores_equal_the_formula_computed_naively(model, train_set, test_set, checkpoints, tmp_path):
    model.double()
    doubles = [{name: tensor.double() for name, tensor in state.items()} for state in checkpoints]
    for dataset in (train_set, test_set):
        dataset.tensors = (dataset.tensors[0].double(), dataset.tensors[1])
    trak = attribute(model, tmp_path, store={"name": "hdf5", "dtype": "float64"})
    trak.featurize(train_set, checkpoints=doubles)
    scores = trak.score(test_set, name="test", regularization=0.5, weights="residual")

    def naive(state, dataset):
        gradients, outputs = [], []
        for x, y in dataset:
            parameters = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
            output = margin(functional_call(model, parameters, (x[None],)), y[None])[0]
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(output, list(parameters.values()))]))
            outputs.append(output.detach())
        return torch.stack(gradients), torch.sigmoid(-torch.stack(outputs))

    inner, weights = 0, 0
    for state in doubles:
        (phi, q), (targets, _) = naive(state, train_set), naive(state, test_set)
        gram = (phi * q[:, None]).T @ phi + 0.5 * torch.eye(phi.shape[1], dtype=torch.float64)
        inner, weights = inner + targets @ torch.linalg.solve(gram, phi.T) / 3, weights + q / 3
    np.testing.assert_allclose(scores.values, (inner * weights).numpy(), rtol=1e-5, atol=1e-7)
    assert scores.top(5).indices.shape == (9, 5)


@pytest.mark.parametrize("extractor", ["functional", "iterative"])
def test_features_do_not_depend_on_the_extractor(extractor, model, train_set, tmp_path):
    found = []
    for name in ("hooks", extractor):
        trak = attribute(model, tmp_path / name, extractor=name, projector={"name": "sparse_jl", "dim": 32})
        trak.featurize(train_set)
        found.append(rows(trak))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_a_shuffling_loader_gives_what_its_dataset_gives(model, train_set, tmp_path):
    first, second = attribute(model, tmp_path / "a"), attribute(model, tmp_path / "b")
    first.featurize(train_set, batch_size=16)
    second.featurize(DataLoader(train_set, batch_size=16, shuffle=True, drop_last=True))
    np.testing.assert_array_equal(rows(first), rows(second))


def test_the_model_keeps_its_own_weights_and_mode(model, train_set, checkpoints, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attribute(model, tmp_path).featurize(train_set, checkpoints=checkpoints)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_model_keeps_what_requires_a_gradient_though_its_forward_freezes_some(model, train_set, tmp_path):
    class Freezing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            self.net[0].requires_grad_(False)
            return self.net(x)

    own = Freezing().eval()
    attribute(own, tmp_path).featurize(train_set)
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_scores_by_a_rule_that_was_changed_are_computed_again(
    model, train_set, test_set, checkpoints, tmp_path, monkeypatch
):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints)
    before = trak.score(test_set).path.stat().st_mtime_ns
    assert trak.score(test_set).path.stat().st_mtime_ns == before
    monkeypatch.setattr(regularization, "PROJECTION", 1000.0)
    after = trak.score(test_set)
    assert after.path.stat().st_mtime_ns != before
    assert after.settings["scoring"]["rule"] == "auto: trace/0"


def test_scores_that_are_open_never_show_those_that_replace_them(model, train_set, test_set, checkpoints, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints=checkpoints)
    first = trak.score(test_set, name="test")
    before = first.values.copy()
    second = trak.score(test_set, name="test", scorer="tracin")
    assert not np.allclose(second.values, before)
    np.testing.assert_array_equal(first.values, before)
    with pytest.raises(DataError, match="was replaced or deleted since these scores were opened"):
        first.top(3)


def test_threads_that_share_a_model_get_the_rows_of_their_own_checkpoints(model, train_set, checkpoints, tmp_path):
    def featurized(number, folder):
        trak = attribute(model, tmp_path / folder / str(number))
        trak.featurize(train_set, checkpoints=[checkpoints[number]], batch_size=4)
        return rows(trak)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(featurized, range(2), ["threads"] * 2))
    for number in range(2):
        np.testing.assert_array_equal(found[number], featurized(number, "alone"))


def test_what_is_there_is_not_computed_again(model, train_set, test_set, checkpoints, tmp_path):
    trak = attribute(model, tmp_path)
    assert trak.featurize(train_set, checkpoints=checkpoints[:2]) == 100
    assert attribute(model, tmp_path).featurize(train_set, checkpoints=checkpoints[:2]) == 0
    assert trak.featurize(train_set, checkpoints=checkpoints) == 50  # one more checkpoint
    first = trak.score(test_set, name="test")
    assert trak.score(test_set, name="test").path.stat().st_mtime_ns == first.path.stat().st_mtime_ns


def test_subsets_make_calibration_possible(model, train_set, test_set, checkpoints, tmp_path):
    more = [*checkpoints, {name: tensor + 1 for name, tensor in checkpoints[0].items()}]
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints=more, subsets=[range(i, 50, 2) for i in range(4)])
    settings = trak.score(test_set, regularization="calibrate").settings["scoring"]
    assert re.fullmatch(r"calibrate: trace/\d+", settings["rule"])


def test_a_trainer_of_the_users_own_is_used_and_left_alone(model, train_set, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    callbacks = list(trainer.callbacks)
    trak = attribute(model, tmp_path, trainer=trainer, store=MemoryStore())
    trak.featurize(train_set)
    assert rows(trak).dtype == np.float64
    assert trainer.callbacks == callbacks
    assert model[0].weight.dtype == torch.float32


def test_batch_hooks_of_a_lightning_module_are_applied_as_in_training(train_set, tmp_path):
    class Scales(L.LightningModule):
        def __init__(self, factor):
            super().__init__()
            self.layer, self.factor = nn.Linear(6, 3), factor
            nn.init.constant_(self.layer.weight, 0.1)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * self.factor, batch[1]

        def forward(self, x):
            return self.layer(x)

    found = []
    for factor in (1, 3):
        trak = attribute(Scales(factor).eval(), tmp_path / str(factor))
        trak.featurize(train_set)
        found.append(rows(trak))
    assert not np.allclose(*found)


@pytest.mark.parametrize("owner", [L.LightningModule, L.LightningDataModule])
def test_batch_hooks_that_augment_while_the_trainer_trains_leave_rows_as_they_are(owner, model, train_set, tmp_path):
    class Augments(owner):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return (torch.rand_like(batch[0]), batch[1]) if self.trainer.training else batch

    class Module(Augments if owner is L.LightningModule else L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)

    data = Augments() if owner is L.LightningDataModule else None
    found = []
    for name, net, hooks in (("plain", model, None), ("hooks", Module().eval(), data)):
        trak = attribute(net, tmp_path / name)
        trak.featurize(AttributionData.of(train_set, 8, hooks=hooks))
        found.append(rows(trak))
    np.testing.assert_array_equal(*found)
    assert data is None or data.trainer is None


# --- Bad input -------------------------------------------------------------------------------------------------------


def test_a_model_left_in_train_mode_is_refused_by_module(model, tmp_path):
    with pytest.raises(TrainModeError, match=r"2 \(Dropout, p=0.5\).*model.eval\(\)"):
        attribute(model.train(), tmp_path)


def test_dropout_that_ignores_eval_mode_is_refused(train_set, tmp_path):
    class AlwaysDrops(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5))

    with pytest.raises(
        SampleDependenceError,
        match=r"differs by .*draw them in the dataset.*page recipes of the documentation.*F.dropout",
    ):
        attribute(AlwaysDrops(6, 3).eval(), tmp_path, extractor="iterative").featurize(train_set)


def test_samples_that_are_mixed_are_refused(train_set, tmp_path):
    class Centres(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x - x.mean(0))

    with pytest.raises(SampleDependenceError, match="in a batch of 50"):
        attribute(Centres().eval(), tmp_path).featurize(train_set)


def test_nan_names_the_samples_and_stores_nothing(model, train_set, tmp_path):
    train_set.tensors[0][[7, 33]] = float("nan")
    trak = attribute(model, tmp_path)
    with pytest.raises(NonFiniteGradientError, match=r"in the output of 2 of 50 samples: \[7, 33\]"):
        trak.featurize(train_set)
    assert trak.store.list() == []


def test_labels_out_of_range_are_refused_under_vmap_too(model, train_set, tmp_path):
    train_set.tensors[1][20] = 3  # in the second batch: the first is looked at as a whole
    with pytest.raises(NonFiniteGradientError, match=r"samples: \[20\]"):
        attribute(model, tmp_path, extractor="functional").featurize(train_set, batch_size=16)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_refused(label, model, train_set, tmp_path):
    train_set.tensors[1][5] = label
    with pytest.raises(
        DataError, match=rf"sample 5 of the dataset: label {label} is out of range: the model returns 3 logits"
    ):
        attribute(model, tmp_path).featurize(train_set)


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_computed(model, train_set, checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit Sequential: 4 missing, such as '0.weight'; 1 unexpected"):
        attribute(model, tmp_path).featurize(train_set, checkpoints=[checkpoints[0], {"x": torch.ones(1)}])
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector": "gaussian"}, "projector.class = .*identity.*gaussian|dim = "),
        (
            {"projector": {"name": "sparse_jl", "dim": 16}, "first": {"projector": {"name": "sparse_jl", "dim": 8}}},
            "dim = 8, and 16",
        ),
        ({"seed": 1}, "seed = 0, and 1 is asked for"),
    ],
)
def test_a_run_directory_made_with_other_settings_is_refused(change, message, model, train_set, tmp_path):
    attribute(model, tmp_path, **change.pop("first", {})).featurize(train_set)
    with pytest.raises(IncompatibleRunError, match=message):
        attribute(model, tmp_path, **change).featurize(train_set)


@pytest.mark.parametrize("store", ["hdf5", "memory"])
def test_an_attempt_that_stored_nothing_does_not_bind_the_next_one(store, model, train_set, tmp_path):
    store = MemoryStore() if store == "memory" else store
    wrong = TRAK(model, {"name": "regression"}, tmp_path, projector="identity", store=store)
    with pytest.raises(DataError):
        wrong.featurize(train_set)
    assert attribute(model, tmp_path, store=store).featurize(train_set) == len(train_set)


def test_an_attempt_that_stored_rows_binds_the_next_one(model, train_set, tmp_path):
    train_set.tensors[0][-1] = float("nan")
    with pytest.raises(NonFiniteGradientError):
        attribute(model, tmp_path).featurize(train_set, batch_size=4, block_size=4)
    with pytest.raises(IncompatibleRunError, match="seed = 0, and 1"):
        attribute(model, tmp_path, seed=1).featurize(train_set, batch_size=4, block_size=4)


def test_a_run_directory_made_with_another_checkpoint_is_refused(model, train_set, checkpoints, tmp_path):
    attribute(model, tmp_path).featurize(train_set, checkpoints=checkpoints[:1])
    with pytest.raises(IncompatibleRunError, match="which is not among the checkpoints given now"):
        attribute(model, tmp_path).featurize(train_set, checkpoints=checkpoints[1:])


def test_a_dataset_whose_length_or_content_changed_is_refused(model, train_set, tmp_path):
    attribute(model, tmp_path).featurize(train_set)
    with pytest.raises(IncompatibleRunError, match="length of the dataset = 50, and 49"):
        attribute(model, tmp_path).featurize(torch.utils.data.Subset(train_set, range(49)))
    train_set.tensors[0][0] += 1
    with pytest.raises(IncompatibleRunError, match=r"1 sample of 'train' is not .*: 0\."):
        attribute(model, tmp_path).featurize(train_set)


def test_targets_under_the_name_of_the_training_set_are_asked_for_another_name(model, train_set, test_set, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints=[model])
    before = rows(trak)
    changed = TensorDataset(-train_set.tensors[0], train_set.tensors[1])
    for other in (test_set, changed):
        for repair in (False, True):
            with pytest.raises(
                IncompatibleRunError, match=r"'train' is the name of the training set in .*another name for them\.$"
            ):
                trak.score(other, name="train", repair=repair)
    np.testing.assert_array_equal(rows(trak), before)
    assert trak.score(train_set, name="train").shape == (len(train_set), len(train_set))


def test_a_name_that_was_not_scored_is_answered_with_those_that_were(model, train_set, test_set, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints=[model])
    trak.score(test_set, name="t")
    assert np.array_equal(trak.what_if().remove([3]).change, trak.what_if("t").remove([3]).change), "the only ones"
    assert trak.select(2).indices.tolist() == trak.select(2, "t").indices.tolist()
    with pytest.raises(
        DataError, match=r"one per training sample; got the name 'label'\. Give the values of that column"
    ):
        trak.select(2, groups="label")
    trak.score(test_set, name="u")
    for ask in (trak.what_if, lambda: trak.select(2), lambda: trak.token_scores(test_set, [(0, 0)])):
        with pytest.raises(
            IncompleteRunError,
            match=r"no features of 'targets'.*those of 't', 'train', 'u'\. Name targets that are there.* compute these first",
        ):
            ask()


def test_numbers_of_numpy_are_settings_like_those_of_python(model, train_set, test_set, tmp_path):
    projector = {"name": "sparse_jl", "dim": np.int64(8), "nnz": np.int32(2)}
    trak = attribute(model, tmp_path, seed=np.int64(3), projector=projector)
    trak.featurize(train_set, checkpoints=[model], batch_size=np.int64(8), block_size=np.int64(16))
    assert trak.score(test_set, name="test", top=np.int64(3)).top(np.int64(2), target=np.int64(0)).indices.shape == (2,)
    same = attribute(model, tmp_path, seed=3, projector={"name": "sparse_jl", "dim": 8, "nnz": 2})
    assert same.featurize(train_set, checkpoints=[model], batch_size=8, block_size=16) == 0


@pytest.mark.parametrize("seed", ["0", "a", 1.7, None, True, -1])
def test_a_seed_that_is_no_number_is_refused(seed, model, tmp_path):
    with pytest.raises(SettingsError, match=f"seed must be an integer, 0 or more, got {re.escape(repr(seed))}"):
        attribute(model, tmp_path, seed=seed)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda scores: scores.top(2, target=[0, 1]), r"target must be one integer, .*, got \[0, 1\]"),
        (lambda scores: scores.bottom(2.0), r"k must be an integer in 1 … \d+, .* got 2\.0"),
    ],
)
def test_a_ranking_is_of_one_target_or_all(ask, message, model, train_set, test_set, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints=[model])
    with pytest.raises(DataError, match=message):
        ask(trak.score(test_set))


def test_an_unknown_plugin_suggests_the_nearest(model, tmp_path):
    with pytest.raises(PluginError, match="did you mean 'hooks'"):
        attribute(model, tmp_path, extractor="hook")


def test_a_run_directory_that_cannot_be_written_is_refused(model, train_set, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*part of the path is a file"):
        attribute(model, tmp_path / "file" / "run").featurize(train_set)


@pytest.mark.parametrize("what", ["featurize", "score"])
def test_a_full_disk_is_named_and_what_is_stored_is_kept(what, model, train_set, test_set, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, batch_size=4)
    trak.score(test_set, name="test")
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    next(
        (tmp_path / "features" / "train").rglob("block-00000.h5") if what == "featurize" else tmp_path.rglob("test.h5")
    ).unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a disk that takes 1000 bytes of a file
    try:
        with pytest.raises(StorageError, match=r"cannot write .*h5: the file is larger than"):
            trak.featurize(train_set, batch_size=4) if what == "featurize" else trak.score(test_set, name="test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    trak.featurize(train_set, batch_size=4)
    trak.score(test_set, name="test")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == whole


def test_the_same_checkpoint_twice_is_refused(model, train_set, checkpoints, tmp_path):
    with pytest.raises(DataError, match="hold the same weights"):
        attribute(model, tmp_path).featurize(train_set, checkpoints=[checkpoints[0]] * 2)


def test_scoring_before_featurizing_is_refused(model, test_set, tmp_path):
    with pytest.raises(IncompleteRunError, match="call featurize"):
        attribute(model, tmp_path).score(test_set)


def test_batches_that_the_task_does_not_know_are_refused(model, train_set, tmp_path):
    three = torch.utils.data.TensorDataset(*train_set.tensors, train_set.tensors[1])
    with pytest.raises(DataError, match=r"a list of length 3: .*, where a pair \(inputs, labels\)"):
        attribute(model, tmp_path).featurize(three)


def test_parameters_without_effect_are_named_once_for_a_model(train_set, test_set, tmp_path, caplog):
    class OfTwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.other = nn.Linear(6, 3), nn.Linear(6, 1)

        def forward(self, x):
            return {"kind": self.used(x), "price": self.other(x)}

    trak = TRAK(
        OfTwoHeads().eval(), {"name": "image_classification", "outputs": "kind"}, tmp_path, projector="identity"
    )
    trak.featurize(train_set)
    trak.score(test_set)
    assert (
        caplog.text.count("no output of the first batch depends on 2 of 4 parameters (7 of 28 entries): other.weight")
        == 1
    )


def test_an_error_has_a_cause_only_where_code_of_the_user_failed(model, train_set, tmp_path):
    def loss(model, batch):
        return model(batch[0]).no_such_attribute

    def shown(settings):
        with pytest.raises((DataError, AttributeError)) as caught:
            TRAK(model, settings, tmp_path, projector="identity").featurize(train_set)
        return "".join(traceback.format_exception(caught.value))

    ours = shown("regression")
    assert "split 'train': the model's prediction must have shape" in ours
    assert not re.search("During handling|direct cause", ours)
    assert "in loss" in shown({"name": "loss", "function": loss})


def test_a_task_of_ones_own_needs_one_method(train_set, tmp_path):
    class FirstLogit(Task):
        def output(self, model, batch):
            return model(batch[0])[:, 0]

    trak = TRAK(nn.Linear(6, 3).eval(), task=FirstLogit(), run_dir=tmp_path, projector="identity")
    trak.featurize(train_set)
    np.testing.assert_allclose(rows(trak)[0][:, :6], train_set.tensors[0].numpy(), rtol=1e-6)


def test_without_a_name_the_scores_of_the_targets_of_the_run_or_of_test_are_opened(
    model, train_set, test_set, checkpoints, tmp_path
):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints)
    for name in ("other", "test"):
        trak.score(test_set, name=name)
    assert open_scores(trak.run).path.stem == "test"
    trak.run.config.write_text("{target_split: other, store: {class_path: x}}")
    assert open_scores(trak.run).path.stem == "other"


def test_each_name_of_scores_has_a_page_and_needs_no_name_where_it_is_the_default_or_the_only_one(
    model, train_set, test_set, checkpoints, tmp_path
):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints)
    trak.score(test_set, name="first")
    assert trak.report(test_set, num_targets=1) == tmp_path / "report" / "first.html"
    trak.score(test_set, name="second")
    with pytest.raises(
        DataError, match="several score files, first, second: choose one with --name, or name= in Python"
    ):
        trak.report(test_set)
    with pytest.raises(DataError, match="no scores named 'third'; it has first, second: .* name= in Python"):
        trak.report(test_set, "third")
    trak.score(test_set)
    assert trak.report(test_set, num_targets=1).stem == "targets"
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"first.html", "targets.html"}


def test_a_page_about_groups_of_targets_is_refused(model, train_set, test_set, checkpoints, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints)
    trak.score(test_set, name="test", groups=np.arange(len(test_set)) % 2)
    with pytest.raises(DataError, match="scores of 2 groups of 9 targets"):
        write_report(tmp_path, train_set, test_set, name="test-mean", target_split="test", store=trak.store)


@pytest.mark.parametrize("where", ["argument", "file"])
def test_another_subset_than_the_recorded_one_is_refused(where, model, train_set, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pt")
    trak = attribute(model, tmp_path / "run")

    def featurize(subset):
        if where == "argument":
            return trak.featurize(train_set, tmp_path / "a.pt", subsets=[subset])
        np.save(tmp_path / "a.subset.npy", subset)
        return trak.featurize(train_set, tmp_path / "a.pt")

    featurize(np.arange(25))
    assert featurize(np.arange(25)) == 0
    with pytest.raises(
        IncompatibleRunError, match=r"a.pt\) is recorded as trained on 25 samples, and now 30 .*10 are oth"
    ) as e:
        featurize(np.arange(5, 35))
    Path(re.search(r"delete (.*), and", str(e.value))[1]).unlink()
    assert featurize(np.arange(5, 35)) == 0
    assert trak.run.read_subset(trak.run.read().checkpoints[0].id).tolist() == list(range(5, 35))


@pytest.mark.parametrize("store", ["memory", "hdf5"])
def test_scores_and_factors_of_rows_that_were_replaced_are_not_used(store, model, train_set, test_set, tmp_path):
    """The rows of a store in memory are gone with its process, and a folder may be deleted; scores and factors stay in the run directory."""

    def ask(run_dir):
        trak = attribute(model, run_dir, store=store)
        trak.featurize(train_set)
        scores = trak.score(test_set, name="test", regularization=0.5)
        return np.array(scores.values), trak.self_influence(regularization=0.5).leverage

    before = ask(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "features", ignore_errors=True)
    for data in (train_set, test_set):  # not the first, middle or last sample, by which datasets are told apart
        data.tensors[1][1] = (data.tensors[1][1] + 1) % 3
    after, fresh = ask(tmp_path / "run"), ask(tmp_path / "fresh")
    for old, found, expected in zip(before, after, fresh, strict=True):
        assert not np.allclose(old, expected)
        np.testing.assert_array_equal(found, expected)


def test_scores_and_answers_are_of_the_training_split_that_was_featurized_last(model, train_set, test_set, tmp_path):
    trak, alone = attribute(model, tmp_path / "both"), attribute(model, tmp_path / "alone")
    pool = TensorDataset(*train_set[5:25])
    trak.featurize(train_set)
    trak.score(test_set, name="earlier")
    trak.featurize(pool, split="pool")
    with pytest.raises(DataError, match="has scores of the training samples 'train', and those given are 'pool'"):
        trak.report(test_set, name="earlier")
    alone.featurize(pool)
    for found in (trak, alone):
        found.score(test_set, name="test", regularization=0.5)
    np.testing.assert_array_equal(open_scores(trak.run, "test").values, open_scores(alone.run, "test").values)
    removals = [found.what_if("test").remove([1, 3]).change for found in (trak, alone)]
    np.testing.assert_array_equal(*removals)
    np.testing.assert_array_equal(*(found.self_influence().leverage for found in (trak, alone)))
    np.testing.assert_array_equal(*(found.select(5, "test").indices for found in (trak, alone)))
    assert trak.what_if("test", split="train").num_train == len(train_set)
