"""The how-tos from their first block to their last, as a reader would do it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import blocks

DOCS = Path(__file__).parents[2] / "docs"
SAYS = {
    "lightning": ["(100, 1697)", "Linear datamodeling score"],
    "hugging-face": ["(10, 60)"],
}


@pytest.mark.parametrize("page", SAYS)
def test_a_howto_does_what_it_says(page, tmp_path):
    program = tmp_path / "bin" / "trak"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trak_lightning "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }
    said = ""
    # What is in Python runs in one process, for its imports take longer than all the rest.
    python: list[str] = []
    for block in [*blocks(DOCS / f"{page}.md"), None]:
        if block is not None and block.file:
            (tmp_path / block.file).write_text(block.code)
        elif block is not None and block.language == "python":
            python.append(block.code)
        else:
            said += run([sys.executable, "-c", "\n".join(python)], tmp_path, environment) if python else ""
            python = []
            said += run(["bash", "-euc", block.code], tmp_path, environment) if block is not None else ""
    for words in SAYS[page]:
        assert words in said


def run(command, folder, environment):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout
