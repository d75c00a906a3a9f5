"""The store: the feature sets at an address."""

import json
from pathlib import Path
from typing import Any

import zarr

from trak_lightning.errors import CorruptFileError, SettingsError
from trak_lightning.stores.authoring import (
    COMPRESSIONS,
    DTYPES,
    Compression,
    Dtype,
    FeatureSet,
    FeatureSpec,
    FeatureStore,
    Manifest,
    no_such_set,
    require_name,
    require_option,
)
from trak_lightning_zarr.arrays import create_arrays, grow_arrays
from trak_lightning_zarr.feature_set import ZarrSet
from trak_lightning_zarr.place import Place, inside

ATTRIBUTE = "trak_lightning"
"""The attribute of a set's group that holds its manifest. It is written last: a group without it is not a set yet."""


class ZarrStore(FeatureStore):
    """Zarr version 3 arrays, at any address.

    ::

        URL/<split>/<checkpoint>/   features (n, k), scale (n,), output (n,), loss_weight (n,), curvature (n,)
                                    content (n,)
                                    blocks (blocks, 9): which blocks are whole, and their checksums

    Feature sets are found by split and checkpoint. Runs may share an address: an existing set is used if it was made with the
    same settings, and refused with both values if not. Processes that share a run directory share its blocks; processes
    that share only the address do not see each other, and may compute the same block twice.

    Args:
        url: a path, a ``.zip`` file to read from, or an address such as ``s3://bucket/run``. A relative path lies in
            ``RUN_DIR/features``.
        dtype: the type in which features are stored, as for ``hdf5``.
        compression: ``lz4`` or ``zstd`` after a bit shuffle; gradients hardly compress.
        storage_options: for fsspec, such as ``endpoint_url``. They are written to the run's configuration: keep
            credentials in the environment, or in the files where the file system looks for them.
    """

    trak_api = (2, 0)

    def __init__(
        self,
        url: str = "features.zarr",
        dtype: Dtype = "float32",
        compression: Compression = "none",
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        require_option("dtype", dtype, DTYPES)
        require_option("compression", compression, COMPRESSIONS)
        if not url:
            raise SettingsError("url must be a path or an address such as s3://bucket/run, got ''")
        self.url = url
        self.dtype: Dtype = dtype
        self.compression: Compression = compression
        self.storage_options = storage_options or {}

    def bind(self, root: Path) -> None:
        self._root = root
        self._address = inside(root, self.url)
        self._opened: Place | None = None

    @property
    def elsewhere(self) -> str | None:
        return None if Path(self._address).is_relative_to(self._root) else self._address

    @property
    def _place(self) -> Place:
        if self._opened is None:
            self._opened = Place(self._address, self.storage_options)
        return self._opened

    def create(self, spec: FeatureSpec) -> FeatureSet:
        name = _name(spec.split, spec.checkpoint)
        if self._manifest(name) is None:
            manifest = Manifest.of(spec, self.dtype)
            with self._place.writing(name):
                create_arrays(self._place.zarr, name, manifest, self.compression)
                self._write(name, manifest)
        found = self.open(spec.split, spec.checkpoint)
        found.manifest.require(spec, self.dtype, f"{self._address}/{name}")
        return found

    def grow(self, before: FeatureSpec, after: FeatureSpec) -> FeatureSet:
        found = self.open(after.split, after.checkpoint)
        if found.spec.num_samples != after.num_samples:
            name = _name(after.split, after.checkpoint)
            found.manifest.require(before, self.dtype, f"{self._address}/{name}")
            manifest = found.manifest.grown(after)
            with self._place.writing(name):
                grow_arrays(self._place.zarr, name, manifest)
                self._write(name, manifest)
        return self.create(after)

    def open(self, split: str, checkpoint: str) -> ZarrSet:
        name = _name(split, checkpoint)
        manifest = self._manifest(name)
        if manifest is None:
            raise no_such_set(split, checkpoint, self._address, self.list())
        return ZarrSet(self._place, name, manifest, self._root / name / "claims.lock")

    def list(self) -> list[tuple[str, str]]:
        found = []
        for split in self._place.keys("", children=True):
            for name in self._place.keys(split, children=True):
                if not name.endswith("zarr.json") and self._manifest(name) is not None:
                    found.append((split, name.rpartition("/")[2]))
        return sorted(found)

    def _manifest(self, name: str) -> Manifest | None:
        """Read the manifest of a set; None if there is no such set.

        Raises:
            CorruptFileError: it is damaged, or its split or checkpoint is not its name.
        """
        where = f"{self._address}/{name}"
        try:
            group = self._place.group(name)
            content = None if group is None else group.attrs.asdict().get(ATTRIBUTE)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptFileError(f"{where}/zarr.json is not the metadata of a group: {error}") from error
        if content is None:
            return None
        manifest = Manifest.load(json.dumps(content), where)
        if (manifest.spec.split, manifest.spec.checkpoint) != tuple(name.split("/")):
            raise CorruptFileError(
                f"{where} belongs to {manifest.spec.split}/{manifest.spec.checkpoint}: it was renamed or copied"
            )
        return manifest

    def _write(self, name: str, manifest: Manifest) -> None:
        group = zarr.open_group(self._place.zarr, path=name, mode="a", zarr_format=3)
        group.attrs.put({ATTRIBUTE: json.loads(manifest.dump())})
        self._place.flush(f"{name}/zarr.json")


def _name(split: str, checkpoint: str) -> str:
    require_name(split)
    require_name(checkpoint)
    return f"{split}/{checkpoint}"
