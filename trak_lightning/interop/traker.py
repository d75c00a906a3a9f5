"""Import features saved by traker, the paper's own library, into a run directory. Needs no torch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning.errors import CorruptFileError, IncompleteRunError
from trak_lightning.run.directory import CheckpointRecord, RunDirectory
from trak_lightning.scoring.base import Array
from trak_lightning.stores.base import FeatureRows, FeatureSpec, FeatureStore

BLOCK = 1024
"""Rows of one block."""


@dataclass(frozen=True)
class Imported:
    """What was read: the model ids in the save directory, and the target sets that have features under all of them."""

    models: tuple[int, ...]
    targets: tuple[str, ...]
    num_samples: int
    dim: int


def import_traker(save_dir: str | Path, run: RunDirectory, store: FeatureStore) -> Imported:
    """Read the projected gradients in a `TRAKer`'s ``save_dir`` into a run directory: training set and all target sets.

    traker stores the gradients Φ and the loss weights q = 1 − p of training samples, and the gradients of targets. The
    output f = log((1 − q)/q) and the curvature q(1 − q) of training samples follow from q, since all of traker's losses are
    logistic in f (image and text classification, CLIP). traker does not store outputs and loss weights of targets; they are
    0 here, which no score reads and nothing shows. Its ``features.mmap`` holds Φ(ΦᵀΦ)⁻¹ and is not read.

    Raises:
        IncompleteRunError: no metadata, a model that was not featurized, or gradients that were deleted.
        IncompatibleRunError: other rows were imported under the same names before.
        CorruptFileError: a file is not what traker writes.
    """
    folder = Path(save_dir)
    metadata = _metadata(folder)
    try:
        n, k = int(metadata["train set size"]), int(metadata["JL dimension"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{folder / 'metadata.json'} is not traker's metadata: {error!r} is missing") from None
    models = _models(folder)
    experiments = _experiments(folder, models)
    projector = {"class": "traker", "matrix": str(metadata.get("JL matrix type")), "dim": k}
    records = []
    for model in models:
        part = folder / str(model)
        grads = _array(part / "grads.mmap", (n, k))
        weights = np.asarray(_array(part / "out_to_loss.mmap", (n, 1)))[:, 0]
        checkpoint = _digest(grads)[:12]
        records.append(CheckpointRecord(checkpoint, f"model {model} of {folder}"))
        settings = {"checkpoint": checkpoint, "projector": projector, "precision": str(grads.dtype)}
        _write(store, "train", settings, grads, weights.astype(np.float32))
        for name, size in experiments.items():
            _write(store, name, settings, _array(part / f"{name}_grads.mmap", (size, k)), None)
    run.register(records)
    return Imported(tuple(models), tuple(experiments), n, k)


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "metadata.json"
    if not path.is_file():
        raise IncompleteRunError(f"{folder} is not a save_dir of traker: there is no {path.name} in it")
    return _json(path)


def _models(folder: Path) -> list[int]:
    found: dict[int, dict[str, Any]] = {}
    for path in folder.glob("id_*.json"):
        found |= {int(model): state for model, state in _json(path).items()}
    if not found:
        raise IncompleteRunError(f"{folder} has no models: traker writes id_0.json and so on when it featurizes")
    unfinished = [model for model, state in sorted(found.items()) if not state.get("is_featurized")]
    if unfinished:
        raise IncompleteRunError(
            f"model {unfinished[0]} in {folder} is not fully featurized. Finish it with traker, or delete id_{unfinished[0]}.json to "
            "leave it out."
        )
    return sorted(found)


def _experiments(folder: Path, models: list[int]) -> dict[str, int]:
    """Target sets that have gradients under every model, with their sizes."""
    path = folder / "experiments.json"
    described = _json(path) if path.exists() else {}
    return {
        name: int(each["num_targets"])
        for name, each in described.items()
        if all((folder / str(model) / f"{name}_grads.mmap").exists() for model in models)
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CorruptFileError(f"{path} must hold a JSON object, found {type(found).__name__}")
    return found


def _array(path: Path, shape: tuple[int, int]) -> Array:
    if not path.exists():
        raise IncompleteRunError(
            f"{path} is missing: gradients are deleted by finalize_features(del_grads=True). Featurize again, with traker or with "
            "trak featurize."
        )
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} is not an array that traker wrote: {error}") from None
    if array.shape != shape:
        raise CorruptFileError(f"{path} must have shape {shape}, as the metadata says; it has {array.shape}")
    return array


def _digest(*arrays: Array) -> str:
    """The SHA-256 of what arrays hold."""
    hasher = hashlib.sha256()
    for array in arrays:
        for first in range(0, len(array), BLOCK):
            hasher.update(array[first : first + BLOCK].tobytes())
    return hasher.hexdigest()


def _write(store: FeatureStore, split: str, settings: dict[str, Any], grads: Array, weights: Array | None) -> None:
    # Targets that replaced others in the save directory are told apart from these by what they hold: there are no samples to compare.
    data = _digest(grads, *([] if weights is None else [weights]))[:16]
    settings = {**settings, "source": "traker", "data": data}
    spec = FeatureSpec(split, settings["checkpoint"], len(grads), grads.shape[1], BLOCK, BLOCK, settings)
    feature_set = store.create(spec)
    for block in feature_set.missing_blocks():
        feature_set.write_block(block, _rows(feature_set.spec.block_range(block), grads, weights))


def _rows(positions: range, grads: Array, weights: Array | None) -> FeatureRows:
    part = slice(positions.start, positions.stop)
    q = np.zeros(len(positions), np.float32) if weights is None else weights[part]
    # In half precision p or 1 − p may round to 0, whose logarithm is infinite.
    inside = np.clip(q.astype(np.float64), 1e-7, 1 - 1e-7)
    output = np.zeros(len(q)) if weights is None else np.log1p(-inside) - np.log(inside)
    return FeatureRows(
        index=np.arange(positions.start, positions.stop),
        features=grads[part].astype(np.float32),
        output=output.astype(np.float32),
        loss_weight=q,
        curvature=(q * (1 - q)).astype(np.float32),
    )


def describe(imported: Imported, run: RunDirectory) -> Iterator[str]:
    """Describe what was read and what to do next."""
    yield (
        f"{len(imported.models)} models × {imported.num_samples} training samples, k = {imported.dim}; targets: "
        f"{', '.join(imported.targets) or 'none'} in {run.features}"
    )
    for name in imported.targets:
        yield f"next: trak score --run_dir {run.path} --target_split {name}"
