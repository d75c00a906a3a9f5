"""Read the names and tensors in weight files of every common format. Nothing in a file is executed unless asked for.

==========================================  ==========================================================================
a Lightning ``.ckpt``                       its ``state_dict``
``torch.save`` of a state dict              also under ``model_state_dict`` or ``model``
``.safetensors``                            one file, or the index of several
a folder that ``save_pretrained`` made      ``model.safetensors`` or ``pytorch_model.bin``, in one file or several; adapters of
                                            PEFT; a ``checkpoint-500`` of the Trainer of ``transformers``
==========================================  ==========================================================================
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trak_lightning.errors import CheckpointError, needed_for
from trak_lightning.model.checkpoint_names import named_tensors

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint that holds more than weights keeps its state dict."""

_EXTRA_STATE = "_extra_state"
"""Last part of the names under which modules save what is not a tensor (``torch.nn.Module.get_extra_state``)."""

_CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth")

_IN_FOLDERS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Found(NamedTuple):
    """What is in a file."""

    state_dict: Mapping[str, Any]
    """All names and tensors, on the CPU."""
    hyperparameters: Any = None
    """Those of the LightningModule, or the configuration of a model of ``transformers``, if there are any."""
    key: str = ""
    """Where the state dict is in the file, if the file holds more."""
    others: tuple[str, ...] = ()
    """Where it holds other weights of the same model, such as averaged ones."""


def read(path: Path, *, weights_only: bool = True) -> Found:
    """Read a file or folder.

    Raises:
        CheckpointError: it is missing, cannot be read, or holds no weights.
    """
    if path.is_dir():
        found = read(_in_folder(path), weights_only=weights_only)
        return found if adapter_folder(path) else Found(found.state_dict, _config(path / "config.json"))
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file or folder {path} (looked in {path.absolute().parent})")
    if path.name.endswith(".index.json"):
        return _read_parts(path, weights_only)
    return Found(_read_safetensors(path)) if path.suffix == ".safetensors" else _read_torch(path, weights_only)


def adapter_folder(path: Path) -> Path | None:
    """The folder of an adapter of PEFT, if `path` is one or its file of weights."""
    folder = path if path.is_dir() else path.parent if path.name.startswith("adapter_model.") else None
    return folder if folder is not None and (folder / "adapter_config.json").is_file() else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint files in a folder that is not itself one model's."""
    if not folder.is_dir() or any((folder / name).is_file() for name in _IN_FOLDERS):
        return []
    return [path for path in folder.iterdir() if path.suffix in _CHECKPOINT_SUFFIXES and path.is_file()]


def found_in(checkpoint: Mapping[str, Any]) -> Found:
    """The state dict in a checkpoint that also holds other things, or that `checkpoint` itself is."""
    keys = (key for key in STATE_DICT_KEYS if isinstance(checkpoint.get(key), Mapping) and checkpoint[key])
    if (key := next(keys, None)) is None:
        return Found(checkpoint, checkpoint.get("hyper_parameters"))
    others = tuple(_alike(checkpoint, _tensors(checkpoint[key]), key))
    return Found(checkpoint[key], checkpoint.get("hyper_parameters"), key, others)


def _alike(found: Mapping[str, Any], tensors: Counter[Any], taken: str, place: str = "") -> Iterator[str]:
    """The places of state dicts in `found` that hold all of these tensors, whatever the names begin with, but for the one taken."""
    for key, value in found.items():
        if isinstance(value, Mapping) and (place or key != taken):
            if tensors and tensors <= _tensors(value):
                yield f"{place}[{key!r}]"
            else:
                yield from _alike(value, tensors, taken, f"{place}[{key!r}]")


def _tensors(state_dict: Mapping[str, Any]) -> Counter[Any]:
    """How many tensors there are of each shape and last part of a name."""
    return Counter(
        (str(name).rpartition(".")[2], value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)
    )


