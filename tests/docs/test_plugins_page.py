"""docs/plugins.md as a reader would follow it: step 1 and one section, from an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
SECTIONS = {
    "## 2. A projector": ["passed", "--projector.density", "share of entries that are not zero", "computed"],
    "## A task": ["passed"],
    "## A scorer": ["passed"],
    "## An extractor": ["passed"],
    "## A store": ["passed"],
}


def section(heading):
    """The lines of a section; that of the projector has three parts."""
    lines = PAGE.read_text().splitlines()
    first = lines.index(heading)
    ends = [number for number, line in enumerate(lines) if number > first and re.match(r"## [^34]", line)]
    return range(first + 1, ends[0] + 1)


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_does_what_it_says(heading, environment, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    project = next(block for block in blocks(PAGE) if block.file == "pyproject.toml").code
    said = ""
    for block in (block for block in blocks(PAGE) if block.line in section(heading)):
        if block.language == "toml":
            project = re.sub(r"\[project.entry-points.*?\n\n", f"{block.code}\n", project, flags=re.DOTALL)
        elif block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
        else:
            (folder / "pyproject.toml").write_text(project)
            said += run(block, folder, environment)
    for words in SECTIONS[heading]:
        assert words in " ".join(said.split())


def run(block, folder, environment):
    # Not into the environment that the tests run in.
    code = block.code.replace("--editable .", f"--target {environment['PYTHONPATH']} .")
    command = {"bash": ["bash", "-euc", code], "python": [sys.executable, "-c", code]}[block.language]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{PAGE.name}:{block.line}\n{block.code}\n{done.stdout}\n{done.stderr}"
    return done.stdout
