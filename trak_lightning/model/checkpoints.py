"""Checkpoints: read them as people write them, name them by what they contain, and load them into the user's model."""

import copy
import glob
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.data.content import raw_bytes
from trak_lightning.errors import CheckpointError
from trak_lightning.model import adapters, weight_files
from trak_lightning.model.checkpoint_names import belongs_to_a_loss, match_names, named_tensors, tied
from trak_lightning.model.compiled import uncompiled
from trak_lightning.model.dtensor import load, whole
from trak_lightning.model.hyperparameters import contradictions, settings_of
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.run.directory import RunDirectory
from trak_lightning.runtime.tracebacks import warn

CheckpointSource: TypeAlias = str | Path | nn.Module | Mapping[str, Any]
"""A file or folder (see `trak_lightning.model.weight_files`), a state dict, or a module with the weights."""

Checkpoints: TypeAlias = CheckpointSource | Sequence[CheckpointSource] | Mapping[str, CheckpointSource]
"""One checkpoint, or several."""


class CheckpointWarning(UserWarning):
    """A checkpoint fits, but not in every detail."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model, under an id that is a function of the weights alone.

    Weights in files are read when they are needed and not kept, so that any number of checkpoints fits in memory.
    """

    id: str
    source: str | Path | Mapping[str, Any]
    weights_only: bool = True

    @classmethod
    def of(cls, source: CheckpointSource, model: nn.Module, *, weights_only: bool = True) -> "Checkpoint":
        """Read a checkpoint and check that it fits `model`.

        Nothing in the file is executed unless ``weights_only=False``, which unpickles it: only for files you trust.

        Raises:
            CheckpointError: the file is missing, unreadable, holds no state dict, or does not fit the model.
        """
        found = weight_files.found_in(source) if isinstance(source, Mapping) else weight_files.Found({})
        given = settings_of(source) if isinstance(source, nn.Module) else found.hyperparameters
        source = source if isinstance(source, (str, Path)) else _in_memory(source, model)
        fitted = _fit(source, model, weights_only)
        others = _other_weights(source, found)
        for message in (*fitted.warnings, *others, *_other_function(source, given or fitted.hyperparameters, model)):
            warn(message, CheckpointWarning)
        return cls(_content_id(fitted.weights), source, weights_only)

    def __str__(self) -> str:
        return _describe(self.source)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into `model`. Weights that the checkpoint leaves out stay as they are.

        Raises:
            CheckpointError: the weights are no longer those that the checkpoint had.
        """
        weights = _fit(self.source, model, self.weights_only).weights
        if _content_id(weights) != self.id:
            raise CheckpointError(
                f"{self} has changed since this run first read it, or weights of the model that it leaves out have. Start "
                "again, with a file or a copy that does not change."
            )
        with uncompiled(model) as bare:
            load(bare, weights)


def expand(checkpoints: Checkpoints) -> list[CheckpointSource]:
    """List checkpoints: one alone or several; the files that a path with wildcards matches, or the checkpoint files in a
    folder, with numbers in their names in order.

    Raises:
        CheckpointError: nothing matches.
    """
    if isinstance(checkpoints, Mapping):
        several = not _is_one(checkpoints)
        checkpoints = list(checkpoints.values()) if several else [checkpoints]
    elif isinstance(checkpoints, (str, Path, nn.Module)):
        checkpoints = [checkpoints]
    elif not isinstance(checkpoints, Iterable):
        raise CheckpointError(
            f"checkpoints is {checkpoints!r}, of type {type(checkpoints).__name__}. Give paths, state dicts or modules: one, or a "
            "list of several."
        )
    return [found for source in checkpoints for found in _matches(source)]


def read_checkpoints(run: RunDirectory, model: nn.Module, *, weights_only: bool = True) -> list[Checkpoint]:
    """Read the checkpoints of a run again, from the files that they were featurized from, which move with the run directory.

    Raises:
        CheckpointError: a file is no longer there, or holds other weights.
        IncompleteRunError: nothing was featurized.
    """
    found = []
    for record in run.require_checkpoints():
        places = [place for place in run.places(record) if Path(place).exists()] or run.places(record)
        for place in places:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CheckpointWarning)  # said when the file was first read
                checkpoint = Checkpoint.of(place, model, weights_only=weights_only)
            if checkpoint.id == record.id:
                break
        else:
            raise CheckpointError(
                f"{record.source} holds other weights than those that were featurized (checkpoint {checkpoint.id}, expected "
                f"{record.id}). Restore the file, or featurize it in another run directory."
            )
        found.append(checkpoint)
    return found


def distinct(checkpoints: Sequence[Checkpoint]) -> list[int]:
    """The positions of `checkpoints`, less those of files that repeat an earlier one, as ``last.ckpt`` may repeat the
    best one. Warns of these."""
    first: dict[str, Checkpoint] = {}
    kept = []
    for position, checkpoint in enumerate(checkpoints):
        twin = first.setdefault(checkpoint.id, checkpoint)
        if twin is checkpoint or isinstance(checkpoint.source, Mapping):  # in memory it is a mistake, which others name
            kept.append(position)
        else:
            warn(f"checkpoint {checkpoint} holds the same weights as {twin} and is left out", CheckpointWarning)
    return kept


def has_wildcard(source: CheckpointSource) -> bool:
    """Whether this is a pattern of paths, such as ``out/checkpoint-*``."""
    return isinstance(source, (str, Path)) and glob.has_magic(str(source)) and not Path(source).exists()


def subset_path(source: str | Path) -> Path:
    """The file next to a checkpoint with the positions of the samples that it was trained on."""
    path = Path(source)
    return path.with_name(f"{path.name}.subset.npy") if path.is_dir() else path.with_suffix(".subset.npy")


@dataclass(frozen=True)
class _Fitted:
    """The weights of a checkpoint under the model's names, all of them, and what to warn of."""

    weights: Mapping[str, Any]
    """Tensors, and the extra state of modules."""
    warnings: Sequence[str]
    hyperparameters: Any = None
    """What the file says of the LightningModule that was trained."""


