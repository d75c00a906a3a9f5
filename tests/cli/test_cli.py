"""The command line, as a user runs it: real processes."""

import csv
import json
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import yaml
from faults import trak, without_haste

from trak_lightning.cli import NEED_A_MODEL, main
from trak_lightning.cli.lightning_cli import TrakCLI
from trak_lightning.cli.usage import COMMANDS
from trak_lightning.scoring.display import PICTURES
from trak_lightning.scoring.scores import Scores

CONFIG = {
    "model": {"class_path": "trak_lightning.demos.DigitsCNN", "init_args": {"width": 4}},
    "data": {"class_path": "trak_lightning.demos.DigitsDataModule", "init_args": {"num_targets": 60}},
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
    "ensemble": {"size": 2},
    "task": "image_classification",
    "projector": {"name": "sparse_jl", "dim": 64},
    "evaluation": {"models": 3},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished")
    done = trak("run", "--config", config, "--run_dir", run_dir, before=without_haste)
    assert done.returncode == 0, done.stderr
    return run_dir, done


def features(run_dir):
    return {path.relative_to(run_dir): path.read_bytes() for path in sorted((run_dir / "features").rglob("*.h5"))}


def contents(run_dir):
    found = {}
    for path in sorted((run_dir / "features").rglob("*.h5")):
        with h5py.File(path) as file:
            found[path.relative_to(run_dir)] = {name: file[name][()] for name in file}
    return found


def test_run_prints_one_line_a_stage_and_the_table(finished):
    _, done = finished
    stages = [line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()]
    assert [stage for stage in stages if stage in ("train", "featurize", "score", "evaluate")] == [
        "train",
        "featurize",
        "score",
        "evaluate",
    ]
    for row in ("Trak()", "λ = 0, unweighted (paper)", "gradient dot product", "random"):
        assert row in done.stdout
    assert done.stderr == ""


def test_a_finished_command_does_nothing_and_says_so(finished, config):
    run_dir, _ = finished
    before = features(run_dir)
    again = trak("run", run_dir)
    assert (again.returncode, again.stderr) == (0, "")
    stages = [line for line in again.stdout.splitlines() if line[:1].isalpha() and "nothing to do" in line]
    assert [line.split()[0] for line in stages] == ["train", "featurize", "score", "evaluate"]
    assert features(run_dir) == before


def test_a_finished_command_with_a_deleted_block_makes_that_block_again(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "copy")
    before = contents(run_dir)
    next((run_dir / "features" / "train").rglob("block-00001.h5")).unlink()
    again = trak("featurize", run_dir)
    assert again.returncode == 0, again.stderr
    assert "713 computed" in again.stdout
    assert_same(contents(run_dir), before)


def heavy_imports(*calls, status=(0,)):
    """What these calls of ``trak``, in one process, print, and which modules that take seconds to import they import."""
    code = (
        "import json, sys\nimport trak_lightning\nassert 'numpy' not in sys.modules\n"
        "from trak_lightning.cli import main\n"
        f"for call in {[[*map(str, call)] for call in calls]!r}:\n"
        f"    try: assert main(call) in {status}\n"
        "    except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "print(json.dumps(sorted(heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, heavy = (done.stderr * (0 not in status) + done.stdout).splitlines()
    return "\n".join(lines), json.loads(heavy)


def test_commands_that_find_everything_done_or_only_read_import_no_torch(finished, config):
    run_dir, _ = finished
    named = (run_dir, "--config", config)
    shown, heavy = heavy_imports(
        ("top", run_dir, "--target", 0), ("info", run_dir), ("verify", run_dir), ("plugins",)
    )  # fmt: skip
    assert heavy == []
    assert "image 8×8" in shown  # of lines that trak run has kept
    shown, heavy = heavy_imports(
        ("score", *named), ("evaluate", *named), ("self-influence", run_dir, "--numbers"), ("completion", "bash")
    )
    assert heavy == ["scipy"]
    assert shown.count("already finished, nothing to do") == 2


def test_plugins_of_torch_are_described_without_lightning():
    assert heavy_imports(("plugins", "sparse_jl"), ("plugins", "regression"))[1] == ["torch"]


def test_mistakes_are_named_before_torch_is_imported(config, tmp_path):
    nowhere, wrong = tmp_path / "nowhere", tmp_path / "wrong.yaml"
    wrong.write_text("{run_dir: x, model: mine.Net, data: mine.Data, ensemble: {sise: 3}}")
    calls = {
        ("check", nowhere): "model is missing: name your LightningModule",
        ("run", "x", "--model", "mine.Net"): "data is missing: name your LightningDataModule",
        ("featurize", "--config", wrong): "wrong.yaml:1: unknown setting ensemble.sise; did you mean",
        ("train", "--config", config, "--seed", "many"): "seed is many; expected an integer",
        ("run", "--config", config, "--block-sise", 3): "unknown option --block_sise; did you mean --block_size?",
        ("report", nowhere): "there is no run directory",
        ("score", nowhere): "there is no run directory",
    }
    shown, heavy = heavy_imports(*calls, status=(1, 2))
    assert set(heavy) <= {"scipy"}
    for line, message in zip(shown.splitlines(), calls.values(), strict=True):
        assert message in line


def test_help_imports_no_torch():
    shown, heavy = heavy_imports(("--help",), *((command, "--help") for command in COMMANDS))
    assert set(heavy) <= {"scipy"}
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("usage:")] == ["COMMAND", *COMMANDS]


@pytest.mark.parametrize("command", NEED_A_MODEL)
def test_help_of_commands_that_need_a_model_is_that_of_the_parser_that_reads_their_options(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        TrakCLI(command, ["--help"])
    assert capsys.readouterr().out == shown


def test_top_prints_the_training_samples_with_the_largest_and_smallest_scores(finished):
    run_dir, _ = finished
    done = trak("top", run_dir, "--target", 17, "-k", 3)
    with h5py.File(run_dir / "scores" / "test.h5") as file:
        order = np.argsort(file["scores"][17])
    for sample in (*order[:3], *order[-3:]):
        assert f" {sample} " in done.stdout
    assert all(word in done.stdout for word in ("Most helpful", "label"))
    assert re.search(
        r"Target 17 of \S*test.h5: \d, (models say \d \(\d+ %\), )?p\(label\) 0\.\d{3} \(mean over \d+ checkpoints\), image 8×8",
        " ".join(done.stdout.split()),
    )
    assert done.stdout.count(PICTURES) == 1
    found = json.loads(trak("top", run_dir, "--target", 17, "-k", 3, "--json").stdout)
    assert found["target"].keys() == {"index", "label", "text", "output", "probability"} | (
        {"says"} & found["target"].keys()
    )
    assert [each["index"] for each in found["harmful"]] == order[:3].tolist()
    assert found["helpful"][0].keys() == {"index", "score", "spread", "label", "text"}
    numbers = json.loads(trak("top", run_dir, "--by_train", 17, "-k", 3, "--json", "--numbers").stdout)
    assert (numbers["train"], numbers["helpful"][0].keys()) == ({"index": 17}, {"index", "score", "spread"})


def test_top_without_a_target_lists_the_mistakes_which_top_of_one_names(finished):
    run_dir, _ = finished
    found = json.loads(trak("top", run_dir, "-k", 2, "--json").stdout)
    with h5py.File(run_dir / "scores" / "test.h5") as file:
        probability = file["target_probability"][:]
    assert len(found["mistakes"]) == 2
    assert found["indices"] == sorted(found["indices"], key=lambda i: probability[i])
    assert set(np.flatnonzero(probability < 0.1)) <= set(found["indices"]) <= set(np.flatnonzero(probability < 0.51))
    worst = found["mistakes"][0]
    assert worst["says"] != worst["label"]
    listed = trak("top", run_dir).stdout
    assert f"trak top {run_dir} --target {worst['target']}" in listed
    said = f"models say {worst['says']} ({100 * worst['says_probability']:.0f} %)"
    one = " ".join(trak("top", run_dir, "--target", worst["target"]).stdout.split())
    assert f": {worst['label']}, {said}, p(label) " in one
    assert heavy_imports(("top", run_dir, "-k", 2)) == (
        "\n".join(trak("top", run_dir, "-k", 2).stdout.splitlines()),
        [],
    )


def test_other_scorer_settings_give_other_scores(finished, config, tmp_path):
    run_dir, _ = finished
    done = trak("score", "--config", config, "--run_dir", run_dir, "--scorer", "gradient_dot")
    assert "computed" in done.stdout, done.stderr
    back = trak("score", "--config", config, "--run_dir", run_dir, "--scorer.regularization", "auto")
    assert re.search(r"λ: auto: trace/\d+ in ", back.stdout)


def test_options_of_one_evaluation_do_not_become_those_of_the_run(finished):
    run_dir, _ = finished
    before = (run_dir / "config.yaml").read_bytes()
    done = trak("evaluate", run_dir, "--evaluation.models", 5)
    assert "over 5 retrained models" in done.stdout, done.stderr
    assert (run_dir / "config.yaml").read_bytes() == before
    assert "as measured: LDS" in trak("top", run_dir, "--target", 3, "--numbers").stdout
    assert "over 3 retrained models" in trak("evaluate", run_dir).stdout


def test_checkpoints_that_are_named_are_used_and_nothing_is_trained(finished, config, tmp_path):
    run_dir, _ = finished
    checkpoint, twin = run_dir / "checkpoints" / "00.ckpt", tmp_path / "last.ckpt"
    shutil.copy(checkpoint, twin)
    named = ("--config", config, "--run_dir", tmp_path, "--checkpoints", f"[{checkpoint}, {twin}]")
    done = trak("featurize", *named)
    assert done.returncode == 0, done.stderr
    assert "featurize  1797 rows" in done.stdout
    shown = trak("check", *named).stdout
    assert f"weights    {checkpoint}, the first of 2 named files" in shown
    assert "× 1 checkpoint " in shown
    assert "for 1,737 rows" in shown
    assert not (tmp_path / "checkpoints").exists()
    assert len(list((tmp_path / "subsets").iterdir())) == 1  # recorded next to the checkpoint


def test_a_chain_and_a_plugin_that_is_installed_are_configured_by_names_and_the_saved_configuration_has_them(
    finished, tmp_path
):
    run_dir, _ = finished
    chain = {"name": "chain", "projectors": [{"name": "random_mask", "dim": 300}, {"name": "count_sketch", "dim": 32}]}
    path, checkpoint = tmp_path / "chain.yaml", run_dir / "checkpoints" / "00.ckpt"
    path.write_text(yaml.safe_dump({**CONFIG, "projector": chain, "checkpoints": [str(checkpoint)]}))
    done = trak("featurize", "--config", path, "--run_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert all(block["features"].shape[1] == 32 for block in contents(tmp_path / "run").values())
    again = trak("featurize", "--config", tmp_path / "run" / "config.yaml")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), again.stderr


@pytest.mark.parametrize(
    "arguments", [("plugins", "sparse_jl"), ("featurize", "--projector.help", "sparse_jl")], ids=lambda each: each[0]
)
def test_help_shows_the_options_of_a_plugin_with_their_docstrings(arguments):
    shown = trak(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "--projector.nnz" in shown.stdout
    assert "the number of non-zeros per column" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("name", ["functional", "hdf5", "image_classification", "trak"])
def test_plugins_of_every_kind_are_shown(name):
    shown = trak("plugins", name)
    assert shown.returncode == 0, shown.stderr
    assert "options:" in shown.stdout
    assert "\\" not in shown.stdout, "an escape of Markdown"


def test_configurations_are_merged_and_printed(config):
    done = trak("featurize", "--config", config, "--config", "{projector: {name: gaussian, dim: 7}}", "--print_config")
    printed = yaml.safe_load(done.stdout)
    assert printed["projector"]["class_path"].endswith("Gaussian")
    assert printed["projector"]["init_args"]["dim"] == 7
    assert printed["model"]["init_args"]["width"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--projector", "sparse_jll"), "did you mean 'sparse_jl'"),
        (("run", "--projektor", "x"), "unknown option --projektor; did you mean --projector?"),
        (
            ("score", "--scorer.weights", "q"),
            "scorer.weights is q; expected one of 'none', 'residual', 'gauss_newton', 'fisher', 'auto'",
        ),
        (("score", "--scorer.regularization=-1"), "must be a number λ ≥ 0, 'trace/N', 'auto' or 'calibrate', got -1.0"),
        (
            ("score", "--scorer.regularization", "{relative: 0.01}"),
            "expected a number or a string: λ as a number, the same for every checkpoint; trace/N for trace(ΦᵀWΦ)/N; auto for the rule",
        ),
        (("run", "--scorer.regularization=-1"), "must be a number λ ≥ 0, 'trace/N', 'auto' or 'calibrate', got -1.0"),
        (("run", "--projector.dim=0"), "dim must be a number of dimensions, 1 or more, got 0"),
        (("run", "--projector.dim", "-3"), "dim must be a number of dimensions, 1 or more, got -3"),
        (("run", "--projector.dim", "many"), "projector.dim is many; expected an integer"),
        (
            ("run", "--projector.dimm", "3"),
            "unknown setting projector.dimm; did you mean projector.dim? SparseJL takes dim, per, nnz.",
        ),
        (("run", "--projector.per", "row"), "projector.per is row; expected one of 'model', 'layer'"),
        (("run", "--projector", "chain", "--projector.projectors", "[sparse_jll]"), "did you mean 'sparse_jl'"),
        (("run", "--projector", "chain", "--projector.projectors", "[]"), "a list of at least one projector, got []"),
        (("plugins", "sparse_jll"), "did you mean 'sparse_jl'"),
        (("featurize",), "Run trak train first, or name your own files"),
        (("score",), "Run trak featurize first"),
        (("fly",), "unknown command 'fly'"),
        (("run", "--config", "nowhere.yaml"), "there is no configuration file nowhere.yaml"),
        (("run", "--evaluation.mislabeled", "nowhere.npy"), "must be a .npy file of positions or 'data'; nowhere.npy"),
        (("run", "--evaluation.agreement=true", "--ensemble.size=1"), "needs at least two; this run has one"),
        (("run", "--evaluation.fraction", "2"), "fraction must lie in (0, 1]"),
        (
            ("run", "--target_split", "holdout"),
            "DigitsDataModule has no method holdout_dataloader, which split 'holdout' needs; the splits that it has are test, train",
        ),
        # Lightning's base class has the method, which raises an error.
        (("run", "--target_split", "predict"), "DigitsDataModule has no method predict_dataloader"),
    ],
)
def test_mistakes_are_named_without_a_traceback_and_with_a_failing_exit_status(arguments, message, config, tmp_path):
    command, *rest = arguments
    common = () if command == "plugins" else ("--config", config, "--run_dir", tmp_path)
    done = trak(command, *common, *rest)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("checkpoints/*.ckpt")), "nothing is trained before it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--model.init_args.width", 5), "recipe.model.init_args.width = 4, and 5 is asked for"),
        (("run", "--projector.dim", 65, "--ensemble.size", 3), "dim = 64, and 65 is asked for"),
        # The features of the training set would be fine.
        (
            (
                "featurize",
                "--data",
                '{"class_path": "growing.SomeDigits", "init_args": {"num_train": 1737, "first_targets": 50}}',
            ),
            "'test' holds 60 targets, and 50 are given: these are others.",
        ),
        (("evaluate", "--evaluation.models", 4, "--data.num_targets", 50), "num_samples = 1737, and 1747 is asked"),
    ],
    ids=lambda each: each[0],
)
def test_a_command_that_is_refused_for_other_settings_changes_nothing(arguments, message, finished, config):
    run_dir, _ = finished
    command, *rest = arguments
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    done = trak(command, "--config", config, "--run_dir", run_dir, *rest)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, columns in expected.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(found[path][name], values)


