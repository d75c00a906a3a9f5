"""A search finds what the full search finds; its index is whole, of these rows and these settings, or it is built again or refused."""

import json
import logging
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

pytest.importorskip("faiss", reason="the index is one of FAISS: pip install faiss-cpu")

from trak_lightning_faiss import Search
from trak_lightning_faiss.directions import directions, joint_directions

from trak_lightning import TRAK
from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError, SettingsError

N, M = 600, 3


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (N + 10,), generator=generator)
    centers = torch.randn(4, 12, generator=generator)
    inputs = centers[labels] + torch.randn(N + 10, 12, generator=generator)
    whole = TensorDataset(inputs, labels)
    return Subset(whole, range(N)), Subset(whole, range(N, N + 10))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def featurized(folder, data, checkpoints=M, seed=0, dim=64, train=None):
    trak = TRAK(network(), "image_classification", folder, projector={"name": "sparse_jl", "dim": dim}, seed=seed)
    models = [network(number).state_dict() for number in range(checkpoints)]
    trak.featurize(train or data[0], models, batch_size=32, block_size=64, grow=train is not None)
    trak.featurize_targets(data[1], "test")
    return trak


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return featurized(tmp_path_factory.mktemp("run"), data)


@pytest.fixture
def copied(run, data, tmp_path):
    """A run that a test may change."""
    shutil.copytree(run.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("search"))
    return featurized(tmp_path / "run", data)


def index_file(trak):
    (found,) = (trak.run.path / "factors/train/search").glob("*.h5")
    return found


PLAIN = ["trak", "influence", "leave_one_out", "gradient_dot", "tracin", "gradient_cosine"]
NORMALIZED = [
    pytest.param({"name": name, "normalize": normalize}, marks=[pytest.mark.slow] if name != "trak" else [])
    for name in PLAIN[:3]
    for normalize in ("unit", "self_influence")
]


SLOW = ("influence", "gradient_dot")  # the first averages as tracin does, the second as trak


@pytest.mark.parametrize(
    "scorer",
    [
        *(pytest.param({"name": name}, marks=[pytest.mark.slow] if name in SLOW else []) for name in PLAIN),
        *NORMALIZED,
    ],
    ids=lambda s: "-".join(s.values()),
)
def test_the_result_is_that_of_the_full_search(run, data, scorer):
    full = run.score(data[1], "test", scorer=scorer)
    found = Search(run.run.path, scorer=scorer)
    for target in range(len(data[1])):
        for ours, theirs in ((found.top, full.top), (found.bottom, full.bottom)):
            mine, expected = ours(7, target=target), theirs(7, target=target)
            np.testing.assert_array_equal(mine.indices, expected.indices)
            np.testing.assert_allclose(mine.values, expected.values, rtol=1e-4)
            np.testing.assert_allclose(mine.spread, expected.spread, rtol=1e-3, atol=1e-6 * abs(expected.values).max())
    np.testing.assert_allclose(found.scores([5, 3], target=2), full.values[2, [5, 3]], rtol=1e-3)


def test_few_training_samples_are_scored_if_the_index_is_good_and_all_if_it_is_useless(run, data, monkeypatch, caplog):
    full = run.score(data[1], "test").top(3)
    found, asked = Search(run.run.path), []
    exact = found._exact
    monkeypatch.setattr(found, "_exact", lambda *call: asked.append(len(call[2])) or exact(*call))
    assert [found.top(3, target=target).indices.tolist() for target in range(10)] == full.indices.tolist()
    assert max(asked) <= 48 < N / 10
    found.index.targets[:] = np.random.default_rng(0).permuted(found.index.targets, axis=1)  # proposes anything
    with caplog.at_level(logging.INFO, "trak_lightning_faiss"):
        assert [found.top(3, target=target).indices.tolist() for target in range(10)] == full.indices.tolist()
    assert "all training samples are scored" in caplog.text


def test_an_index_is_built_once_and_again_for_other_features_checkpoints_and_lambdas(copied, data, caplog):
    trak = copied

    def built(**options):
        caplog.clear()
        with caplog.at_level(logging.INFO, "trak_lightning_faiss"):
            found = Search(copied.run.path, **options)
            result = found.top(5, target=1).indices.tolist()
        assert result == trak.score(data[1], "test", **options).top(5, target=1).indices.tolist()
        return sum("is built in" in record.message for record in caplog.records)

    assert (built(), built()) == (1, 0)
    assert built(scorer={"name": "trak", "regularization": 10.0}) == 1  # another file
    assert built() == 0
    grown = Subset(data[0].dataset, [*range(N), *range(N, N + 9)])
    trak = featurized(copied.run.path, data, train=grown)
    assert (built(), built()) == (1, 0)
    trak.featurize(grown, [network(number).state_dict() for number in range(M + 1)], batch_size=32)
    trak.featurize_targets(data[1], "test")
    assert (built(), built()) == (1, 0)
    trak.run.discard_results()  # as when rows are repaired
    assert built() == 1


def test_a_changed_lambda_of_the_automatic_rule_builds_the_index_again(copied, data, monkeypatch, caplog):
    Search(copied.run.path).top(1, target=0)
    monkeypatch.setattr("trak_lightning.scoring.regularization.PROJECTION", 3.0)
    with caplog.at_level(logging.INFO, "trak_lightning_faiss"):
        found = Search(copied.run.path).top(5, target=0)
    assert "since rules.regularization has changed" in caplog.text
    np.testing.assert_array_equal(found.indices, copied.score(data[1], "test").top(5, target=0).indices)