def is_extra_state(name: str) -> bool:
    """Whether a state dict may hold something other than a tensor under this name."""
    return name.rpartition(".")[2] == _EXTRA_STATE


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    steps = sorted(path.name for path in folder.glob("checkpoint-*"))
    if steps:
        raise CheckpointError(
            f"{folder} holds no weights itself but {len(steps)} checkpoints, such as {steps[0]}. Name these: {folder}/checkpoint-*"
        )
    if (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} holds no weights itself. Name its folder of checkpoints: {folder / 'checkpoints'}"
        )
    if (folder / ".metadata").is_file() or (folder / "checkpoint").is_dir():
        raise CheckpointError(
            f"{folder} is a sharded checkpoint of FSDP or DeepSpeed. Convert it to one file, for example with "
            "python -m lightning.pytorch.utilities.consolidate_checkpoint, and name that file."
        )
    if files := sorted(folder.glob("*/*.ckpt")):
        raise CheckpointError(
            f"{folder} holds no weights itself but folders of them, such as {files[0].relative_to(folder)}. Name these: {folder}/*/*.ckpt"
        )
    found = sorted(path.name for path in folder.iterdir())[:8]
    raise CheckpointError(
        f"{folder} holds no weights: expected files *.ckpt, or one of {', '.join(_IN_FOLDERS[2:])}; found {', '.join(found) or 'nothing'}"
    )


def _config(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    with needed_for(str(path), "safetensors", CheckpointError):
        from safetensors.torch import load_file
    try:
        return load_file(path)
    except Exception as error:
        if text := _text_in(path):
            raise CheckpointError(text) from None
        raise CheckpointError(f"{path} cannot be read as safetensors: {type(error).__name__}: {error}") from None


def _read_parts(index: Path, weights_only: bool) -> Found:
    """The weights in several files; `index` says which file holds which."""
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(places.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError("it names a file outside its folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {type(error).__name__}: {error}") from None
    found: dict[str, Any] = {}
    for file in files:
        found |= read(index.parent / file, weights_only=weights_only).state_dict
    missing = [name for name in places if name not in found]
    if missing:
        raise CheckpointError(f"{index} names {len(missing)} tensors that are not in its files, such as {missing[0]!r}")
    return Found(found)


def _text_in(path: Path) -> str | None:
    """Say so if a file is empty, or text, such as a log or a pointer of Git LFS."""
    with path.open("rb") as file:
        head = file.read(48)
    if not head:
        return f"{path} is empty: it was not written to its end. Save it again."
    if not all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return None
    remedy = " It is a pointer of Git LFS: run git lfs pull." if head.startswith(b"version https://git-lfs") else ""
    return f"{path} is a text file and holds no weights; it begins with {head.decode()!r}.{remedy}"


def _reason(message: str) -> str:
    """What torch says of a file that it cannot read, without its advice, which is about ``torch.load``."""
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", message):
        return f"it holds an object of {found[1]}, which only unpickling can read."
    if "TorchScript" in message:
        return "it is a TorchScript archive."
    first = next(iter(message.splitlines()), "it is cut short.")
    return "it holds more than tensors." if "Weights only load failed" in first else first


def _read_torch(path: Path, weights_only: bool) -> Found:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        if text := _text_in(path):
            raise CheckpointError(text) from None
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {_reason(str(error))} If you trust the file and it "
            "holds pickled objects, such as hyperparameters, read it with weights_only=False, an argument of TRAK(…) and an option of the commands."
        ) from error
    if isinstance(found, nn.Module):  # with weights_only=False
        return Found({name: tensor.detach() for name, tensor in named_tensors(found).items()})
    inner = found_in(found) if isinstance(found, Mapping) else Found({})
    if not _is_state_dict(inner.state_dict):
        raise CheckpointError(
            f"{path} holds no state dict: expected names → tensors, or these under {', '.join(STATE_DICT_KEYS)}; found "
            f"{type(found).__name__}"
            + (f" with keys {sorted(map(str, found))[:8]}" if isinstance(found, Mapping) else "")
        )
    return inner


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and any(isinstance(value, Tensor) for value in found.values())
        and all(isinstance(value, Tensor) or is_extra_state(str(name)) for name, value in found.items())
    )
