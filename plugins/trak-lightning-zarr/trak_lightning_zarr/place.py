"""An address, opened: the Zarr store in it, and what Zarr's own interface does not offer (listing, sizes, flushing)."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from trak_lightning.errors import PluginError, StorageError, TrakError
from trak_lightning.stores.authoring import fsync, refused


class Place:
    """The place of a Zarr hierarchy.

    Args:
        url: a path, or an address such as ``s3://bucket/run``. One that ends in ``.zip`` is read and never written.
        options: options of the file system, for fsspec.

    Raises:
        PluginError: no installed package knows this kind of address.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.read_only = url.endswith(".zip")
        try:
            filesystem, root = fsspec.core.url_to_fs(f"zip::{url}" if self.read_only else url, **options)
        except ImportError as error:  # fsspec knows which package is missing
            raise PluginError(f"{url} cannot be opened: {error}") from error
        except ValueError as error:
            raise PluginError(f"{url} is not an address that fsspec knows: {error}") from error
        except OSError as error:
            raise StorageError(f"cannot open {url}: {error}") from error
        self._files = filesystem
        self._root = root.rstrip("/")
        self.local = Path(root) if isinstance(filesystem, LocalFileSystem) else None
        self.zarr: Store = self._zarr_store(options)

    def _zarr_store(self, options: Mapping[str, Any]) -> Store:
        if self.local is not None:
            return LocalStore(self.local)
        if self.read_only:
            return FsspecStore(AsyncFileSystemWrapper(self._files, asynchronous=True), read_only=True, path=self._root)
        return FsspecStore.from_url(self.url, storage_options=dict(options) or None)

    def require_writable(self) -> None:
        """Refuse to write to a zip file.

        Raises:
            StorageError: this is a zip file.
        """
        if self.read_only:
            raise StorageError(
                f"{self.url} is a zip file, and these are only read: a process killed while it writes to one loses all of "
                "it. Write to a folder, and make a zip file from it when it is complete: "
                "python -m trak_lightning_zarr FOLDER FILE.zip"
            )

    def keys(self, prefix: str, *, children: bool = False) -> Iterator[str]:
        """The present keys below a prefix, or only those directly in it."""
        self._files.invalidate_cache()
        top = f"{self._root}/{prefix}".strip("/") if self.read_only else f"{self._root}/{prefix}".rstrip("/")
        try:
            found = self._files.ls(top, detail=False) if children else self._files.find(top)
        except FileNotFoundError:
            return
        start = len(self._root) + 1 if self._root else 0
        for path in found:
            yield path.rstrip("/")[start:]

    def nbytes(self, prefix: str) -> int:
        """The size of everything below a prefix in bytes."""
        self._files.invalidate_cache()
        return int(self._files.du(f"{self._root}/{prefix}"))

    def read(self, key: str) -> bytes:
        """Read the bytes of one object."""
        return bytes(self._files.cat_file(f"{self._root}/{key}"))

    def size(self, key: str) -> int:
        """The size of one object in bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        self._files.invalidate_cache()
        return int(self._files.size(f"{self._root}/{key}".lstrip("/" if self.read_only else "")))

    def flush(self, *keys: str) -> None:
        """Flush files of a local folder, so that they survive a loss of power; object storage needs no flushing."""
        if self.local is not None:
            files = [self.local / key for key in keys]
            for path in [*files, *{folder for file in files for folder in list(file.parents)[:2]}]:
                fsync(path)

    def unfinished(self, prefix: str) -> list[Path]:
        """Files that killed writers left below a prefix of a local folder."""
        return [] if self.local is None else list((self.local / prefix).rglob("*.partial"))

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn errors of the file system or the server into ours.

        Raises:
            StorageError: it refused to write `what`.
        """
        self.require_writable()
        where = f"{self.url}/{what}"
        try:
            yield
        except TrakError:
            raise
        except OSError as error:
            raise refused(where, error) from error
        # Every kind of server has errors of its own.
        except Exception as error:
            raise StorageError(f"cannot write {where}: {type(error).__name__}: {error}") from error

    def group(self, name: str) -> zarr.Group | None:
        """Open the group of that name; None if there is none.

        Raises:
            StorageError: the file system or the server refused.
        """
        try:
            return zarr.open_group(self.zarr, path=name, mode="r", zarr_format=3)
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, TypeError, KeyError, ValueError):
            raise
        except Exception as error:
            raise StorageError(f"cannot read {self.url}/{name}: {type(error).__name__}: {error}") from error


def inside(root: Path, url: str) -> str:
    """Place a relative path in `root`; return anything else as it is."""
    if "::" in url or "://" in url:
        return url
    return os.fspath(root / Path(url).expanduser())
