"""docs/plugins.md as a reader would follow it: step 1 and one section, or all of them in one project, from an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
PROJECT = next(block.code for block in blocks(PAGE) if block.file == "pyproject.toml")


def section(heading):
    """The blocks of a section; that of the projector has three parts."""
    lines = PAGE.read_text().splitlines()
    first = lines.index(heading)
    ends = [number for number, line in enumerate(lines) if number > first and re.match(r"## [^34]", line)]
    return [block for block in blocks(PAGE) if first < block.line <= ends[0]]


def write(found, folder):
    """Write the files of these blocks."""
    for block in found:
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)


def run(command, environment, folder):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shell(code, environment, folder):
    # Not into the environment that the tests run in.
    code = code.replace("--editable .", f"--target {environment['PYTHONPATH']} .")
    return run(["bash", "-euc", code], environment, folder)


def test_a_projector_is_written_tested_and_used_as_the_page_says(environment, tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    said = ""
    for block in section("## 2. A projector"):
        if block.file:
            write([block], tmp_path)
        elif block.language == "bash":
            said += shell(block.code, environment, tmp_path)
        else:
            said += run([sys.executable, "-c", block.code], environment, tmp_path)
    for words in ("passed", "--projector.density", "share of entries that are not zero", "computed"):
        assert words in " ".join(said.split())


@pytest.mark.slow
def test_a_task_a_scorer_an_extractor_and_a_store_pass_their_suites_in_one_package(environment, tmp_path):
    found = [
        each
        for kind in ("task", "scorer", "extractor", "store")
        for each in section(f"## A{'n' * (kind[0] == 'e')} {kind}")
    ]
    entries = "".join(f"{block.code}\n" for block in found if block.language == "toml")
    (tmp_path / "pyproject.toml").write_text(
        re.sub(r"\[project.entry-points.*?\n\n", lambda _: entries, PROJECT, flags=re.DOTALL)
    )
    write(found, tmp_path)
    commands = [line for block in found if block.language == "bash" for line in block.code.splitlines()]
    (install,) = {line for line in commands if line.startswith("pip")}
    suites = [line.removeprefix("python -m pytest -q ") for line in commands if line != install]
    assert len(suites) == 4
    said = shell(f"{install}\npython -m pytest -q {' '.join(suites)}", environment, tmp_path)
    assert "passed" in said