def _fit(source: str | Path | Mapping[str, Any], model: nn.Module, weights_only: bool) -> _Fitted:
    """Read a checkpoint and give every tensor the name that `model` has for it.

    What ``torch.compile`` and ``DistributedDataParallel`` put into names is taken out. Weights that a file holds once
    and the model has under several names are there under all of them. What an adapter, or a checkpoint for a
    LightningModule with ``strict_loading=False``, leaves out is taken from the model.
    """
    found, own = _read(source, weights_only), named_tensors(model)
    read, hyperparameters = found.state_dict, found.hyperparameters
    given = {name: value for name, value in read.items() if isinstance(value, Tensor)}
    extra = {name: value for name, value in read.items() if not isinstance(value, Tensor)}
    folder = None if isinstance(source, Mapping) else weight_files.adapter_folder(Path(source))
    if folder is not None:
        adapters.require_same_settings(folder, model)
    names = match_names(given, own)
    # PEFT is asked only about what is missing, since it cannot say of every adapter.
    in_adapter = {} if own.keys() <= set(names.values()) else adapters.names_in_file(model)
    names |= {name: in_adapter[name] for name in given if names[name] not in own and name in in_adapter}
    named = {names[name]: tensor for name, tensor in given.items()}
    named |= {name: named[other] for name, other in tied(named, own).items()}
    _require_tied(named, own, _describe(source))
    is_adapter = folder is not None or (bool(in_adapter) and all(name in in_adapter for name in given))
    missing = [name for name in own if name not in named]
    unexpected = [name for name in named if name not in own and not belongs_to_a_loss(name, model)]
    stray = [name for name in named if name not in own and name != "n_averaged" and belongs_to_a_loss(name, model)]
    required = [name for name in missing if not is_adapter or name in in_adapter.values()]
    partial = getattr(model, "strict_loading", True) is False and len(missing) < len(own)
    faults = [] if partial else _name_faults(required, unexpected)
    faults += [
        f"{name} is {tuple(named[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in own
        if name in named and named[name].shape != own[name].shape
    ][:1]
    if faults:
        # Hooks may translate names of older versions, or be those of a module inside a wrapper.
        by_torch = _fit_by_torch(read, model) or _fit_by_torch({**named, **extra}, model)
        if by_torch is not None:
            return _Fitted(by_torch, list(_other_weights(source, found)), hyperparameters)
        kind = "adapter" if is_adapter else "checkpoint"
        raise CheckpointError(
            f"{kind} {_describe(source)} does not fit {type(model).__name__}: {'; '.join(faults)}."
            + _remedy(required, unexpected, own)
            + _settings_hint(found.hyperparameters, model)
        )
    weights = {name: named[name] if name in named else whole(tensor.detach()) for name, tensor in own.items()}
    ignored = [*stray, *(unexpected if partial else ())]
    notes = [*_notes(_describe(source), missing, ignored, own), *_other_weights(source, found)]
    return _Fitted({**weights, **extra}, notes, hyperparameters)


