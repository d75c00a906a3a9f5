"""Damaged and hostile NumPy files are refused by name; whole ones are read as NumPy reads them."""

import numpy as np
import pytest

from trak_lightning.errors import CorruptFileError
from trak_lightning.run.numpy_files import read_npy, read_npz


def damaged(whole):
    """The file cut short at many places, and with each of many bytes changed."""
    step = max(1, len(whole) // 80)
    yield from (whole[:length] for length in range(0, len(whole), step))
    for position in range(0, len(whole), step):
        yield whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    values = np.random.default_rng(0).standard_normal((7, 3))
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", one=values, two=values[0])
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), values)
    mapped = read_npy(tmp_path / "a.npy", mapped=True)
    np.testing.assert_array_equal(mapped, values)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    found = read_npz(tmp_path / "a.npz", "one")
    assert set(found) == {"one", "two"}
    np.testing.assert_array_equal(found["two"], values[0])


@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_array_file_raises_nothing_but_our_error(mapped, tmp_path):
    path, refused = tmp_path / "a.npy", 0
    np.save(path, np.arange(12.0))
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            read_npy(path, mapped=mapped)
        except CorruptFileError:
            refused += 1
    assert refused > 60


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_raises_nothing_but_our_error(save, tmp_path):
    path, refused = tmp_path / "a.npz", 0
    save(path, one=np.arange(40.0), two=np.arange(3))
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            read_npz(path, "one", "two")
        except CorruptFileError:
            refused += 1
    assert refused > 100


def test_what_is_not_an_array_of_numbers_is_refused_with_the_remedy(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "archive.npy.npz", one=np.ones(2))
    for path in (tmp_path / "objects.npy", tmp_path / "archive.npy.npz", tmp_path / "missing.npy"):
        with pytest.raises(CorruptFileError, match=rf"{path.name} cannot be read as NumPy arrays .*\. Delete it\."):
            read_npy(path, remedy="Delete it.")
    with pytest.raises(CorruptFileError, match="no array 'two' among one"):
        read_npz(tmp_path / "archive.npy.npz", "two")
