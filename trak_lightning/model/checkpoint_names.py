"""Names of the tensors of a model, and which of them a name in a checkpoint means."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn

from trak_lightning.model.compiled import original_name

_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What wrappers insert into names: DataParallel and DDP, torch.compile, Fabric, FSDP, activation checkpointing."""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer of `model` under every name that it has, in the order of ``state_dict()``.

    Unlike ``state_dict()``, which a model may override to save less, this leaves nothing out. Names are those of the
    model before compilation.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **persistent}.items():
            if tensor is not None:
                found[original_name(f"{prefix}.{name}" if prefix else name)] = tensor
    return found


def match_names(given: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """The model's name for each name in a checkpoint; a name that the model does not know stays as it is.

    Names match if they are equal, or equal without what wrappers inserted at the front or in the middle; or if all names of
    the model begin with the name of one module, such as the attribute of a LightningModule that holds a pretrained model.
    """
    given = list(given)
    if prefix := _holder(given, own):
        return {name: prefix + name for name in given}
    cores = Counter(map(_core, own))
    by_core = {_core(name): name for name in own if cores[_core(name)] == 1}
    exact = set(given) & set(own)
    if max(cores.values(), default=1) > 1 and all(name.startswith("module.") for name in given):
        stripped = {name: name.removeprefix("module.") for name in given}
        if set(stripped.values()) >= set(own):
            return stripped
    names = {name: name if name in exact else by_core.get(_core(name), name) for name in given}
    taken = Counter(names.values())
    return {name: name if name in exact or taken[new] > 1 else new for name, new in names.items()}


def _holder(given: Collection[str], own: Collection[str]) -> str:
    """The name, with a period, of the one module that holds the model of a checkpoint; empty if there is none."""
    prefix = next(iter(own), "").partition(".")[0] + "."
    known = set(own)
    held = all(name.startswith(prefix) for name in own) and all(prefix + name in known for name in given)
    return prefix if held and not known & set(given) else ""


def tied(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """For each of the model's names that a checkpoint lacks: another name of the same tensor that it has."""
    known = {id(own[name]): name for name in given if name in own}
    return {name: known[id(tensor)] for name, tensor in own.items() if name not in given and id(tensor) in known}


def belongs_to_a_loss(name: str, model: nn.Module) -> bool:
    """Whether a name that `model` does not know is the state of a loss or metric, which training saved along with it:
    ``criterion.weight``, ``head.loss_fn.pos_weight``, ``val_acc.tp``, and the ``n_averaged`` of an averaged model; or of a loss that
    `model` has without class weights."""
    modules = {original_name(known): module for known, module in model.named_modules(remove_duplicate=False)}
    parts = name.split(".")
    depth = next((i for i in range(len(parts)) if ".".join(parts[: i + 1]) not in modules), 0)
    if isinstance(modules[".".join(parts[:depth])], nn.modules.loss._Loss):
        return True
    return any(_LOSS_OR_METRIC.search(part) for part in parts[depth:])


_LOSS_OR_METRIC = re.compile(
    r"(?i)^n_averaged$|loss|crit|objective|metric|accuracy|(class|pos|label)_?weights?$|(^|_)(acc|auroc|auc|f1|confmat|b?ce|nll|kld?)($|_|\d)"
)


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