def test_the_index_of_another_run_is_refused_and_a_damaged_one_built_again(copied, data, tmp_path, caplog):
    Search(copied.run.path).top(1, target=0)
    path = index_file(copied)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for damage in [whole[:100], whole[: len(whole) // 2], b"", *(rng.integers(0, len(whole), 8))]:
        if not isinstance(damage, bytes):
            damage = whole[:damage] + bytes([whole[damage] ^ 16]) + whole[damage + 1 :]
        path.write_bytes(damage)
        assert Search(copied.run.path).top(1, target=0).indices.shape == (1,)
        assert Search(copied.run.path).index.rows.ntotal == N
    other = featurized(tmp_path / "other", data, checkpoints=1)
    Search(other.run.path).top(1, target=0)
    with h5py.File(index_file(other), "r+") as file:
        written = json.loads(file.attrs["made_from"])
        file.attrs["made_from"] = json.dumps({**written, "checkpoints": ["a1b2"]})
    with pytest.raises(
        IncompatibleRunError, match=r"index of another run: it was made from checkpoint a1b2.*Delete it"
    ):
        Search(other.run.path).top(1, target=0)


def test_a_killed_build_leaves_no_index_and_the_next_one_is_whole(copied, data):
    program = (
        "import sys, time\nfrom trak_lightning_faiss import Search, search\n"
        "right = search.Search._reduced\n"
        "def slow(self, samples, maps):\n"
        "    if samples.start: print('begun', flush=True); time.sleep(60)\n"
        "    return right(self, samples, maps)\n"
        "search.Search._reduced = slow\nSearch(sys.argv[1]).top(1, target=0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, copied.run.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    folder = copied.run.path / "factors/train/search"
    assert [path.suffix for path in folder.iterdir()] == [".part"]
    expected = copied.score(data[1], "test").top(5, target=0).indices
    np.testing.assert_array_equal(Search(copied.run.path).top(5, target=0).indices, expected)
    assert [path.suffix for path in folder.iterdir()] == [".h5"]


def test_what_cannot_be_searched_is_named(run, data, tmp_path):
    found = Search(run.run.path)
    for wrong in ({"target": 10}, {"target": -1}, {"target": 0, "k": 0}, {"target": 0, "k": N + 1}):
        with pytest.raises(DataError, match=r"must lie in 1 … 600|targets 0 … 9"):
            found.top(**wrong)
    with pytest.raises(IncompleteRunError, match="no features of 'new'"):
        found.top(1, target=0, targets="new")
    with pytest.raises(SettingsError, match=r"SoftThreshold.*without a threshold"):
        Search(run.run.path, scorer={"name": "trak", "threshold": 0.1})
    store = run.store
    spec = store.open("test", run.run.require_checkpoints()[0].id).spec
    for checkpoint in run.run.require_checkpoints():
        narrow = replace(
            spec, split="narrow", checkpoint=checkpoint.id, dim=32, num_samples=1, block_size=1, batch_size=1
        )
        rows = store.open("test", checkpoint.id).rows(0, 1)
        store.create(narrow).write_block(0, replace(rows, features=rows.features[:, :32]))
    with pytest.raises(IncompatibleRunError, match=r"k = 64\) and .*k = 32"):
        found.top(1, target=0, targets="narrow")


def test_the_command_prints_what_top_finds(run, data):
    command = [sys.executable, "-m", "trak_lightning_faiss", run.run.path, "--target", "2", "-k", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, full = json.loads(done.stdout), run.score(data[1], "test")
    assert [entry["index"] for entry in found["helpful"]] == full.top(3, target=2).indices.tolist()
    assert [entry["index"] for entry in found["harmful"]] == full.bottom(3, target=2).indices.tolist()
    done = subprocess.run([*command[:-4], "--target", "99"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("DataError: target 99 is out of range")


def test_all_directions_give_the_products_and_some_the_best_of_their_number():
    rng = np.random.default_rng(0)
    spectrum = np.diag(0.7 ** np.arange(20))
    x, u = (rng.standard_normal((400, 20)) @ spectrum @ rng.standard_normal((20, 20)) for _ in range(2))
    whole = directions(x, u, 1 - 1e-12)
    np.testing.assert_allclose((x @ whole.rows) @ (u @ whole.targets).T, x @ u.T, atol=1e-5 * abs(x @ u.T).max())
    some = directions(x, u, 0.99)
    missed = x @ u.T - (x @ some.rows) @ (u @ some.targets).T
    assert (missed**2).sum() < 0.0101 * ((x @ u.T) ** 2).sum()
    values = np.linalg.svd(x @ u.T, compute_uv=False)  # no products of so many dimensions miss less
    assert some.rows.shape[1] == int(np.searchsorted(np.cumsum(values**2), 0.99 * (values**2).sum())) + 1
    np.testing.assert_allclose((missed**2).sum(), (values[some.rows.shape[1] :] ** 2).sum(), rtol=1e-3)
    halves = joint_directions([(x[:, :9], u[:, :9]), (x[:, 9:], u[:, 9:])], 0.9999)
    rows = x[:, :9] @ halves[0].rows + x[:, 9:] @ halves[1].rows
    targets = u[:, :9] @ halves[0].targets + u[:, 9:] @ halves[1].targets
    assert rows.shape[1] < 12
    assert ((rows @ targets.T - x @ u.T) ** 2).sum() < 2e-4 * ((x @ u.T) ** 2).sum()
    wide = directions(x[:12], u[:12], 1 - 1e-12)  # fewer samples than dimensions
    np.testing.assert_allclose(
        (x[:12] @ wide.rows) @ (u @ wide.targets).T, x[:12] @ u.T, atol=1e-4 * abs(x @ u.T).max()
    )
    none = directions(np.zeros((5, 3)), u[:5, :3], 0.99)
    np.testing.assert_array_equal(np.zeros((5, 3)) @ none.rows, np.zeros((5, 1)))
