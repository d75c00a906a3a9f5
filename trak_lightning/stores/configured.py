"""Open the store that the configuration of a run directory names. No torch."""

from pathlib import Path
from typing import Any

import yaml

from trak_lightning import registry
from trak_lightning.errors import CorruptFileError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.stores.base import FeatureStore


def open_store(run: RunDirectory, choice: Any = None) -> FeatureStore:
    """Open the store that `choice` names, else the one in ``config.yaml``, else HDF5 files in the run directory.

    Raises:
        IncompleteRunError: there is no such run directory.
        CorruptFileError: its configuration is not YAML.
    """
    run.require()
    store: FeatureStore = registry.create("stores", choice or _configured(run.config) or "hdf5")
    store.bind(run.features)
    return store


def _configured(config: Path) -> dict[str, Any] | None:
    if not config.exists():
        return None
    try:
        store = yaml.safe_load(config.read_text())["store"]
        return {"name": store["class_path"], **(store.get("init_args") or {})}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{config} is not the configuration of a run ({error}). Name the store with --store."
        ) from error
