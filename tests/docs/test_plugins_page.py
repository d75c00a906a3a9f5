"""docs/plugins.md as a reader would follow it: step 1 and one section, or all of them in one project, from an empty folder."""

import re
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


def shell(code, reader):
    # Not into the environment that the tests run in.
    return reader.bash(code.replace("--editable .", f"--target {reader.site} ."))


def test_a_projector_is_written_tested_and_used_as_the_page_says(reader, tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    said = ""
    for block in section("## 2. A projector"):
        if block.file:
            reader.write(block)
        else:
            said += shell(block.code, reader) if block.language == "bash" else reader.python(block.code)
    for words in ("passed", "--projector.density", "share of entries that are not zero", "computed"):
        assert words in " ".join(said.split())


@pytest.mark.slow
def test_a_task_a_scorer_an_extractor_and_a_store_pass_their_suites_in_one_package(reader, tmp_path):
    found = [
        each
        for kind in ("task", "scorer", "extractor", "store")
        for each in section(f"## A{'n' * (kind[0] == 'e')} {kind}")
    ]
    entries = "".join(f"{block.code}\n" for block in found if block.language == "toml")
    (tmp_path / "pyproject.toml").write_text(
        re.sub(r"\[project.entry-points.*?\n\n", lambda _: entries, PROJECT, flags=re.DOTALL)
    )
    reader.write(*(block for block in found if block.file))
    commands = [line for block in found if block.language == "bash" for line in block.code.splitlines()]
    (install,) = {line for line in commands if line.startswith("pip")}
    suites = [line.removeprefix("python -m pytest -q ") for line in commands if line != install]
    assert len(suites) == 4
    assert "passed" in shell(f"{install}\npython -m pytest -q {' '.join(suites)}", reader)
