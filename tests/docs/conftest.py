"""A place in which the commands of a page can be run as a reader would."""

import os
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `blocks`; test modules are imported by path


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