def _read(source: str | Path | Mapping[str, Any], weights_only: bool) -> weight_files.Found:
    if isinstance(source, Mapping):
        return weight_files.Found(source)
    return weight_files.read(Path(source), weights_only=weights_only)


def _other_weights(source: CheckpointSource, found: weight_files.Found) -> Iterator[str]:
    if found.others:
        yield (
            f"checkpoint {_describe(source)} also holds weights of this model under {' and '.join(found.others)}, maybe averaged ones; those "
            f"under [{found.key!r}] are taken. For the others, give that state dict, checkpoint{found.others[0]}, or a file of it."
        )


def _other_function(source: CheckpointSource, hyperparameters: Any, model: nn.Module) -> Iterator[str]:
    if differ := contradictions(hyperparameters, model):
        yield (
            f"checkpoint {_describe(source)} was trained with other hyperparameters than the model has: {'; '.join(differ)}. With these, "
            f"the same weights may be another function, to which everything is then attributed: give the model the hyperparameters of "
            f"the checkpoint, as load_from_checkpoint and from_pretrained do."
        )


def _in_memory(source: nn.Module | Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The state dict in `source`; tensors that it shares with `model`, which will hold other weights, are copied."""
    if isinstance(source, nn.Module):
        state_dict: Mapping[str, Any] = {name: tensor.detach() for name, tensor in named_tensors(source).items()}
    elif isinstance(source, Mapping):
        state_dict = weight_files.found_in(source).state_dict
    else:
        raise CheckpointError(
            f"a checkpoint must be a path, a state dict or a module, got {type(source).__name__}; several of these in a list"
        )
    shared = {_address(tensor) for tensor in named_tensors(model).values()}
    kept: dict[str, Any] = {}
    for name, value in state_dict.items():
        if weight_files.is_extra_state(str(name)):
            kept[name] = copy.deepcopy(value)
        else:
            tensor = _tensor(name, value)
            kept[name] = tensor.clone() if _address(tensor) in shared else tensor
    return kept


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} in a state dict must be a tensor or an array, got {type(value).__name__}"
        ) from error


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # a tensor without storage
        return id(tensor)


def _is_one(mapping: Mapping[str, Any]) -> bool:
    """Whether a mapping is one checkpoint, not several by name."""
    inner = [value for value in mapping.values() if isinstance(value, (str, Path, nn.Module, Mapping))]
    return len(inner) < len(mapping) or any(key in mapping for key in weight_files.STATE_DICT_KEYS)


def _require_tied(named: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse a checkpoint with different weights for names of one and the same parameter."""
    first: dict[int, str] = {}
    for name, tensor in own.items():
        other = first.setdefault(id(tensor), name) if name in named else name
        if other != name and not (named[other] is named[name] or torch.equal(named[other], named[name])):
            raise CheckpointError(
                f"checkpoint {source} has different weights for {other} and {name}, which are one parameter of the model. It "
                "was trained without tying them (tie_word_embeddings=False): give the model with that setting."
            )


def _fit_by_torch(given: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor] | None:
    """All weights after ``model.load_state_dict(given)``, whose hooks may translate names of older versions; None if it
    refuses. The model stays as it was."""
    with leave_unchanged(model), uncompiled(model) as bare:
        try:
            left = bare.load_state_dict(dict(given), strict=False)
        except Exception:
            return None
        if left.missing_keys or left.unexpected_keys:
            return None
        return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def _name_faults(missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
    faults = [f"{len(missing)} missing, such as {missing[0]!r}"] if missing else []
    return faults + ([f"{len(unexpected)} unexpected, such as {unexpected[0]!r}"] if unexpected else [])


def _remedy(missing: Sequence[str], unexpected: Sequence[str], own: Mapping[str, Tensor]) -> str:
    if missing and unexpected:
        hint = _prefix_hint(missing, unexpected)
    elif missing and not any(own[name].requires_grad for name in missing):
        hint = (
            " What is missing is frozen. If the checkpoint leaves it out on purpose, set strict_loading = False on the "
            "LightningModule, or give {**model.state_dict(), **state_dict}."
        )
    else:
        hint = ""
    return hint or " Give the model class and settings that the checkpoint was trained with."


def _settings_hint(hyperparameters: Any, model: nn.Module) -> str:
    differ = contradictions(hyperparameters, model)
    of_cli = " A config.yaml that LightningCLI saved leaves out what link_arguments sets." * hasattr(model, "hparams")
    return (f" Settings differ: {'; '.join(differ)}." if differ else "") + of_cli


def _prefix_hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for longer, shorter, where in ((unexpected, missing, "checkpoint"), (missing, unexpected, "model")):
        prefix = next((name.removesuffix(shorter[0]) for name in longer if name.endswith(f".{shorter[0]}")), "")
        if prefix and {prefix + name for name in shorter} <= set(longer):
            return f" The names differ only by the prefix {prefix!r} in the {where}: strip or add it."
    return ""


def _notes(source: str, missing: Sequence[str], ignored: Sequence[str], own: Mapping[str, Tensor]) -> Iterator[str]:
    untouched = [name for name in missing if own[name].requires_grad]
    if untouched:
        yield (
            f"checkpoint {source} leaves {len(untouched)} trainable parameters as they are in the model, such as "
            f"{untouched[0]!r}. If they were trained, save them too (PEFT: modules_to_save); else freeze them or leave them "
            "out with the argument parameters."
        )
    if ignored:
        yield f"checkpoint {source} holds {len(ignored)} tensors that the model does not have, such as {ignored[0]!r}; they are ignored"


def _matches(source: CheckpointSource) -> Iterator[CheckpointSource]:
    if files := weight_files.checkpoints_in(Path(source)) if isinstance(source, (str, Path)) else []:
        found = [str(path) for path in files]
    elif has_wildcard(source):
        found = glob.glob(str(source))  # noqa: PTH207  a pattern may begin anywhere
    else:
        yield source
        return
    if not found:
        raise CheckpointError(f"no checkpoint matches {source} (looked from {Path.cwd()})")
    for path in sorted((path for path in found if not path.endswith(".subset.npy")), key=_natural):
        yield from [path] if files else _matches(path)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort ``checkpoint-500`` before ``checkpoint-1000``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _describe(source: CheckpointSource) -> str:
    return str(source) if isinstance(source, (str, Path)) else "<state dict>"


def _content_id(state_dict: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name]
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value!r}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()[:12]
