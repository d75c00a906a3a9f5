"""Features in HDF5: one file a block, under its final name only when it is whole."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from trak_lightning.atomic import atomic_hdf5, atomic_write
from trak_lightning.comparison import require_same
from trak_lightning.errors import (
    CorruptFileError,
    IncompleteRunError,
    NonFiniteGradientError,
    SettingsError,
    StorageError,
)
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.validation import COLUMNS, identity, require_rows

SCHEMA_VERSION = 1
DTYPES = ("float32", "float64")


class HDF5Store(FeatureStore):
    """Block files and a manifest for each feature set; docs/storage.md describes them.

    ::

        ROOT/<split>/<checkpoint>/manifest.json
        ROOT/<split>/<checkpoint>/block-00000.h5 …

    Args:
        dtype: in which features are stored, ``float32`` or ``float64``.
    """

    def __init__(self, dtype: Literal["float32", "float64"] = "float32") -> None:
        if dtype not in DTYPES:
            raise SettingsError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.dtype = dtype

    def bind(self, root: Path) -> None:
        self._root = root

    def create(self, spec: FeatureSpec) -> FeatureSet:
        folder = self._folder(spec.split, spec.checkpoint)
        if not (folder / "manifest.json").exists():
            manifest = {"schema_version": SCHEMA_VERSION, "dtype": self.dtype, **asdict(spec)}
            with atomic_write(folder / "manifest.json") as part:
                part.write_text(json.dumps(manifest, indent=1))
        found = HDF5Set(folder)
        require_same(
            identity(found.spec) | {"store.dtype": found.dtype}, identity(spec) | {"store.dtype": self.dtype}, folder
        )
        return found

    def open(self, split: str, checkpoint: str) -> FeatureSet:
        folder = self._folder(split, checkpoint)
        if not (folder / "manifest.json").exists():
            raise IncompleteRunError(
                f"there are no features of {split!r} under checkpoint {checkpoint} in {self._root}; there are "
                f"{', '.join('/'.join(key) for key in self.list()) or 'none'}. Run trak featurize first."
            )
        return HDF5Set(folder)

    def list(self) -> list[tuple[str, str]]:
        return sorted((path.parent.parent.name, path.parent.name) for path in self._root.glob("*/*/manifest.json"))

    def _folder(self, split: str, checkpoint: str) -> Path:
        for name in (split, checkpoint):
            if not name or name.startswith(".") or Path(name).name != name or "\\" in name:
                raise StorageError(f"{name!r} cannot name a folder: use letters, digits, '-', '_' and '.'")
        return self._root / split / checkpoint


class HDF5Set(FeatureSet):
    """A folder of block files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            version, self.dtype = manifest.pop("schema_version"), manifest.pop("dtype")
            self.spec = FeatureSpec(**manifest)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{folder / 'manifest.json'} is not a manifest ({type(error).__name__}: {error}). Delete the folder {folder} "
                "and run featurize again."
            ) from error
        if version != SCHEMA_VERSION or self.dtype not in DTYPES:
            raise CorruptFileError(
                f"{folder / 'manifest.json'} has schema version {version} and dtype {self.dtype!r}; this trak_lightning "
                f"reads version {SCHEMA_VERSION} and {', '.join(DTYPES)}"
            )
        # Ties every block file to this manifest, so that a file of another set is noticed.
        self._fingerprint = fingerprint(identity(self.spec))

    def write_block(self, block: int, rows: FeatureRows) -> None:
        require_rows(self.spec, block, rows)
        with np.errstate(over="ignore"):
            features = rows.features.astype(self.dtype, copy=False)
        if not np.isfinite(features).all():
            raise NonFiniteGradientError(
                f"the features of block {block} overflow {self.dtype}: largest value {np.abs(rows.features).max():.3g}. "
                "Use store={'name': 'hdf5', 'dtype': 'float64'}."
            )
        with atomic_hdf5(self._path(block)) as file:
            for name in COLUMNS:
                file.create_dataset(name, data=features if name == "features" else getattr(rows, name))
            file.attrs.update(self._attributes(block))

    def read_block(self, block: int) -> FeatureRows:
        path = self._path(block)
        if not path.exists():
            raise IncompleteRunError(f"{path} is missing: not featurised yet, or deleted. Run featurize again.")
        try:
            with h5py.File(path, "r") as file:
                found = {name: file.attrs.get(name) for name in self._attributes(block)}
                expected = len(self.spec.block_range(block))
                shapes = {name: file[name].shape for name in COLUMNS}
                if found != self._attributes(block):
                    raise CorruptFileError(self._not_this_block(path, f"its attributes are {found}"))
                for name, shape in shapes.items():
                    if shape != ((expected, self.spec.dim) if name == "features" else (expected,)):
                        raise CorruptFileError(self._not_this_block(path, f"{name} has shape {shape}"))
                return FeatureRows(**{name: file[name][()] for name in COLUMNS})
        except (OSError, KeyError, RuntimeError) as error:
            raise CorruptFileError(self._not_this_block(path, str(error))) from error

    def missing_blocks(self) -> list[int]:
        there = {path.name for path in self._folder.glob("block-*.h5")}
        return [block for block in range(self.spec.num_blocks) if self._path(block).name not in there]

    def _path(self, block: int) -> Path:
        return self._folder / f"block-{block:05d}.h5"

    def _attributes(self, block: int) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "fingerprint": self._fingerprint, "block": block}

    def _not_this_block(self, path: Path, seen: str) -> str:
        return (
            f"{path} is not the block that its name and manifest say: {seen}. Delete the file and run featurize again."
        )
