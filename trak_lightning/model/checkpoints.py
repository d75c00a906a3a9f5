"""Naming checkpoints by what they contain, and loading them into the user's model."""

import glob
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.errors import CheckpointError
from trak_lightning.model import weight_files as weights
from trak_lightning.model.compiled import original_name, uncompiled
from trak_lightning.model.dtensor import load

CheckpointSource: TypeAlias = str | Path | Mapping[str, Tensor]
"""A state dict, or the path of a file or folder that holds one: see `trak_lightning.model.weight_files`."""

_PARALLEL = "module."
"""What ``DataParallel`` and ``DistributedDataParallel`` put in front of the names of the model that they wrap."""


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
        state_dict = read_state_dict(source, model, weights_only=weights_only)
        _check_fit(state_dict, model, _describe(source))
        return cls(_content_id(state_dict), source, weights_only)

    def __str__(self) -> str:
        return _describe(self.source)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into `model`."""
        state_dict = read_state_dict(self.source, model, weights_only=self.weights_only)
        if _content_id(state_dict) != self.id:
            raise CheckpointError(f"{self} was changed while this run was using it; start again with a file that stays")
        with uncompiled(model) as bare:
            load(bare, state_dict)


def expand(sources: Sequence[CheckpointSource]) -> list[CheckpointSource]:
    """`sources` with the files and folders that paths with wildcards match, numbers in their names in order.

    Raises:
        CheckpointError: nothing matches.
    """
    return [found for source in sources for found in _matches(source)]


def has_wildcard(source: CheckpointSource) -> bool:
    """Whether this is a pattern of paths, such as ``out/checkpoint-*``."""
    return isinstance(source, (str, Path)) and glob.has_magic(str(source)) and not Path(source).exists()


def subset_path(source: str | Path) -> Path:
    """Where the positions of the samples that a checkpoint was trained on lie, beside it."""
    path = Path(source)
    return path.with_name(f"{path.name}.subset.npy") if path.is_dir() else path.with_suffix(".subset.npy")


def read_state_dict(source: CheckpointSource, model: nn.Module, *, weights_only: bool = True) -> Mapping[str, Tensor]:
    """The names and tensors of a checkpoint, with the names that `model` has.

    What ``torch.compile`` and ``DistributedDataParallel`` put into names is taken out. Weights that a file holds once
    and the model has under several names are there under all of them. The weights beside those of an adapter are the model's own.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds no state dict.
    """
    state_dict = source if isinstance(source, Mapping) else weights.read(Path(source), weights_only=weights_only)
    named = {original_name(name): tensor for name, tensor in state_dict.items()}
    own = {original_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    if not isinstance(source, Mapping) and weights.is_adapter(Path(source)):
        return _around_adapter(named, own, model, _describe(source))
    if all(name.startswith(_PARALLEL) for name in named) and not any(name.startswith(_PARALLEL) for name in own):
        named = {name.removeprefix(_PARALLEL): tensor for name, tensor in named.items()}
    return named | _tied(named, own)


def _tied(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that only other names of the same parameter are given for."""
    given = {id(own[name]): tensor for name, tensor in named.items() if name in own}
    return {name: given[id(tensor)] for name, tensor in own.items() if name not in named and id(tensor) in given}


def _around_adapter(
    adapter: Mapping[str, Tensor], own: Mapping[str, Tensor], model: nn.Module, source: str
) -> Mapping[str, Tensor]:
    """The model's own weights, with those of its PEFT adapter from a file, where names leave out the adapter's name."""
    found = [(name, module) for name, module in model.named_modules() if hasattr(module, "peft_config")]
    if not found:
        raise CheckpointError(
            f"{source} holds an adapter, and {type(model).__name__} has none. Give the model with its adapter: "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    prefix, peft_model = found[0]
    prefix = f"{original_name(prefix)}." if prefix else ""
    names = "|".join(re.escape(name) for name in peft_model.peft_config)
    saved = {re.sub(rf"(\.modules_to_save)?\.({names})(?=\.|$)", "", name.removeprefix(prefix)): name for name in own}
    unknown = [name for name in adapter if name not in saved]
    if unknown:
        raise CheckpointError(
            f"adapter {source} does not fit {type(model).__name__}: {len(unknown)} of its {len(adapter)} tensors are not in the "
            f"model, such as {unknown[0]!r}. Give the model the adapter that was trained."
        )
    return {name: tensor.detach() for name, tensor in own.items()} | {
        saved[name]: tensor for name, tensor in adapter.items()
    }


def _matches(source: CheckpointSource) -> Iterator[CheckpointSource]:
    if not has_wildcard(source):
        yield source
        return
    found = glob.glob(str(source))  # noqa: PTH207  a pattern may begin anywhere
    if not found:
        raise CheckpointError(f"no checkpoint matches {source} (looked from {Path.cwd()})")
    yield from sorted((path for path in found if not path.endswith(".subset.npy")), key=_natural)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts ``checkpoint-500`` before ``checkpoint-1000``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


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