def test_self_influence_is_its_formula_and_names_the_largest(finished, config):
    run_dir, _ = finished
    options = ["--scorer.regularization", "0.5", "--scorer.weights", "none"]
    done = trak("self-influence", "--config", config, "--run_dir", run_dir, *options)
    assert done.returncode == 0, done.stderr
    with np.load(run_dir / "scores" / "self_influence.npz") as file:
        found = dict(file)
    expected, blocks = [], contents(run_dir)
    for folder in sorted({path.parent for path in blocks if "train" in path.parts}):
        rows = [blocks[path] for path in sorted(blocks) if path.parent == folder]
        X, q = (np.concatenate([row[name] for row in rows]).astype(float) for name in ("features", "loss_weight"))
        h = np.einsum("ij,ij->i", X, np.linalg.solve(X.T @ X + 0.5 * np.eye(X.shape[1]), X.T).T)
        expected.append((q * h, h))
    assert len(expected) == 2
    np.testing.assert_allclose(found["self_influence"], np.mean([e for e, _ in expected], axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found["leverage"], np.mean([h for _, h in expected], axis=0), rtol=1e-3, atol=1e-6)
    largest = np.argsort(-found["self_influence"], kind="stable")[:10]
    rows = [line.split() for line in done.stdout.splitlines()]
    numbers = [[f"{found[name][i]:.4g}" for name in ("self_influence", "leverage")] for i in largest]
    assert [row[:3] for row in rows[3:13]] == [[str(i), *each] for i, each in zip(largest, numbers, strict=True)]
    assert rows[2] == ["index", "self-influence", "leverage", "label"]
    told = json.loads(trak("self-influence", run_dir, *options, "--json").stdout)["largest"]
    assert [(each["index"], f"{each['leverage']:.4g}") for each in told] == [
        (i, n[1]) for i, n in zip(largest, numbers, strict=True)
    ]


def test_suspects_are_written_as_a_table_and_as_indices(finished):
    run_dir, _ = finished
    done = trak("suspects", run_dir, "--fdr", "0.3", "--json")
    assert done.returncode == 0, done.stderr
    found, indices = json.loads(done.stdout), np.load(run_dir / "suspects" / "indices.npy")
    assert found["indices"] == indices.tolist()
    with (run_dir / "suspects" / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows if row["before_cut"] == "True"] == indices.tolist()
    assert len({row["index"] for row in rows}) == len(rows) > len(indices)
    assert all(each["label"] in "0123456789" and each["why"] for each in found["suspects"])
    assert "── cut" in trak("suspects", run_dir, "--fdr", "0.3", "-k", str(len(indices) + 1)).stdout
    printed = trak("suspects", run_dir, "--fdr", "0.3", "-k", "1").stdout
    assert (f"The first 1 of {len(indices)} before the cut; -k {len(indices)} prints them" in printed) is (
        len(indices) > 1
    )
    assert printed.startswith("suspects ")
    assert "models say" in printed
    assert "predictions of checkpoints not trained on the sample" in printed


def test_select_writes_the_samples_to_keep(finished, tmp_path):
    run_dir, _ = finished
    done = trak("select", run_dir, "--budget", "0.02", "--groups", "label", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["indices"] == np.load(run_dir / "selection" / "indices.npy").tolist()
    assert len(set(found["indices"])) == 35
    assert min(found["group"].count(digit) for digit in "0123456789") >= 3
    np.save(tmp_path / "groups.npy", np.arange(1737) % 3)
    printed = trak("select", run_dir, "--budget", "30", "--groups", tmp_path / "groups.npy", "-k", "4")
    assert "30 of 1737 training samples (1.73 %) for 60 targets, 3 groups in their shares" in printed.stdout
    assert printed.stdout.startswith("select "), "the answer comes before the table"
    first = np.load(run_dir / "selection" / "indices.npy")[0]
    assert re.search(rf"^ *{first} +\d+ % +{first % 3} +\d *$", printed.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "budget"),
        (["--budget", "5000"], "budget must be a whole number of samples between 1 and 1737, or a share"),
        (
            ["--budget", "9", "--groups", "source"],
            "have no column 'source'; their columns are x, y, label",
        ),
        (
            ["--budget", "9", "--groups", "nothing.npy"],
            "--groups must be label, a column, or a .npy file of groups; noth",
        ),
    ],
)
def test_select_says_what_is_wrong(options, message, finished):
    done = trak("select", finished[0], *options)
    assert done.returncode in (1, 2)
    assert message in done.stderr


