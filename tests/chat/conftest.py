"""A folder with a tiny model, its tokenizer and conversations."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `tiny`; test modules are imported by path

from tiny import chat, make, tokenizer


@pytest.fixture
def lines(tmp_path):
    """Write JSON lines; returns the path as text."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def folder(tmp_path):
    make("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def conversations():
    return [chat(f"2+{n}", f"={2 + n}") for n in range(9)]
