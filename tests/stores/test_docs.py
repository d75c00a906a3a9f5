"""docs/storage.md is true: its code reads what the store wrote."""

import re
from pathlib import Path

import numpy as np
import pytest

from trak_lightning.stores.encoding import DTYPES
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC, rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stranger_reads_every_type_with_the_code_of_the_documentation(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = HDF5Store(dtype)
    store.bind(tmp_path / "runs/digits/features")
    created = store.create(SPEC)
    for block in range(3):
        created.write_block(block, rows(SPEC, block))
    text = (Path(__file__).parents[2] / "docs/storage.md").read_text()
    scope = {"checkpoint": "a1"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    np.testing.assert_array_equal(scope["features"], created.rows(0, 23).features)
