"""The names and tensors in the files that people keep weights in. Nothing in a file is executed unless it is asked for.

==========================================  ==========================================================================
a Lightning ``.ckpt``                       what lies under ``state_dict``
``torch.save`` of a state dict              also under ``model_state_dict`` or ``model``
``.safetensors``                            one file, or the index of several
a folder that ``save_pretrained`` made      ``model.safetensors`` or ``pytorch_model.bin``, in one file or several; adapters of
                                            PEFT; a ``checkpoint-500`` of the Trainer of ``transformers``
==========================================  ==========================================================================
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trak_lightning.errors import CheckpointError

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint that holds more than weights has its state dict."""

ADAPTER = "adapter_config.json"

_IN_FOLDERS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read(path: Path, *, weights_only: bool = True) -> Mapping[str, Tensor]:
    """All names and tensors in a file or folder, on the CPU.

    Raises:
        CheckpointError: it is missing, cannot be read, or holds no weights.
    """
    if path.is_dir():
        return read(_in_folder(path), weights_only=weights_only)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file or folder {path} (looked in {path.absolute().parent})")
    if path.name.endswith(".index.json"):
        return _read_parts(path, weights_only)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, weights_only)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds the adapter of a model, and not the model."""
    return (path / ADAPTER).is_file()


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    steps = sorted(path.name for path in folder.glob("checkpoint-*"))
    if steps:
        raise CheckpointError(
            f"{folder} holds no weights itself but {len(steps)} checkpoints, such as {steps[0]}. Name these: {folder}/checkpoint-*"
        )
    if (folder / ".metadata").is_file() or (folder / "checkpoint").is_dir():
        raise CheckpointError(
            f"{folder} is a sharded checkpoint of FSDP or DeepSpeed. Make one file of it, for example with "
            "python -m lightning.pytorch.utilities.consolidate_checkpoint, and name that."
        )
    found = sorted(path.name for path in folder.iterdir())[:8]
    raise CheckpointError(
        f"{folder} holds no weights: expected {', '.join(_IN_FOLDERS[2:])}; found {', '.join(found) or 'nothing'}"
    )


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {type(error).__name__}: {error}") from error


def _read_parts(index: Path, weights_only: bool) -> Mapping[str, Tensor]:
    """The weights in several files, of which `index` says which holds what."""
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(places.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError("a file in it lies elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights: {type(error).__name__}: {error}") from error
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read(index.parent / file, weights_only=weights_only)
    missing = [name for name in places if name not in found]
    if missing:
        raise CheckpointError(f"{index} names {len(missing)} tensors that are not in its files, such as {missing[0]!r}")
    return found


def _read_torch(path: Path, weights_only: bool) -> Mapping[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {next(iter(str(error).splitlines()), 'it is cut short')} "
            "A file that you trust and that holds pickled objects can be read with weights_only=False."
        ) from error
    for state_dict in (found.get(key) for key in STATE_DICT_KEYS) if isinstance(found, Mapping) else ():
        if state_dict is not None and _is_state_dict(state_dict):
            return state_dict
    if not _is_state_dict(found):
        raise CheckpointError(
            f"{path} holds no state dict: expected names → tensors, or these under {', '.join(STATE_DICT_KEYS)}; found "
            f"{type(found).__name__}"
            + (f" with keys {sorted(map(str, found))[:8]}" if isinstance(found, Mapping) else "")
        )
    return found


def _is_state_dict(found: Any) -> bool:
    return isinstance(found, Mapping) and bool(found) and all(isinstance(value, Tensor) for value in found.values())
