"""Features in Zarr version 3: a folder, a zip file to read from, or any address that fsspec knows."""

from trak_lightning_zarr.pack import pack
from trak_lightning_zarr.store import ZarrStore

__all__ = ["ZarrStore", "pack"]
