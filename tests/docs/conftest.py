"""A place in which the blocks of a page are run as a reader would."""

import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from faults import enter, forked

sys.path.insert(0, str(Path(__file__).parent))  # for `blocks`; test modules are imported by path


class Reader:
    """Runs Python, and lines of commands, in a folder; what is installed goes to a place of its own, on top of what is here.

    Code and ``trak`` run in processes that are forked with torch imported: imports take longer than all the rest of most pages.
    """

    def __init__(self, folder):
        self.folder, self.site = folder, folder / "site"
        programs = folder / "bin"
        programs.mkdir()
        for name, call in (("pip", "-m pip"), ("python", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.site),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
        }

    def write(self, *blocks):
        """Write the files of these blocks."""
        for block in blocks:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)

    def python(self, code):
        """Run Python as ``python -c`` does; returns what it printed."""
        return self._done(code, forked(code, self.environment, partial(enter, self.folder, "", str(self.site))))

    def bash(self, code):
        """Run commands, a line each; returns what they printed."""
        said = ""
        for line in code.splitlines():
            command = shlex.split(line)
            if command[0] == "trak":  # as a script, it does not find modules in this folder by itself
                done = forked(command[1:], self.environment, partial(enter, self.folder, str(self.site)))
            else:
                environment = {**os.environ, **self.environment}
                done = subprocess.run(
                    ["bash", "-euc", line],
                    cwd=self.folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            said += self._done(line, done)
        return said

    def _done(self, code, done):
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def reader(tmp_path):
    return Reader(tmp_path)
