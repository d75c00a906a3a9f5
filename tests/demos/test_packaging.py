"""The files that are not code, such as templates and the data of the demos, are in the wheels."""

import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_DATA = {".py", ".pyc", ".c", ".so", ".pyd"}


@pytest.mark.parametrize(
    ("distribution", "package", "expected"),
    [
        (".", "trak_lightning", "trak_lightning/report/templates/*.html*"),
        ("plugins/trak-lightning-demos", "trak_lightning_demos", "trak_lightning_demos/data/*.tsv.gz"),
    ],
)
def test_every_file_that_is_not_code_is_declared_as_package_data(distribution, package, expected):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    folder = ROOT / distribution
    declared = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [f"{name.replace('.', '/')}/{each}" for name, globs in declared.items() for each in globs]
    files = [
        path.relative_to(folder).as_posix()
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix not in NOT_DATA
    ]
    assert fnmatch.filter(files, expected)
    missing = [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert not missing, "declare these in pyproject.toml under tool.setuptools.package-data"
