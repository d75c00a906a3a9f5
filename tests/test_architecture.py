"""docs/architecture.md lists the rooms from top to bottom, and every import points down that list."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trak_lightning"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__main__")]


def rooms():
    page = (ROOT / "docs" / "architecture.md").read_text()
    return re.findall(
        r"^\| `(\w+)(?:/|\.py)` \|", page.partition("## Rooms")[2].partition("\n## ")[0], flags=re.MULTILINE
    )


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """The modules of this package that a file imports, anywhere in it."""
    known = {module(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trak_lightning"):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from {part if part in known else node.module for part in parts}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("trak_lightning"))


def test_every_room_is_listed_once_and_every_listed_room_is_there():
    there = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_") and path.suffix in ("", ".py")}
    assert sorted(rooms()) == sorted(there)


@pytest.mark.parametrize("room", rooms())
def test_imports_point_down(room):
    rank = {name: position for position, name in enumerate(rooms())}
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(PACKAGE).with_suffix("").parts[0] == room
        for name in imported(path)
        if rank.get(f"{name}.".split(".")[1], len(rank)) < rank[room]
    ]
    assert upward == []


def test_no_file_imports_itself_through_others():
    packages = {module(path) for path in FILES if path.name == "__init__.py"}
    graph = {module(path): {name for name in imported(path) if name not in packages} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_few_modules_lie_outside_a_room():
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 6
