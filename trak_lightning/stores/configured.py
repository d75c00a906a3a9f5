"""Open the store that the configuration of a run directory names. No torch."""

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
    store: FeatureStore = registry.create("stores", choice or configured(run, "store") or "hdf5")
    store.bind(run.features)
    return store


def configured(run: RunDirectory, setting: str) -> Any:
    """A setting in ``config.yaml``; None if there is no such file, as after work in Python.

    Raises:
        CorruptFileError: it is not the configuration of a run.
    """
    if not run.config.exists():
        return None
    try:
        config = yaml.safe_load(run.config.read_text())
        store = config["store"]["class_path"]
        return config[setting] if isinstance(store, str) else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{run.config} is not the configuration of a run ({error}). Name the {setting} with --{setting}, or delete that file."
        ) from error
