"""One block of a feature set as an HDF5 file: written whole, read with every claim that it makes checked first."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import h5py
import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, IncompleteRunError, PluginError, TrakError
from trak_lightning.run.atomic import atomic_write, new_hdf5
from trak_lightning.stores.arrays import checksum, layout
from trak_lightning.stores.buffers import Buffers
from trak_lightning.stores.form import Form, Forms, Types, read_into

Array = npt.NDArray[Any]
Compression: TypeAlias = Literal["none", "lz4", "zstd"]
COMPRESSIONS = get_args(Compression)
BITSHUFFLE = 32008
"""The registered number of the filter."""
LARGEST_COMPRESSED = 2**32
"""Bytes: a small compressed file that claims to hold more is not unpacked."""
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BlockKey:
    """Which block of which set: what its file must say of itself, and the shape and type of what it holds."""

    set_id: str
    block: int
    start: int
    rows: int
    dim: int
    dtype: str

    @cached_property
    def types(self) -> Types:
        """Name → shape and type of everything in the file."""
        return layout(self.rows, self.dim, self.dtype)

    @property
    def described(self) -> dict[str, Any]:
        """The attribute ``block`` without its checksums."""
        return {
            "schema_version": SCHEMA_VERSION,
            "set": self.set_id,
            "block": self.block,
            "start": self.start,
            "rows": self.rows,
            "dtype": self.dtype,
        }

    def text(self, checksums: dict[str, str]) -> bytes:
        """The attribute ``block``."""
        return json.dumps({**self.described, "xxh3_64": checksums}).encode()

    def forms(self, known: Forms) -> list[Form]:
        """Those of the `known` that its file may have."""
        return known.of(self.types, len(self.text(dict.fromkeys(self.types, "0" * 16))))


def write_block_file(
    path: Path, key: BlockKey, arrays: dict[str, Array], compression: Compression, written: Forms
) -> None:
    """Write `arrays`, which are those of ``key.types``; `written` are the forms of files that this function wrote.

    Raises:
        StorageError: the file could not be written; an older one is unharmed.
    """
    text = key.text({name: checksum(values) for name, values in arrays.items()})
    with atomic_write(path) as part:
        form = next(iter(key.forms(written)), None)
        if form is not None and compression == "none":
            with part.open("rb+", buffering=0) as raw:
                form.write(raw.fileno(), arrays, text)
            return
        offsets = _write_with_hdf5(part, arrays, text, compression)
        with part.open("rb", buffering=0) as raw:
            written.learn(_form(raw.fileno(), key.types, offsets, text))


def _write_with_hdf5(
    path: Path, arrays: dict[str, Array], text: bytes, compression: Compression
) -> dict[str, int | None]:
    """Returns where each array begins."""
    options = _filters(compression) | ({} if compression == "none" else {"chunks": arrays["features"].shape})
    with new_hdf5(path) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **(options if name == "features" else {}))
        file.attrs["block"] = np.bytes_(text)  # of fixed length: a text of variable length would cost a heap of 4 KB
        return {name: file[name].id.get_offset() for name in arrays}


class BlockFile:
    """A block file open for reading, found to be what `key` says."""

    def __init__(
        self,
        descriptor: int,
        key: BlockKey,
        text: bytes,
        offsets: Mapping[str, int | None],
        datasets: Mapping[str, h5py.h5d.DatasetID],
    ) -> None:
        """`text` is the attribute ``block``; `datasets` has those arrays that have no offset."""
        self._descriptor, self._offsets, self._datasets = descriptor, offsets, datasets
        self._types = key.types
        described = _described(text)
        self._checksums = described.pop("xxh3_64")
        expected = key.described
        if described != expected:
            wrong = next(name for name in {**expected, **described} if described.get(name) != expected.get(name))
            raise ValueError(f"its {wrong} is {described.get(wrong)!r}, and {expected.get(wrong)!r} was expected")

    def offset(self, name: str) -> int | None:
        """Where the array begins in the file; None if it is compressed."""
        return self._offsets[name]

    def read(self, name: str, *, verify: bool) -> Array:
        """A whole array as it is stored."""
        values = np.empty(*self._types[name])
        if (offset := self._offsets[name]) is not None:  # a third of the time that HDF5 takes
            read_into(self._descriptor, values, offset)
        else:
            self._datasets[name].read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        if verify:
            self.verify(name, values)
        return values

    def verify(self, name: str, values: Array) -> None:
        """Require that an array which was read is the one that was written.

        Raises:
            ValueError: its checksum is another.
        """
        if (found := checksum(values)) != self._checksums[name]:
            raise ValueError(f"the checksum of its {name} is {found}, and {self._checksums[name]} was written")


def read_block_file(
    path: Path, key: BlockKey, known: Forms, *, verify: bool, buffers: Buffers | None = None
) -> dict[str, Array]:
    """All arrays of a block file as they are stored, in memory from `buffers`; `verify` compares them with their checksums.

    Raises:
        IncompleteRunError, CorruptFileError: as `open_block_file`.
    """
    empty = np.empty if buffers is None else buffers.empty
    with _refusing(path):
        with path.open("rb", buffering=0) as raw:
            for form in key.forms(known):
                arrays = {name: empty(*kind) for name, kind in key.types.items()}
                if (text := form.read(raw.fileno(), arrays)) is not None:
                    file = BlockFile(raw.fileno(), key, text, form.offsets, {})
                    for name, values in arrays.items() if verify else ():
                        file.verify(name, values)
                    return arrays
        with open_block_file(path, key, known) as file:
            return {name: file.read(name, verify=verify) for name in key.types}


@contextmanager
def open_block_file(path: Path, key: BlockKey, known: Forms) -> Iterator[BlockFile]:
    """Open a block file; `known` are the forms of those that were opened before.

    Raises:
        IncompleteRunError: there is none.
        CorruptFileError: it is not the block that `key` says; nothing of it was read into memory.
    """
    with _refusing(path):
        with path.open("rb", buffering=0) as raw:
            for form in key.forms(known):
                if (text := form.text_of(raw.fileno())) is not None:
                    yield BlockFile(raw.fileno(), key, text, form.offsets, {})
                    return
        with h5py.File(path, "r") as file:
            yield _made_out(file.id, key, known)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever a damaged file leads to is an error of ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise IncompleteRunError(f"{path} is missing: not featurised yet, or deleted. Run featurize again.") from error
    except TrakError:
        raise
    # A damaged file makes h5py raise nearly anything, among it RuntimeError, KeyError, TypeError and MemoryError.
    except Exception as error:
        raise CorruptFileError(
            f"{path} is not the block that its name and manifest say: {error}. Delete the file and run featurize again."
        ) from error


def _made_out(file: h5py.h5f.FileID, key: BlockKey, known: Forms) -> BlockFile:
    """A file that HDF5 has opened."""
    descriptor, types = file.get_vfd_handle(), key.types
    size = os.fstat(descriptor).st_size
    # The low-level interface of h5py, since the other one takes three times as long.
    datasets = {name: _open_dataset(file, name, *expected, size) for name, expected in types.items()}
    text, offsets = _read_text(file), {name: dataset.get_offset() for name, dataset in datasets.items()}
    found = BlockFile(descriptor, key, text, offsets, datasets)
    known.learn(_form(descriptor, types, offsets, text))
    return found


def _form(descriptor: int, types: Types, offsets: Mapping[str, int | None], text: bytes) -> Form | None:
    certain = {name: offset for name, offset in offsets.items() if offset is not None}
    return Form.of(descriptor, types, certain, text) if len(certain) == len(types) else None


def _open_dataset(
    file: h5py.h5f.FileID, name: str, shape: tuple[int, ...], dtype: str, file_size: int
) -> h5py.h5d.DatasetID:
    if file.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"its {name} is a link to something else")
    dataset = h5py.h5d.open(file, name.encode())
    if dataset.shape != shape or dataset.dtype.str != np.dtype(dtype).str:
        raise ValueError(f"its {name} is {dataset.dtype} {dataset.shape}, and {np.dtype(dtype)} {shape} was expected")
    creation = dataset.get_create_plist()
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if creation.get_layout() == h5py.h5d.CHUNKED:
        filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        if nbytes > LARGEST_COMPRESSED or creation.get_chunk() != shape or filters != [BITSHUFFLE]:
            raise ValueError(f"its {name} would unpack to {nbytes} bytes in chunks of {creation.get_chunk()}")
        _filters("lz4")  # hdf5plugin must be imported for HDF5 to unpack it
    elif (
        creation.get_layout() != h5py.h5d.CONTIGUOUS
        or creation.get_external_count()
        or (offset := dataset.get_offset()) is None
        or offset + nbytes > file_size
    ):
        raise ValueError(f"its {name} is not in the file")
    return dataset


def _read_text(file: h5py.h5f.FileID) -> bytes:
    attribute = h5py.h5a.open(file, b"block")
    if attribute.shape != () or attribute.dtype.kind != "S" or attribute.get_storage_size() > 2**16:
        raise ValueError("its attribute 'block' is not text")
    text = np.empty((), attribute.dtype)
    attribute.read(text)
    return bytes(text.item())


def _described(text: bytes) -> dict[str, Any]:
    described = json.loads(text)
    if not isinstance(described, dict) or not isinstance(described.get("xxh3_64"), dict):
        raise ValueError(f"its attribute 'block' is {text[:80]!r}")
    return described


def _filters(compression: Compression) -> dict[str, Any]:
    if compression == "none":
        return {}
    try:
        import hdf5plugin
    except ImportError as error:
        raise PluginError(
            "compressed features need the package hdf5plugin: pip install 'trak-lightning[compression]'"
        ) from error
    return {"compression": hdf5plugin.Bitshuffle(cname=compression)}
