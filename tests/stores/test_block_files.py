"""Block files that are written and read without HDF5, because one like them is known."""

import gc
import random
import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import h5py
import numpy as np
import pytest

from trak_lightning.errors import CorruptFileError
from trak_lightning.stores.buffers import KEPT, SMALLEST, Buffers
from trak_lightning.stores.encoding import DTYPES
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC, filled_store, rows

MANY = replace(SPEC, num_samples=12 * SPEC.block_size - 3, dim=700)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("block-*.h5")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_file_is_byte_for_byte_the_one_that_hdf5_writes(dtype, tmp_path):
    created = filled_store(HDF5Store(dtype), tmp_path / "known", MANY)
    store = HDF5Store(dtype)
    store.bind(tmp_path / "unknown")
    for block in range(MANY.num_blocks):
        store.create(MANY).write_block(block, rows(MANY, block))  # by a set that has seen no file yet
    assert files(created.folder) == files(tmp_path / "unknown/train/a1")
    assert len(files(created.folder)) == 12


def test_hdf5_makes_out_one_file_of_a_kind(tmp_path):
    created = filled_store(HDF5Store(), tmp_path, MANY)
    with patch("h5py.File", wraps=h5py.File) as opened:
        assert sum(len(part) for part in created.blocks(ahead=0)) == MANY.num_samples
        # The lengths of the texts differ by the digits of the numbers in them, and the last block has fewer rows.
        assert opened.call_count < 6


def test_a_flipped_byte_of_a_file_whose_like_is_known_is_refused_or_changes_no_row(tmp_path):
    created = filled_store(HDF5Store(), tmp_path, MANY)
    created.read_block(4)
    path, generator = created.folder / "block-00005.h5", random.Random(0)
    whole, expected, refused = path.read_bytes(), created.read_block(5), 0
    for position in generator.sample(range(len(whole)), 400):
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ (1 << generator.randrange(8))]) + whole[position + 1 :]
        )
        try:
            np.testing.assert_array_equal(created.read_block(5).features, expected.features)
        except CorruptFileError:
            refused += 1
    assert refused > 300


def test_memory_is_used_again_when_no_view_of_it_is_left():
    buffers = Buffers()
    first = buffers.empty((SMALLEST // 4, 2), "<f4")
    first[:] = 1
    place, view = first.ctypes.data, first[5:].reshape(-1)[::3]
    del first
    gc.collect()
    second = buffers.empty((SMALLEST // 4, 2), "<f4")
    second[:] = 2
    assert second.ctypes.data != place
    assert (view == 1).all()
    del view
    gc.collect()
    assert buffers.empty((SMALLEST // 2,), "<i4").ctypes.data == place


def test_memory_of_many_blocks_that_were_held_at_once_is_not_kept():
    tracemalloc.start()
    buffers = Buffers()
    held = [buffers.empty((SMALLEST,), "u1") for _ in range(5 * KEPT)]
    peak = tracemalloc.get_traced_memory()[0]
    del held
    gc.collect()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 0.3 * peak
