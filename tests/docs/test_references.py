"""Messages send their reader to pages and sections that exist, and in a way that an installed package can follow."""

import ast
import re
from email.message import Message
from pathlib import Path

import pytest

from trak_lightning import errors

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "trak_lightning").rglob("*.py"))


def calls():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "docs_page":
                yield tuple(ast.literal_eval(each) for each in node.args)


def test_pages_and_sections_that_messages_name_exist():
    found = set(calls())
    assert len(found) > 5
    for name, *section in found:
        headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / f"{name}.md").read_text(), re.MULTILINE)
        assert set(section) <= set(headings), name


def test_no_message_names_a_file_that_only_the_repository_has():
    for path in FILES:
        tree = ast.parse(path.read_text())
        unprinted = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unprinted:
                assert not re.search(r"\bdocs/", node.value), f"{path.name}:{node.lineno}: {node.value}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, 'page modalities of the documentation, under "Labels that training_step scales"'),
        ("https://trak.example/", "https://trak.example/modalities/#labels-that-training_step-scales"),
    ],
)
def test_a_page_is_an_address_where_the_distribution_has_one(url, expected, monkeypatch):
    found = Message()
    found["Project-URL"] = "Source, https://elsewhere.example"
    if url:
        found["Project-URL"] = f"Documentation, {url}"
    monkeypatch.setattr(errors, "metadata", {"trak-lightning": found}.__getitem__)
    assert errors.docs_page("modalities", "Labels that training_step scales") == expected
