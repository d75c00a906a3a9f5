"""Write feature sets to a new run directory with another store. No torch."""

import inspect
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from trak_lightning import registry
from trak_lightning.errors import StorageError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, RunRecord
from trak_lightning.stores.base import FeatureRows, FeatureSpec, FeatureStore
from trak_lightning.stores.configured import open_store


def write_run(
    run: RunDirectory,
    choice: Any,
    sources: Sequence[RunDirectory],
    sets: Iterable[tuple[FeatureSpec, Iterable[FeatureRows]]],
    dtype: str,
) -> None:
    """Fill a new run directory with `sets`, and copy from `sources` what scoring and further featurizing need.

    `choice` is a store's name, or ``{"name": …, **options}``; `dtype` is the default for its option of that name.

    Raises:
        StorageError: a set could not be stored, or the store does not keep it.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    kind = registry.resolve("stores", options["name"]).load()
    if "dtype" in inspect.signature(kind).parameters:
        options.setdefault("dtype", dtype)
    store: FeatureStore = registry.create("stores", options)
    store.bind(run.features)
    keys = []
    for spec, rows in sets:
        created = store.create(spec)
        for block, part in enumerate(rows):
            created.write_block(block, part)
        keys.append((spec.split, spec.checkpoint))
    records = list({record.id: record for source in sources for record in source.read().checkpoints}.values())
    for record in records:
        _copy_what_is_known(record, sources, run)
    config = next((source.config for source in sources if source.config.exists()), None)
    if config is not None:
        _write_config(config, run, options)
    run.path.mkdir(parents=True, exist_ok=True)
    found = open_store(run, options).list()
    if lost := sorted(set(keys) - set(found)):
        raise StorageError(f"{options['name']} has not kept {lost[0][0]}/{lost[0][1]}; choose a store that lasts")
    run.write(RunRecord(checkpoints=tuple(records), meaning=sources[0].read().meaning))


def _copy_what_is_known(record: CheckpointRecord, sources: Sequence[RunDirectory], run: RunDirectory) -> None:
    """Copy the subset of a checkpoint, and what projectors and tasks learned under it."""
    subset = next((s for source in sources if (s := source.read_subset(record.id)) is not None), None)
    if subset is not None:
        run.write_subset(record.id, subset)
    for place in (RunDirectory.projection, RunDirectory.reference):
        found = next((path for source in sources if (path := place(source, record.id)).exists()), None)
        if found is not None:
            with atomic_write(place(run, record.id)) as part:
                shutil.copyfile(found, part)


def _write_config(config: Path, run: RunDirectory, options: dict[str, Any]) -> None:
    """Write the configuration of a source, with this run directory and this store in it."""
    rest = {name: value for name, value in options.items() if name != "name"}
    content = yaml.safe_load(config.read_text())
    content["run_dir"] = str(run.path)
    content["store"] = {"class_path": registry.resolve("stores", options["name"]).class_path, "init_args": rest}
    with atomic_write(run.config) as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False))
