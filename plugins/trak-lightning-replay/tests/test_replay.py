"""Derivatives through recorded runs equal finite differences; runs that cannot be replayed are refused by name."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import trak_lightning_replay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils.data import DataLoader, Dataset, TensorDataset
from trak_lightning_replay import Record, Replay, Smoothness

from trak_lightning.authoring import mean_spearman
from trak_lightning.cli import main
from trak_lightning.errors import (
    DataError,
    IncompatibleRunError,
    IncompleteRunError,
    SampleDependenceError,
    UnsupportedModelError,
)
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.runtime.lightning import quiet_lightning

N, TARGETS = 20, 6


def _samples(n: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return TensorDataset(x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).long() + (x[:, 3] > 1).long())


class Net(L.LightningModule):
    """Dropout, a schedule, a parameter that only some batches use, and one that none uses."""

    def __init__(self, make: Callable[..., Optimizer] = SGD, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(0.2), nn.Linear(7, 3)).double()
        self.sometimes = nn.Parameter(torch.full((3,), 0.1, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self._make = make
        self._options = {"lr": 0.1, **options}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.sometimes if x[0, 0] > 0 else self.net(x)

    def losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.losses(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self._make(self.parameters(), **self._options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _loader(dataset: Dataset | None = None) -> DataLoader:
    return DataLoader(dataset or _samples(N, 0), batch_size=6, shuffle=True)


def _train(folder: Path, module: L.LightningModule, loader: DataLoader | None = None, **options: Any) -> L.Trainer:
    torch.manual_seed(1)
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | options
    callbacks = settings.pop("callbacks", [])
    with quiet_lightning():
        trainer = L.Trainer(
            **settings,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Record(folder, every=4), *callbacks],
        )
        trainer.fit(module, loader or _loader())
    return trainer


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # a module draws its weights before anything else is seeded


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Net, Path]:
    module = Net(SGD, momentum=0.9)
    _train(tmp_path / "recording", module)
    return module, tmp_path / "recording"


@pytest.mark.parametrize(
    ("make", "options", "clipping"),
    [
        (SGD, {}, {}),
        (SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, {}),
        (SGD, {"momentum": 0.9, "nesterov": True}, {"gradient_clip_val": 0.3}),
        (Adam, {"lr": 0.02, "weight_decay": 0.1}, {}),
        (AdamW, {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-4}, {"gradient_clip_val": 0.3}),
        (AdamW, {"lr": 0.02, "eps": 1e-4}, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
    ],
    ids=["sgd", "momentum", "nesterov-clipped", "adam", "adamw-clipped", "adamw-clipped-by-value"],
)
def test_scores_are_the_derivatives_of_outputs_by_weights_of_samples(
    tmp_path: Path, make: type[Optimizer], options: dict[str, Any], clipping: dict[str, Any]
) -> None:
    module = Net(make, **options)
    _train(tmp_path / "recording", module, precision="64-true", **clipping)
    replay = Replay(module, _loader(), tmp_path / "recording")
    replay.verify()
    targets, groups = _samples(TARGETS, 1), [0, 0, 1, 1, 2, 2]
    scores = replay.score(targets, "image_classification", tmp_path, groups=groups, check=0)
    for sample in range(0, N, 3):
        ends = []
        for step in (1e-5, -1e-5):
            weights = np.ones(N)
            weights[sample] += step
            ends.append(replay.outputs(targets, "image_classification", weights, groups))
        np.testing.assert_allclose(scores.values[:, sample], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [[[0, 1], [2]], [0.0] * TARGETS, [0, 1]])
def test_groups_are_one_integer_label_a_target(recorded: tuple[Net, Path], groups: Any) -> None:
    replay = Replay(recorded[0], _loader(), recorded[1])
    assert repr(replay).endswith(f"over {N} training samples")
    with pytest.raises(DataError, match=r"groups must be \(6,\) integers, one label a target"):
        replay.outputs(_samples(TARGETS, 1), "image_classification", groups=groups)


def test_the_module_is_left_as_it_was(recorded: tuple[Net, Path]) -> None:
    module, folder = recorded
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    Replay(module, _loader(), folder).verify()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_call_is_resumed(
    recorded: tuple[Net, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, folder = recorded
    replay = Replay(module, _loader(), folder)
    whole = replay.score(_samples(TARGETS, 1), "image_classification", tmp_path, "whole", check=0)
    step_back, done = Replay._step_back, []

    def interrupted(self: Replay, trajectory: Any, step: int, *rest: Any) -> Any:
        done.append(step)
        if len(done) == 6:
            raise KeyboardInterrupt
        return step_back(self, trajectory, step, *rest)

    monkeypatch.setattr(Replay, "_step_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay.score(_samples(TARGETS, 1), "image_classification", tmp_path, "again", check=0)
    again = replay.score(_samples(TARGETS, 1), "image_classification", tmp_path, "again", check=0)
    np.testing.assert_array_equal(again.values, whole.values)
    assert done == [11, 10, 9, 8, 7, 6, 7, 6, 5, 4, 3, 2, 1, 0]


def test_after_labels_of_targets_were_corrected_nothing_of_the_earlier_ones_is_used(
    recorded: tuple[Net, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, folder = recorded
    replay, targets = Replay(module, _loader(), folder), _samples(TARGETS, 1)
    scores = replay.score(targets, "image_classification", tmp_path, "before", check=0)
    corrected = TensorDataset(targets.tensors[0], targets.tensors[1].clone())
    corrected.tensors[1][1] = (corrected.tensors[1][1] + 1) % 3  # not the first, the middle or the last one
    with pytest.raises(DataError, match="has another targets than this call"):
        replay.repeat(scores, corrected, "image_classification", models=2)
    fresh = replay.score(corrected, "image_classification", tmp_path, "fresh", check=0)
    assert abs(fresh.values[1] - scores.values[1]).max() > 1e-4
    step_back, done = Replay._step_back, []

    def interrupted(self: Replay, trajectory: Any, step: int, *rest: Any) -> Any:
        done.append(step)
        if len(done) == 6:
            raise KeyboardInterrupt
        return step_back(self, trajectory, step, *rest)

    monkeypatch.setattr(Replay, "_step_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay.score(targets, "image_classification", tmp_path, "again", check=0)
    again = replay.score(corrected, "image_classification", tmp_path, "again", check=0)
    np.testing.assert_array_equal(again.values, fresh.values)


def test_scores_predict_trainings_without_samples(recorded: tuple[Net, Path], tmp_path: Path) -> None:
    module, folder = recorded
    scores = Replay(module, _loader(), folder).score(_samples(TARGETS, 1), "image_classification", tmp_path)
    assert scores.settings["smoothness"]["explained"] > 0.9
    assert scores.top(3).indices.shape == (TARGETS, 3)


def test_scores_are_evaluated_by_repetitions_of_the_recorded_training(
    recorded: tuple[Net, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, folder = recorded
    given = (_samples(TARGETS, 1), "image_classification")
    replay = Replay(module, _loader(), folder)
    scores = replay.score(*given, tmp_path / "run", check=0)
    command = ["evaluate", str(tmp_path / "run"), "--name", "replayed", "--evaluation.protocol", "fixed_seed"]
    command += ["--evaluation.models", "6", "--evaluation.removed", "0.1"]
    assert main(command) != 0
    assert "6 of 6 repetitions of the recorded training are missing" in capsys.readouterr().err
    with pytest.raises(DataError, match="has another groups than this call"):
        replay.repeat(scores, *given, groups=[0] * TARGETS, models=6, removed=0.1)
    replay.repeat(scores, *given, models=6, removed=0.1)
    assert main([*command, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    masks = np.array([np.load(each)["subset"] for each in sorted(tmp_path.rglob("0*.npz"))])
    weights = np.zeros((6, N))
    np.put_along_axis(weights, masks, 1, axis=1)
    outputs = [replay.outputs(*given, each) for each in weights]
    expected = mean_spearman(weights @ scores.values.T, np.array(outputs))
    assert found["values"]["scores"]["replayed"]["lds"] == pytest.approx(expected)
    assert expected > 0.8
    assert set(found["values"]["scores"]) == {"replayed", "random"}
    replay.recording.losses[0] += 1
    with pytest.raises(DataError, match="has another recording than this call"):
        replay.repeat(scores, *given, models=6, removed=0.1)


def test_only_public_modules_are_imported() -> None:
    public = {"trak_lightning", "trak_lightning.authoring", "trak_lightning.errors"}
    for path in Path(trak_lightning_replay.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name for name in names if name.split(".")[0] == "trak_lightning"} <= public, path


def test_the_lds_counts_the_order_of_trainings_only() -> None:
    predicted = np.random.default_rng(0).normal(size=(8, 2))
    found = Smoothness(predicted, predicted**3 * [1, -1], 0.05)
    assert found.lds == pytest.approx(0)
    assert Smoothness(predicted[:, :1], predicted[:, :1] ** 3, 0.05).lds == pytest.approx(1)


def test_states_of_a_recording_are_checkpoints(recorded: tuple[Net, Path]) -> None:
    module, folder = recorded
    first, last = (Checkpoint.of(folder / f"state-{step:08d}.pt", module) for step in (0, 12))
    assert last.id == Checkpoint.of(module, module).id != first.id


def test_a_run_that_is_not_smooth_is_refused(recorded: tuple[Net, Path], tmp_path: Path) -> None:
    module, folder = recorded
    replay = Replay(module, _loader(), folder)
    found = replay.smoothness(np.full((TARGETS, N), 100.0), _samples(TARGETS, 1), "image_classification")
    assert repr(found).startswith("Smoothness(explained=-")
    with pytest.raises(DataError, match="A larger eps of Adam"):
        found.require()


def test_a_change_that_all_removals_have_in_common_is_no_lack_of_smoothness() -> None:
    predicted = np.random.default_rng(0).normal(size=(4, 2))
    found = Smoothness(predicted, predicted + 3, 0.05)
    found.require()
    assert found.explained < 0.25
    assert found.explained_differences == pytest.approx(1)
    np.testing.assert_allclose(found.shift, 3)
    with pytest.raises(DataError, match="explains -.* of the differences"):
        Smoothness(-predicted, predicted + 3, 0.05).require()


def test_one_training_is_no_check(recorded: tuple[Net, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check must be 0, or at least 2 trainings .* got 1"):
        Replay(recorded[0], _loader(), recorded[1]).score(_samples(3, 1), "image_classification", tmp_path, check=1)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: Net(RMSprop), {}, "steps of RMSprop cannot be differentiated; those of SGD, Adam, AdamW can"),
        (lambda: Net(Adam, amsgrad=True), {}, "Adam has amsgrad=True"),
        (lambda: Net(), {"accumulate_grad_batches": 2}, "accumulate_grad_batches is 2"),
        (lambda: Net(), {"precision": "bf16-mixed"}, "precision is bf16-mixed"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_the_first_step(
    tmp_path: Path, make: Callable[[], Net], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        _train(tmp_path / "recording", make(), **options)


def test_running_statistics_are_refused(tmp_path: Path) -> None:
    module = Net()
    module.net.insert(1, nn.BatchNorm1d(7).double())
    with pytest.raises(SampleDependenceError, match=r"net\.1 \(BatchNorm1d\)"):
        _train(tmp_path / "recording", module)


def test_random_augmentation_is_refused(tmp_path: Path) -> None:
    class Noisy(Dataset):
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            x, y = _samples(N, 0)[index]
            return x + torch.randn(5), y

    with pytest.raises(DataError, match="differs each time it is read"):
        _train(tmp_path / "recording", Net(), _loader(Noisy()))


def test_weights_changed_by_anything_but_the_optimizer_are_found_when_the_training_ends(tmp_path: Path) -> None:
    class Average(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
            with torch.no_grad():
                pl_module.net[0].weight.mul_(0.99)

    with pytest.raises(IncompatibleRunError, match="the loss of step 1 is"):
        _train(tmp_path / "recording", Net(), callbacks=[Average()])


def test_losses_that_are_not_those_of_the_training_are_refused(recorded: tuple[Net, Path], tmp_path: Path) -> None:
    module, folder = recorded

    def summed(module: Net, batch: Any) -> Tensor:
        return module.losses(batch).sum()

    def doubled(module: Net, batch: Any) -> Tensor:
        return 2 * module.losses(batch)

    with pytest.raises(DataError, match=r"one loss per sample, \(\d,\), got \(\)"):
        Replay(module, _loader(), folder, summed).score(_samples(3, 1), "image_classification", tmp_path)
    with pytest.raises(DataError, match="the mean of losses in step"):
        Replay(module, _loader(), folder, doubled).score(_samples(3, 1), "image_classification", tmp_path)


def test_a_folder_that_holds_a_recording_says_so_before_anything_is_trained(recorded: tuple[Net, Path]) -> None:
    steps = 3 * -(-N // 6)
    with pytest.raises(
        IncompatibleRunError,
        match=rf"complete recording: {steps} steps over {N} training samples.*Replay\(module.*delete",
    ):
        Record(recorded[1])


def test_other_data_are_refused(recorded: tuple[Net, Path]) -> None:
    module, folder = recorded
    with pytest.raises(IncompatibleRunError, match="21 samples"):
        Replay(module, _loader(_samples(21, 0)), folder)
    with pytest.raises(IncompatibleRunError, match="the loss of step 0"):
        Replay(module, _loader(_samples(N, 5)), folder).verify()
    with pytest.raises(IncompleteRunError, match="no such folder"):
        Replay(module, _loader(), folder / "elsewhere")
