"""Readers shown files that were altered in every way that hypothesis thinks of.

Ten minutes: ``pytest -m slow tests/faults/test_fuzz.py -s``; docs/storage.md says what came of it.
"""

import json
import resource
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from trak_lightning.errors import TrakError
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, RunRecord, read_subset
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.stores.manifest import Manifest
from trak_lightning.testing.stores import SPEC, filled_store

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "insert", "delete", "cut"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=16),
    ),
    min_size=1,
    max_size=4,
)


def edited(whole, edits):
    """The bytes of a file after some changes, each at a place given as a fraction of its length."""
    for kind, place, content in edits:
        at = int(place * len(whole))
        if kind == "flip":
            whole = whole[:at] + bytes(byte ^ (content[0] or 1) for byte in whole[at : at + 1]) + whole[at + 1 :]
        elif kind == "cut":
            whole = whole[:at]
        else:
            kept = whole[at + (0 if kind == "insert" else len(content)) :]
            whole = whole[:at] + (b"" if kind == "delete" else content) + kept
    return whole


class Files:
    """One file of each kind, and what reads it."""

    def __init__(self, folder):
        self.run = RunDirectory(folder)
        created = filled_store(HDF5Store(), self.run.features)
        self.run.write(RunRecord(checkpoints=(CheckpointRecord("a1", "a.ckpt"),)))
        self.run.write_subset("a1", np.arange(0, 23, 2))
        self.readers = {
            created.folder / "block-00001.h5": self.rows,
            created.folder / "manifest.json": self.rows,
            folder / "subsets/a1.npy": lambda: read_subset(folder / "subsets/a1.npy").tolist(),
            folder / "run.json": lambda: self.run.read().checkpoints,
        }
        self.whole = {path: path.read_bytes() for path in self.readers}
        self.expected = {path: read() for path, read in self.readers.items()}

    def rows(self):
        store = HDF5Store()
        store.bind(self.run.features)
        found = store.open("train", "a1")
        taken = found.take([9, 3]).tobytes() if found.spec == SPEC else b""
        return taken, [block.features.tobytes() + block.output.tobytes() for block in found.blocks(ahead=0)]

    def try_(self, path, content):
        path.write_bytes(content)
        try:
            return self.readers[path]()
        except TrakError:
            return None
        finally:
            path.write_bytes(self.whole[path])


@pytest.mark.parametrize("seconds", [1, pytest.param(600, marks=pytest.mark.slow)])
def test_an_altered_file_is_refused_or_read_as_it_was(seconds, tmp_path):
    files = Files(tmp_path)
    tried = dict.fromkeys(("altered", "refused", "claims", "claims refused"), 0)
    start, before, number = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    quick = settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=False
    )

    @quick
    @given(st.sampled_from(list(files.readers)), EDITS)
    def altered(path, edits):
        content = edited(files.whole[path], edits)
        found = files.try_(path, content)
        tried["altered"] += 1
        tried["refused"] += found is None
        # A subset and a run record carry no checksum: other content of the right form is theirs to have.
        if found is not None and path.suffix == ".h5":
            # Rows that are read one by one are not compared with a checksum.
            assert found[1] == files.expected[path][1]

    @quick
    @given(st.sampled_from(["num_samples", "dim", "batch_size", "block_size", "split", "fingerprint", "dtype"]), JSON)
    def claimed(field, value):
        (path,) = (path for path in files.readers if path.name == "manifest.json")
        content = {**json.loads(Manifest.of(SPEC, "float32").dump()), field: value}
        content.pop("checksum")
        try:
            content["checksum"] = fingerprint(content)
        except ValueError:  # NaN, which JSON does not have
            return
        found = files.try_(path, json.dumps(content).encode())
        tried["claims"] += 1
        tried["claims refused"] += found is None
        assert found is None or found[1] == files.expected[path][1]

    while number == 0 or time.monotonic() - start < seconds:
        for test in (altered, claimed):
            seed(number)(test)()
        number += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert tried["refused"] > tried["altered"] / 3
    print(f"\n{tried}")
