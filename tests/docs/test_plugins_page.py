"""docs/plugins.md from its first block to its last, as a reader would do it, in a copy of this environment."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def environment(tmp_path):
    """A place to install into that sees what is installed here, and the commands of the page on its path."""
    site = tmp_path / "site"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("pip", "pip"), ("trak", "trak_lightning"), ("python", "")):
        script = programs / name
        call = f"-m {module} " if module else ""
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call}"$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


def test_the_tutorial_does_what_it_says(environment, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    done = []
    for block in blocks(PAGE):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
            continue
        # Not into the environment that the tests run in.
        code = block.code.replace("--editable .", f"--target {environment['PYTHONPATH']} .")
        command = {"bash": ["bash", "-euc", code], "python": [sys.executable, "-c", code]}[block.language]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{PAGE.name}:{block.line}\n{block.code}\n{run.stdout}\n{run.stderr}"
        done.append(run.stdout)
    tests, plugins, featurized = done[0], done[1], done[2]
    assert "passed" in tests
    assert "--projector.density" in plugins
    assert "share of entries that are not zero" in " ".join(plugins.split())
    assert "computed" in featurized