def test_what_if_takes_positions_a_file_or_a_label(finished, tmp_path):
    run_dir, _ = finished
    np.save(tmp_path / "mask.npy", np.arange(1737) < 20)
    by_mask = trak("whatif", run_dir, "--remove", tmp_path / "mask.npy", "--json")
    assert by_mask.returncode == 0, by_mask.stderr
    found = json.loads(by_mask.stdout)
    assert found["samples"] == list(range(20))
    assert len(found["change"]) == 60
    by_label = trak("whatif", run_dir, "--remove-label", "7")
    assert by_label.returncode == 0, by_label.stderr
    assert re.search(r"^whatif +without \d+ of 1737 training samples: label 7 \(60 targets in", by_label.stdout)
    assert re.search(r"^ target +f now +change +p\(label\) of mean f +label *$", by_label.stdout, re.MULTILINE)
    assert "as measured: LDS" in by_label.stdout  # of the scores
    one = json.loads(trak("whatif", run_dir, "--remove", "3,", "--json").stdout)
    scores = Scores(run_dir / "scores" / "test.h5").values
    assert np.corrcoef(one["change"], -scores[:, 3])[0, 1] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one of --remove, --remove_label and --remove_where"),
        (["--remove", "-1"], "sample -1 is out of range: the training set has samples 0 … 1736"),
        (["--remove", ""], "or a .npy file of positions or of a mask; it is empty: no such file"),
        (["--remove", "README.md"], "README.md: its content is not that of a .npy file"),
        (["--remove", "[5000]"], "sample 5000 is out of range: the training set has samples 0 … 1736"),
        (
            ["--remove", "nothing.npy"],
            "--remove must be positions such as 3,17 or a .npy file of positions or of a mask; nothing.npy",
        ),
        (
            ["--remove_label", "cat"],
            "7, 8, 9; class_names of the DataModule gives them names",
        ),
        (["--remove_where", "source=web"], "have no column 'source'; their columns are x, y, label. feature_names of"),
        (["--remove_where", "y>2", "--remove-where=y<5"], "--remove_where is given twice; join conditions in one"),
        (
            ["--remove_where", "y=cat"],
            "; they are classes, which class_names of the DataModule names; a method render(self",
        ),
        (["--remove_where", "y>20"], "no training sample has y > 20; the values of y are '0', '1', '2'"),
    ],
)
def test_what_if_says_what_is_wrong_with_a_set(options, message, finished):
    done = trak("whatif", finished[0], *options)
    assert done.returncode in (1, 2)
    assert message in done.stderr
