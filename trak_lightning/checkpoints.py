"""Reading checkpoints, naming them by what they contain, and loading them into the user's model."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.compiled import original_name, uncompiled
from trak_lightning.errors import CheckpointError
from trak_lightning.sharded import load

CheckpointSource: TypeAlias = str | Path | Mapping[str, Tensor]
"""A state dict, or the path of a file that holds one (``torch.save``) or of a Lightning ``.ckpt``."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model, under an id that is a function of the weights alone.

    Weights in files are read when they are needed and not kept, so that any number of checkpoints fits in memory.
    """

    id: str
    source: CheckpointSource
    weights_only: bool = True

    @classmethod
    def of(cls, source: CheckpointSource, model: nn.Module, *, weights_only: bool = True) -> "Checkpoint":
        """Read a checkpoint and check that it fits `model`.

        Nothing in the file is executed unless ``weights_only=False``, which unpickles it: only for files you trust.

        Raises:
            CheckpointError: the file is missing, unreadable, holds no state dict, or does not fit the model.
        """
        state_dict = read_state_dict(source, weights_only=weights_only)
        _check_fit(state_dict, model, _describe(source))
        return cls(_content_id(state_dict), source, weights_only)

    def __str__(self) -> str:
        return _describe(self.source)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into `model`."""
        state_dict = read_state_dict(self.source, weights_only=self.weights_only)
        if _content_id(state_dict) != self.id:
            raise CheckpointError(f"{self} was changed while this run was using it; start again with a file that stays")
        with uncompiled(model) as bare:
            load(bare, state_dict)


def read_state_dict(source: CheckpointSource, *, weights_only: bool = True) -> Mapping[str, Tensor]:
    """The names and tensors of a checkpoint; those of a compiled model have the names of the model itself.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds no state dict.
    """
    if isinstance(source, Mapping):
        return {original_name(name): tensor for name, tensor in source.items()}
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path} (looked in {path.absolute().parent})")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {str(error).splitlines()[0]} "
            "A file that you trust and that holds pickled objects can be read with weights_only=False."
        ) from error
    state_dict = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise CheckpointError(
            f"{path} holds no state dict: expected names → tensors, or a Lightning checkpoint with a 'state_dict'; "
            f"found {type(found).__name__}"
            + (f" with keys {sorted(map(str, found))[:8]}" if isinstance(found, Mapping) else "")
        )
    return {original_name(name): tensor for name, tensor in state_dict.items()}


def _describe(source: CheckpointSource) -> str:
    return "<state dict>" if isinstance(source, Mapping) else str(source)


def _check_fit(state_dict: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    own = {original_name(name): tensor for name, tensor in model.state_dict().items()}
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shapes = [
        f"{name} is {tuple(state_dict[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in own
        if name in state_dict and state_dict[name].shape != own[name].shape
    ]
    faults = [f"{len(missing)} missing, such as {missing[0]!r}"] if missing else []
    faults += [f"{len(unexpected)} unexpected, such as {unexpected[0]!r}"] if unexpected else []
    faults += shapes[:1]
    if faults:
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(model).__name__}: {'; '.join(faults)}."
            + (_prefix_hint(missing, unexpected) if missing and unexpected else "")
            + " Give the model class and settings that the checkpoint was trained with."
        )


def _content_id(state_dict: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    for longer, shorter, where in ((unexpected, missing, "checkpoint"), (missing, unexpected, "model")):
        prefix = longer[0].removesuffix(shorter[0])
        if prefix != longer[0] and {name.removeprefix(prefix) for name in longer} == set(shorter):
            return f" The names differ only by the prefix {prefix!r} in the {where}: strip or add it."
    return ""
