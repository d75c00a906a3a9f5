"""Every block of the pages does what the page says, from the first to the last, and the site is built without a warning."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import blocks
from hugging_face import VOCABULARY, gpt2

import trak_lightning
from trak_lightning import TRAK, report
from trak_lightning.cli.usage import COMMANDS
from trak_lightning.scoring.scores import Scores

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONTINUED = (
    "choosing.md",
    pytest.param("coming-from.md", marks=pytest.mark.slow),
    "decisions.md",
    "evaluation.md",
    "trust.md",
    pytest.param("language-models.md", marks=pytest.mark.slow),
    pytest.param("quickstart.md", marks=pytest.mark.slow),
    pytest.param("this-run.md", marks=pytest.mark.slow),
    pytest.param("stories/digits.md", marks=pytest.mark.slow),
    pytest.param("stories/glosses.md", marks=pytest.mark.slow),
)
"""Pages whose Python blocks follow from each other; ``sh`` and ``text`` blocks are shown and not run, and blocks for quanda only
where it is installed."""

FRAGMENTS = ("many-devices.md",)
"""Pages whose Python blocks need several devices around them."""


@pytest.mark.parametrize("name", CONTINUED)
def test_the_blocks_of_a_page_run_in_order(name, reader):
    session = []
    for block in blocks(DOCS / name):
        if block.file:
            reader.write(block)
        elif block.needs and not find_spec(block.needs):
            continue
        elif block.language == "python" and ("quanda" not in block.code or find_spec("quanda")):
            session.append(block.code)
        elif block.language == "bash":
            reader.bash(block.code)
    if session:
        reader.python("\n".join(session))


SAYS = {
    "lightning": ["(100, 1697)", "(200, 200)", "Linear datamodeling score"],
    "hugging-face": ["(10, 60)"],
}
ALSO = {
    "hugging-face": """
from transformers import BertForSequenceClassification

trained = BertForSequenceClassification.from_pretrained("out/checkpoint-16")
found = Trainer(trained, TrainingArguments("out", report_to=[], use_cpu=True), data_collator=collate).predict(mine.test_set)
wrong = found.predictions.argmax(1) != found.label_ids
assert 0 < wrong.sum() < len(wrong)
assert np.flatnonzero(wrong).tolist() == errors.tolist(), "these are not the mistakes of the trained model"
"""
}
"""What is true after the Python of a page, and is not said there."""


@pytest.mark.parametrize("page", ["lightning", pytest.param("hugging-face", marks=pytest.mark.slow)])
def test_a_howto_does_what_it_says(page, reader):
    page_blocks = blocks(DOCS / f"{page}.md")
    reader.write(*(block for block in page_blocks if block.file))
    code = {
        language: "\n".join(block.code for block in page_blocks if block.language == language and not block.file)
        for language in ("python", "bash")
    }
    # All that is in Python runs in one process, and before the commands.
    said = reader.python(code["python"] + "\n" + ALSO.get(page, "")) + reader.bash(code["bash"])
    for words in SAYS[page]:
        assert words in said


def test_a_continuation_and_each_of_its_words_are_attributed_as_modalities_says(tmp_path):
    torch.manual_seed(0)
    model, texts = gpt2().eval(), torch.randint(3, VOCABULARY, (12, 8))
    trak = TRAK(model, "causal_lm", tmp_path, projector={"name": "sparse_jl", "dim": 64})
    trak.featurize([{"input_ids": text} for text in texts])
    session = {"model": model, "trak": trak, "prompt": texts[:1, :4]}
    (block,) = (block for block in blocks(DOCS / "modalities.md") if block.language == "python")
    # The model may write 16 tokens in all, and must not end before it has written two.
    exec(block.code.replace("max_new_tokens=20", "max_new_tokens=8, min_new_tokens=8, pad_token_id=0"), session)
    written, words = (Scores(tmp_path / "scores" / f"{name}.h5").values for name in ("written", "words"))
    assert (written.shape, words.shape) == ((1, 12), (8, 12))
    np.testing.assert_allclose(np.sum(words, axis=0), written[0], rtol=1e-3, atol=1e-3 * np.abs(written).max())


def test_no_page_with_python_is_left_out():
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    pages = {page.name for page in DOCS.rglob("*.md") if any(block.language == "python" for block in blocks(page))}
    assert not (untested := {page for page in pages if page.removesuffix(".md") not in tests}), (
        f"name these in CONTINUED: {untested}"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if sys.version_info < (3, 11):
        pytest.skip("the last mkdocstrings for Python 3.10 does not work with the last pymdown-extensions for it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_the_reference_documents_every_public_name_and_every_built_in_plugin(site):
    anchors = set(
        re.findall(r'id="(trak_lightning[\w.]*)"', "".join(page.read_text() for page in site.rglob("*.html")))
    )
    plugins = [point for point in distribution("trak-lightning").entry_points if point.group != "console_scripts"]
    expected = {getattr(module, name).__qualname__ for module in (trak_lightning, report) for name in module.__all__}
    expected |= {point.attr for point in plugins}
    expected |= {"TRAK.featurize", "TRAK.features", "Scores.top", "Task.output", "StaleRowsError", "TRAKExplainer"}
    documented = {anchor.removeprefix("trak_lightning.") for anchor in anchors}
    missing = {name for name in expected if not any(f".{each}".endswith(f".{name}") for each in documented)}
    assert not missing


def test_the_front_page_links_every_page():
    linked = set(re.findall(r"\]\(([\w/-]+\.md)", (DOCS / "index.md").read_text()))
    assert linked == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}


def test_the_page_of_commands_lists_every_command():
    listed = re.findall(r"^\| `trak ([\w-]+)` \|", (DOCS / "api" / "commands.md").read_text(), re.MULTILINE)
    assert listed == list(COMMANDS)
