"""Stored features as an array: what NumPy gives for the same index, read from as few blocks as possible."""

import numpy as np
import pytest
import torch

from trak_lightning.errors import IncompleteRunError
from trak_lightning.stores.feature_array import FeatureArray
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.stores.memory import MemoryStore
from trak_lightning.testing.stores import SPEC, filled_store, rows

EXPECTED = np.concatenate([rows(SPEC, block).features for block in range(3)])
MASK = np.arange(23) % 3 == 1
KEYS = [
    0,
    -1,
    np.int64(7),
    slice(None),
    slice(3, 19),
    slice(20, 2, -3),
    slice(9, 9),
    slice(-5, None),
    [22, 0, 9, 9, -8],
    [],
    np.array([[1, 2], [3, -4]], np.int32),
    np.array([5], np.uint8),
    torch.tensor([3, 1, 20]),
    torch.tensor(4),
    MASK,
    MASK.tolist(),
    (),
    ...,
    (5, 2),
    (5, slice(1, 3)),
    (slice(2, 12), [0, 4, 4]),
    (slice(2, 12), -1),
    ([3, 1, 20], slice(None, None, 2)),
    ([3, 1, 20], [0, 1, 4]),
    ([3, 1, 20], 2),
    np.ix_([3, 1, 20], [0, 4]),
    (MASK, slice(2)),
    (..., 3),
    (4, ...),
    (slice(4), ..., [1, 0]),
]


@pytest.fixture(params=[MemoryStore, HDF5Store, lambda: HDF5Store("float64")])
def array(request, tmp_path):
    return FeatureArray(filled_store(request.param(), tmp_path))


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_an_index_gives_what_numpy_gives(key, array):
    found, expected = array[key], EXPECTED[key]
    np.testing.assert_array_equal(found, expected)
    assert (np.shape(found), found.dtype) == (expected.shape, array.dtype)


@pytest.mark.parametrize(
    "key", [23, -24, [0, 23], [-24], 1.5, [0.5], "a", (0, 5), (0, 0, 0), np.ones(22, bool), (..., ...), None], ids=repr
)
def test_an_index_that_numpy_refuses_is_refused(key, array):
    with pytest.raises(IndexError):
        array[key]


def test_it_is_an_array(array):
    assert (array.shape, array.ndim, len(array)) == ((23, 5), 2, 23)
    np.testing.assert_array_equal(np.asarray(array), EXPECTED)
    np.testing.assert_array_equal(list(array), EXPECTED)
    assert np.asarray(array, np.float16).dtype == np.float16
    assert np.asarray(array).dtype == array.dtype
    with pytest.raises(ValueError, match="without a copy"):
        array.__array__(copy=False)  # as NumPy 2 calls it for np.array(array, copy=False)
    for name in ("index", "output", "loss_weight", "curvature", "content"):
        whole = np.concatenate([getattr(rows(SPEC, block), name) for block in range(3)])
        np.testing.assert_array_equal(getattr(array, name), whole)


@pytest.mark.parametrize(
    ("key", "blocks"),
    [
        (9, {1}),
        (slice(3, 9), {0, 1}),
        ([17, 2, 18], {0, 2}),
        (slice(16, 8, -7), {1, 2}),
        (slice(0), set()),
        ([], set()),
    ],
)
def test_only_the_blocks_of_an_index_are_read(key, blocks, tmp_path):
    created = filled_store(MemoryStore(), tmp_path)
    array, read, right = FeatureArray(created), set(), created.read_block
    assert array.dtype == np.float32
    created.read_block = lambda block: read.add(block) or right(block)
    array[key]
    assert read == blocks
    assert array.index.tolist() == list(range(23))
    assert read == blocks


def test_rows_that_are_missing_are_refused_when_they_are_asked_for(tmp_path):
    created = filled_store(HDF5Store(), tmp_path)
    (created.folder / "block-00001.h5").unlink()
    array = FeatureArray(created)
    np.testing.assert_array_equal(array[:8], EXPECTED[:8])
    with pytest.raises(IncompleteRunError, match=r"block-00001\.h5 is missing"):
        array[:9]
