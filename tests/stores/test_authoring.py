"""Store authors import one module: it is complete, documented, and all that our own plug-in and our example import."""

import ast
import re
from pathlib import Path

import pytest

from trak_lightning import authoring as methods
from trak_lightning.stores import authoring
from trak_lightning.testing import StoreConformance

ROOT = Path(__file__).parents[2]
ALLOWED = {"trak_lightning.stores.authoring", "trak_lightning.errors"}


def example():
    """The store of docs/plugins.md."""
    page = (ROOT / "docs/plugins.md").read_text()
    (code,) = re.findall(r'```python title="trak_lightning_mine/npz_store.py"\n(.*?)```', page, re.DOTALL)
    return code


def imported(code):
    """The modules of trak_lightning that some code imports."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    return {name for name in names if name.split(".")[0] == "trak_lightning"}


scope = {}
exec(example(), scope)


class TestExample(StoreConformance):
    store = scope["NpzStore"]


def test_the_example_imports_nothing_else():
    assert imported(example()) == ALLOWED


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins/trak-lightning-zarr/trak_lightning_zarr").glob("*.py")), ids=str
)
def test_the_zarr_store_imports_nothing_else(path):
    assert imported(path.read_text()) <= ALLOWED


@pytest.mark.parametrize("module", [authoring, methods], ids=lambda module: module.__name__)
def test_every_name_is_explained_in_the_docstring_of_the_module(module):
    for name in module.__all__:
        assert hasattr(module, name)
        assert f"`{name}`" in module.__doc__
