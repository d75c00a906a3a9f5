"""Shell completion, asked as a shell asks it."""

import shutil
import subprocess

import pytest
from faults import forks, run

from trak_lightning.cli.usage import COMMANDS


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script for a shell, as a file."""
    folder = tmp_path_factory.mktemp("completion")

    def make(shell):
        path = folder / shell
        if not path.exists():
            process = forks().Process(target=run, args=(["completion", shell], path, {"COLUMNS": "80"}))
            process.start()
            process.join(300)
            assert process.exitcode == 0, path.read_text()
        return path

    return make


def complete(script, *words):
    """What bash proposes for the last of these words."""
    asked = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _trak; echo "${COMPREPLY[*]}"'
    done = subprocess.run(["bash", "-euc", asked, script, *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_plugin_names(script):
    assert complete(script("bash"), "trak", "fea") == ["featurize"]
    assert complete(script("bash"), "trak", "") == list(COMMANDS)
    assert complete(script("bash"), "trak", "score", "runs/a", "--scorer", "trac") == ["tracin"]
    assert complete(script("bash"), "trak", "run", "--evaluation.c") == [
        "--evaluation.compare",
        "--evaluation.ceiling",
        "--evaluation.counterfactual",
    ]
    assert complete(script("bash"), "trak", "info", "ru") == []  # bash completes file names then


def test_fish_is_told_every_command_and_its_options(script):
    lines = script("fish").read_text().splitlines()
    for command in COMMANDS:
        assert any(f"-a {command} -d '" in line for line in lines)
    assert "complete -c trak -n '__fish_seen_subcommand_from top' -l json" in lines
    assert all(line.count("'") % 2 == 0 for line in lines)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_the_script_for_zsh_is_read_by_zsh(script):
    subprocess.run(["zsh", "-n", script("zsh")], check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("trak fea", ["featurize"]),
        ("trak score runs/a --scorer trac", ["tracin"]),
        ("trak run --evaluation.ce", ["--evaluation.ceiling"]),
    ],
)
def test_fish_completes_commands_options_and_plugin_names(line, proposed, script):
    asked = ["fish", "-c", f"source {script('fish')}; complete -C '{line}'"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert [each.split("\t")[0] for each in done.stdout.splitlines()] == proposed
