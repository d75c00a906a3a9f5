"""What the demos and the report read is in the wheel."""

import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_DATA = {".py", ".pyc", ".c", ".so", ".pyd"}


def test_every_file_that_is_no_code_is_declared_as_data_of_its_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{each}" for package, globs in declared.items() for each in globs]
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "trak_lightning").rglob("*")
        if path.is_file() and path.suffix not in NOT_DATA
    ]
    assert sum(name.endswith(".tsv.gz") for name in files) == 3
    missing = [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert not missing, "declare these in pyproject.toml under tool.setuptools.package-data"
