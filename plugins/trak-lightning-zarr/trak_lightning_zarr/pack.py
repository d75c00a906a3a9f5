"""Pack a finished store into one zip file, for sharing."""

import zipfile
from pathlib import Path
from typing import Any

from trak_lightning.errors import DataError
from trak_lightning.stores.authoring import atomic_write
from trak_lightning_zarr.place import Place


def pack(url: str, output: Path, storage_options: dict[str, Any] | None = None) -> int:
    """Copy everything at an address to a zip file, written whole or not at all; returns the number of objects.

    Raises:
        DataError: the zip file exists, or there is nothing at the address.
        StorageError: it could not be written.
    """
    if output.suffix != ".zip" or output.exists():
        raise DataError(f"{output} must be the name of a new file that ends in .zip")
    place = Place(url, storage_options or {})
    keys = [key for key in place.keys("") if not key.endswith(".partial")]
    if not keys:
        raise DataError(f"there is nothing at {url}")
    with atomic_write(output) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(keys):
            archive.writestr(key, place.read(key))
    return len(keys)
