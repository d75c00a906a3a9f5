"""Every block of the pages does what the page says, from the first to the last, and the site is built without a warning."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from blocks import blocks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONTINUED = (
    "choosing.md",
    "evaluation.md",
    "migrating-from-traker.md",
    pytest.param("quickstart.md", marks=pytest.mark.slow),
)
"""Pages whose Python blocks follow from each other; ``sh`` and ``text`` blocks are shown and not run, and blocks for quanda only
where it is installed."""

FRAGMENTS = ("modalities.md", "many-devices.md")
"""Pages whose Python blocks need a trained model or several devices around them."""


@pytest.mark.parametrize("name", CONTINUED)
def test_the_blocks_of_a_page_run_in_order(name, environment, tmp_path):
    session = []
    for block in blocks(DOCS / name):
        if block.file:
            (tmp_path / block.file).write_text(block.code)
        elif block.language == "python" and ("quanda" not in block.code or find_spec("quanda")):
            session.append(block.code)
        elif block.language == "bash":
            run(["bash", "-euc", block.code], environment, tmp_path, f"{name}:{block.line}")
    if session:
        run([sys.executable, "-c", "\n".join(session)], environment, tmp_path, name)


def run(command, environment, folder, where):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}\n{command[-1]}\n{done.stdout}\n{done.stderr}"


def test_no_page_with_python_is_left_out():
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    pages = {page.name for page in DOCS.rglob("*.md") if any(block.language == "python" for block in blocks(page))}
    assert not (untested := {page for page in pages if page.removesuffix(".md") not in tests}), (
        f"name these in CONTINUED: {untested}"
    )


def test_the_site_is_built_without_a_warning_and_documents_what_is_public(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    reference = "".join(page.read_text() for page in (tmp_path / "site" / "api").rglob("*.html"))
    for name in ("TRAK.featurize", "Scores.top", "Task.output", "write_report", "DataError"):
        assert f"{name}</span>" in reference or f'.{name}"' in reference, name
