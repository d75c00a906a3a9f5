"""docs/plugins.md from its first block to its last, as a reader would do it, in a copy of this environment."""

import subprocess
import sys
from pathlib import Path

from blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


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
