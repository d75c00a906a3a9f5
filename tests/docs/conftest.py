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
    python = shlex.quote(sys.executable)
    # The script that pip installed, not ``python -m trak_lightning``, which finds modules that the script may not.
    trak = shlex.quote(str(Path(sys.executable).with_name("trak")))
    for name, call in (("pip", f"{python} -m pip"), ("trak", trak), ("python", python)):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
