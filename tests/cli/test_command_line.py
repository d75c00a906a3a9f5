"""Reading a command line: positions, spellings, saved configurations, and mistakes as one line."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from trak_lightning.cli import main
from trak_lightning.cli.command_line import CommandLine, normalized_config
from trak_lightning.cli.error_messages import fault_in
from trak_lightning.cli.usage import COMMANDS
from trak_lightning.errors import SettingsError

PARSER = ArgumentParser()
for flag in ("--json", "--numbers"):
    PARSER.add_argument(flag, action="store_true")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["runs/x"], ["--run_dir=runs/x"]),
        (["runs/x", "--run-dir", "runs/y"], ["--run_dir=runs/y", "--run_dir=runs/x"]),
        (["--trainer.max-epochs", "3", "runs/x"], ["--trainer.max_epochs=3", "--run_dir=runs/x"]),
        (["--trainer.max-epochs=3"], ["--trainer.max_epochs=3"]),
        (["--projector.dim", "-3"], ["--projector.dim=-3"]),
        (["--json", "runs/x"], ["--json", "--run_dir=runs/x"]),
        (["-k", "5", "--name=a-b"], ["-k=5", "--name=a-b"]),
        (["--numbers", "runs/x"], ["--numbers", "--run_dir=runs/x"]),
        (["runs/x", "--numbers", "-k", "5"], ["--numbers", "-k=5", "--run_dir=runs/x"]),
        (["--print-config", "-k", "5"], ["--print_config", "-k=5"]),
        (["--top", "5"], ["--keep=5"]),
        (["--model", "mine.Net", "--seed", "1"], ["--seed=1"]),
        (["--task", "regression"], ["--task=trak_lightning.tasks.regression.Regression"]),
        (["--task.name", "regression"], ["--task=trak_lightning.tasks.regression.Regression"]),
    ],
    ids=lambda each: " ".join(each),
)
def test_what_is_typed_becomes_what_the_parser_takes(typed, read):
    assert CommandLine.of(typed, PARSER, renamed={"--top": "--keep"}).argv(uses=(), drops=("model",)) == read


def test_the_new_name_of_an_option_is_said_on_standard_error(capsys):
    CommandLine.of(["--top", "5"], PARSER, renamed={"--top": "--keep"})
    CommandLine.of(["--keep", "5"], PARSER, renamed={"--top": "--keep"})
    assert capsys.readouterr().err == "trak: --top is now --keep; the old name still works\n"


def test_two_names_of_one_option_must_agree():
    parser = ArgumentParser()
    parser.add_argument("--name", "--target_split")
    CommandLine.of(["--name", "a", "--target-split=a"], parser)
    with pytest.raises(SettingsError, match=r"--name=a and --target_split=b are two names of one option"):
        CommandLine.of(["--name", "a", "--target-split", "b"], parser)
    for command in ("whatif", "select"):
        with pytest.raises(SettingsError, match=r"--name=a and --target_split=b both say which targets"):
            import_module(f"trak_lightning.cli.commands.{command}").main(["x", "--name", "a", "--target_split", "b"])


def test_a_second_position_and_a_file_in_place_of_a_run_directory_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="unexpected argument 'b'"):
        CommandLine.of(["a", "b"], PARSER)
    (tmp_path / "b.ckpt").touch()
    with pytest.raises(SettingsError, match=r"is a file where a run directory was expected.*written as a list"):
        CommandLine.of(["--checkpoints", "a.ckpt", str(tmp_path / "b.ckpt")], PARSER)


def test_the_configuration_of_the_run_directory_is_used_unless_another_is_named(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text("{}")
    assert CommandLine.of([str(tmp_path)], PARSER).with_saved_configuration().configs == [str(saved)]
    named = CommandLine.of([str(tmp_path), "-c", "mine.yaml"], PARSER).with_saved_configuration()
    assert named.configs == ["mine.yaml"]


def test_settings_that_a_command_does_not_read_are_taken_out_of_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text("{run_dir: x, model: mine.Net, scorer: trak}")
    (config,) = CommandLine.of(["-c", str(tmp_path / "config.yaml")], PARSER).argv(uses=(), drops=("model",))
    assert json.loads(config.removeprefix("--config=")) == {
        "run_dir": "x",
        "scorer": {"class_path": "trak_lightning.scoring.trak.Trak"},
    }


def test_a_configuration_of_lightning_cli_loses_what_is_for_fit_and_gets_its_classes():
    saved = {
        "seed_everything": True,
        "trainer": {"max_epochs": 1, "logger": None},
        "model": {"width": 64},
        "optimizer": None,
        "ckpt_path": None,
        "weights_only": None,
    }
    assert normalized_config(saved, {"model": "mine.Net", "data": "mine.Digits"}) == {
        "seed_everything": True,
        "trainer": {"max_epochs": 1},
        "model": {"class_path": "mine.Net", "init_args": {"width": 64}},
        "data": {"class_path": "mine.Digits", "init_args": {}},
    }


@pytest.mark.parametrize("named", ["{model_class: mine.Net}", "{model: mine.Net}", "{model: {class_path: mine.Net}}"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("settings", ["{model: {width: 64}}", "{model: {init_args: {width: 64}}}"])
def test_one_file_may_name_the_class_of_the_settings_in_another(named, last, settings, tmp_path):
    (tmp_path / "named.yaml").write_text(named)
    (tmp_path / "saved.yaml").write_text(settings)
    files = ["saved.yaml", "named.yaml"] if last else ["named.yaml", "saved.yaml"]
    options = [part for file in files for part in ("-c", str(tmp_path / file))]
    merged = CommandLine.of(options, PARSER).argv(uses=())
    expected = f"--config={json.dumps({'model': {'class_path': 'mine.Net', 'init_args': {'width': 64}}})}"
    assert expected in merged


def test_the_leaf_of_a_nested_message_is_found():
    fault = fault_in(
        """Parser key "scorer":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'Scorer'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'trak.Trak':
        Parser key "weights":
          Does not validate against any of the Union subtypes
          Subtypes: [<class 'int'>, typing.Literal['auto']]
          Errors:
            - Expected a <class 'int'>
            - Expected a typing.Literal['auto']
          Given value type: <class 'str'>
          Given value: q
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'weights': 'q'}"""
    )
    assert (fault.key, fault.owner, fault.value) == (("scorer", "weights"), "trak.Trak", "q")
    assert fault.text == "expected an integer, 'auto'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("seed: many", "mine.yaml:2: seed is many; expected an integer"),
        ("evaluation:\n  modles: 3", "mine.yaml:3: unknown setting evaluation.modles; did you mean evaluation.models?"),
        (
            "scorer:\n  name: trak\n  weight: none",
            "mine.yaml:4: unknown setting scorer.weight; did you mean scorer.weights?",
        ),
        ("targets: test", "mine.yaml:2: unknown setting targets; did you mean"),
        ("trainr:\n  max_epochs: 3", "mine.yaml:2: unknown setting trainr; did you mean trainer?"),
        (
            "scorer:\n  name: trak\n  init_arg:\n    weights: none",
            "mine.yaml:4: unknown setting scorer.init_arg; did you mean scorer.init_args?",
        ),
        ("scorer: {nam: trak}", "mine.yaml:2: unknown setting scorer.nam; did you mean scorer.name?"),
        ("seed: [", "mine.yaml:3: not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(settings, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"run_dir: {tmp_path}\n{settings}\n")
    assert main(["evaluate", "--config", str(tmp_path / "mine.yaml")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (
            "model:\n  class_path: M\n  init_arg: {width: 3}",
            [],
            "mine.yaml:4: unknown setting model.init_arg; did you mean",
        ),
        ("model:\n  class_pth: M", [], "mine.yaml:3: unknown setting model.class_pth; did you mean model.class_path?"),
        (
            "trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks.EarlyStopping\n    init_arg: {monitor: x}",
            [],
            "mine.yaml:5: unknown setting trainer.callbacks.init_arg; did you mean trainer.callbacks.init_args?",
        ),
        ("seed: 1", ["--model.init_arg.width", "3"], "check: UsageError: unknown setting model.init_arg; did you mean"),
        ("seed: 1", ["--trainr.max_epochs", "3"], "unknown option --trainr.max_epochs; did you mean --trainer?"),
    ],
)
def test_a_keyword_that_is_misspelt_is_named_and_not_what_follows_from_it(settings, options, message, tmp_path, capsys):
    demo = "trak_lightning.demos.Digits"
    model = "" if settings.startswith("model") else f"\nmodel: {demo}CNN"
    text = f"run_dir: {tmp_path}\n{settings.replace('M', f'{demo}CNN')}{model}\ndata: {demo}DataModule"
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["check", "--config", str(tmp_path / "mine.yaml"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["evaluate", "x", "--evaluation.model", "4"], "--evaluation.models"),
        (["score", "x", "--scor", "trak"], "--scorer"),
        (["score", "x", "--regularisation", "1"], "--scorer.regularization"),
        (["check", "x", "--target_spli", "test"], "--target_split"),
        (["top", "x", "3"], "--target 3"),
    ],
)
def test_an_option_is_not_abbreviated_and_the_one_that_was_meant_is_named(argv, meant, capsys):
    assert main(argv) == 2
    assert f"id you mean {meant}?" in capsys.readouterr().err


def test_a_module_that_is_no_lightning_module_is_told_where_it_can_be_used(capsys, tmp_path):
    options = ["--data", "trak_lightning.demos.DigitsDataModule", "--run_dir", str(tmp_path / "run")]
    assert main(["check", "--model", "torch.nn.Identity", *options]) == 2
    assert (
        "expected a subclass of LightningModule: wrap your torch.nn.Module in one, or use it" in capsys.readouterr().err
    )


def test_a_check_needs_no_run_directory(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.chdir(tmp_path)
    demo = "trak_lightning.demos.Digits"
    assert main(["check", "--model", f"{demo}CNN", "--data", f"{demo}DataModule", "--trainer.accelerator", "cpu"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_is_asked_for_by_its_place(capsys):
    assert main(["score"]) == 2
    assert "run_dir is missing: write it after the command" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_folder_that_is_no_run_directory_says_so(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 1
    assert "is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "whatif", "select", "evaluate", "self-influence"])
def test_help_says_that_a_setting_left_out_is_that_of_the_run(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "(default: that of the run, or train)" in told
    assert "(default: that of the run, or hdf5)" in told
    assert not re.search(r"\(default: (train|test|hdf5|trak)\)|``", told)


def test_help_shows_what_is_chosen_and_nothing_that_is_not_read(capsys):
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    shown = capsys.readouterr().out
    options = {line.split()[0] for line in shown.splitlines() if line.startswith("  --")}
    assert {"--keep", "--groups", "--name", "--store", "--scorer"} <= options
    assert not {"--model", "--trainer", "--ensemble.size", "--evaluation.models", "--projector"} & options


def test_plugins_as_json():
    trak = Path(sys.executable).with_name("trak")
    done = subprocess.run([trak, "plugins", "--json"], capture_output=True, text=True, check=False)
    assert "sparse_jl" in {plugin["name"] for plugin in json.loads(done.stdout)["plugins"]}


@pytest.mark.parametrize("arguments", ["--help", "--version", "plugins --json", "top --help", "run --help"])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(arguments):
    trak = Path(sys.executable).with_name("trak")
    piped = subprocess.run(f"{trak} {arguments} | true", shell=True, capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("", "")


def test_every_command_is_a_module():
    folder = Path(sys.modules["trak_lightning.cli"].__file__).parent / "commands"
    assert {name for name in COMMANDS if not (folder / f"{name.replace('-', '_')}.py").exists()} == set()


def test_yaml_that_names_plugins_is_what_is_written_out(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path), "--scorer", "gradient_dot", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["scorer"]["class_path"].endswith("GradientDot")


@pytest.mark.parametrize("call", [["-m", "trak_lightning"], [str(Path(sys.executable).with_name("trak"))]])
def test_files_in_the_working_directory_hide_no_module_of_a_dependency(call, tmp_path):
    for name in ("attr", "random", "tempfile", "queue", "yaml", "typing_extensions"):
        (tmp_path / f"{name}.py").touch()
    done = subprocess.run(
        [sys.executable, *call, "score", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no run directory" in done.stderr


def test_a_hidden_file_of_the_working_directory_is_named_where_it_was_meant(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("json", "mine"):
        (tmp_path / f"{name}.py").touch()
    for path, hidden in (("json.Net", True), ("mine.Net", False)):
        assert main(["score", "run", "--scorer", path]) == 2
        message = f"{json.__file__} hides json.py of the working directory: give yours another name"
        assert (message in capsys.readouterr().err) is hidden


@pytest.mark.parametrize(
    ("command", "option", "owner"),
    [
        ("score", ["--task.label_smoothing", ".3"], "featurize"),
        ("score", ["--ensemble.size=3"], "train"),
        ("score", ["--seed", "9"], "train"),
        ("score", ["--model_class", "mine.Net"], "train"),
        ("evaluate", ["--projector.dim", "9"], "featurize"),
        ("whatif", ["--evaluation.models", "9"], "evaluate"),
    ],
)
def test_an_option_of_another_command_is_refused_though_files_may_hold_it(command, option, owner, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{task: regression, ensemble: {size: 3}, projector: {dim: 9}, seed: 9}")
    assert main([command, str(tmp_path), *option]) == 2
    name = option[0].partition("=")[0]
    assert f"{name} has no effect on trak {command}: it belongs to trak {owner}" in capsys.readouterr().err
    assert main([command, str(tmp_path), *(["--remove", "1,"] if command == "whatif" else [])]) == 1
    assert "Run trak featurize first" in capsys.readouterr().err


def test_options_of_training_are_those_of_retraining(tmp_path, capsys):
    options = (
        "--trainer.max_epochs=2",
        "--data.num=3",
        "--batch_size=8",
        "--seed_everything=3",
        "--verify_data=off",
        "--weights_only=false",
    )
    assert main(["evaluate", str(tmp_path), *options]) == 1
    assert "Run trak featurize first" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "written"), [("10%", "0.1 for 10 %"), ("2.5 %", "0.025 for 2.5 %")])
def test_a_share_in_percent_is_answered_with_the_number(share, written, tmp_path, capsys):
    assert main(["select", str(tmp_path), "--budget", share]) == 2
    assert f"expected an integer or a number: {written}" in capsys.readouterr().err
