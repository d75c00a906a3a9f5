"""Fewer bits per number: how large the error is, that nothing overflows silently, and that reading is exact."""

import numpy as np
import pytest
import torch

from trak_lightning.errors import NonFiniteGradientError
from trak_lightning.stores.encoding import DTYPES, decode, encode
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC, rows

ERROR = {"float64": 0, "float32": 0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 253}
"""Largest error of a number, relative to the largest number of its row."""


def samples():
    """Rows of very different sizes, a row of zeros, and rows whose largest number rounds up to a power of two."""
    features = np.random.default_rng(0).standard_normal((200, 33)).astype(np.float32)
    features *= np.logspace(-28, 34, 200, dtype=np.float32)[:, None]
    features[7] = 0
    features[100:105] /= np.abs(features[100:105]).max(axis=1, keepdims=True) * np.float32(1 + 2**-13)
    return features


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_is_small_against_the_row_and_nothing_is_infinite(dtype):
    features = samples()
    found = decode(*encode(features, dtype), dtype)
    assert np.isfinite(found).all()
    largest = np.abs(features).max(axis=1, keepdims=True)
    assert (np.abs(found.astype(np.float64) - features) <= ERROR[dtype] * largest).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_read_can_be_written_again_and_stays_the_same(dtype):
    once = decode(*encode(samples(), dtype), dtype)
    np.testing.assert_array_equal(decode(*encode(once, dtype), dtype), once)


def test_every_float16_is_read_as_numpy_reads_it():
    stored = np.arange(2**16, dtype=np.uint16).view("<f2")
    stored = stored[np.isfinite(stored)].reshape(-1, 64)
    found = decode(stored, np.ones(len(stored), np.float32), "float16")
    np.testing.assert_array_equal(found.view(np.int32), stored.astype(np.float32).view(np.int32))


def test_bfloat16_is_that_of_torch():
    features = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    features = features[np.isfinite(features)].reshape(1, -1)
    expected = torch.from_numpy(features).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(encode(features, "bfloat16")[0], expected)


@pytest.mark.parametrize("dtype", DTYPES[:1] + DTYPES[2:])
def test_what_a_type_cannot_hold_is_refused_and_nothing_stored(dtype, tmp_path):
    store = HDF5Store(dtype)
    store.bind(tmp_path)
    created, large = store.create(SPEC), rows(SPEC, 0)
    features = large.features.astype(np.float64)
    features[3, 1] = 1e39 if dtype != "bfloat16" else 3.4e38
    with pytest.raises(NonFiniteGradientError, match=f"overflow {dtype}: largest value"):
        created.write_block(0, type(large)(large.index, features, large.output, large.loss_weight, large.curvature))
    assert created.missing_blocks() == [0, 1, 2]


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_stored_and_read_in_every_way(dtype, compression, tmp_path):
    store = HDF5Store(dtype, compression)
    store.bind(tmp_path)
    created = store.create(SPEC)
    for block in range(3):
        created.write_block(block, rows(SPEC, block))
    expected = np.concatenate([decode(*encode(rows(SPEC, block).features, dtype), dtype) for block in range(3)])
    np.testing.assert_array_equal(np.concatenate([block.features for block in created.blocks()]), expected)
    np.testing.assert_array_equal(created.take([22, 3, 3, 9]), expected[[22, 3, 3, 9]])
    np.testing.assert_array_equal(created.rows(5, 20).features, expected[5:20])
