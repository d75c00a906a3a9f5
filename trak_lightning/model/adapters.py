"""Models with adapters of PEFT: how a saved adapter names tensors of the model, and what the model must look like."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trak_lightning.errors import CheckpointError
from trak_lightning.model.checkpoint_names import named_tensors
from trak_lightning.model.compiled import original_name

IS_TRAINABLE = "PeftModel.from_pretrained(base, folder, is_trainable=True)"

_PREFIX = "base_model.model."
"""What ``save_pretrained`` puts in front of names."""

_PROMPT = "prompt_embeddings"
"""How prompt and prefix tuning name what they save: the output of the prompt encoder."""

_SCALES = ("peft_type", "lora_alpha", "alpha_pattern", "alpha", "use_rslora", "use_dora", "fan_in_fan_out")
"""Settings that change what a model computes, while names and shapes of its weights stay the same."""


def adapted(model: nn.Module) -> tuple[str, Any] | None:
    """The outermost module with adapters, after the prefix of its names; None if there is none."""
    for name, module in model.named_modules():
        if getattr(module, "peft_config", None):
            return (f"{original_name(name)}." if name else ""), module
    return None


def frozen_by_peft(model: nn.Module) -> bool:
    """Whether PEFT loaded the adapters of `model` for inference, without gradients."""
    found = adapted(model)
    return found is not None and any(
        getattr(config, "inference_mode", False) for config in found[1].peft_config.values()
    )


def names_in_file(model: nn.Module) -> dict[str, str]:
    """Name in the file of a saved adapter → name in `model`; empty if `model` has no adapter.

    PEFT is asked how it would save the present tensors, and these are recognized by identity.
    """
    found = adapted(model)
    if found is None:
        return {}
    from peft.utils import get_peft_model_state_dict

    prefix, module = found
    own = named_tensors(module)
    adapter = active_adapter(module)
    saved = get_peft_model_state_dict(module, state_dict=dict(own), adapter_name=adapter, save_embedding_layers=False)
    known = {id(tensor): name for name, tensor in own.items()}
    names = {name: known[id(tensor)] for name, tensor in saved.items() if id(tensor) in known}
    if _PROMPT in saved:
        names |= _prompt(module.prompt_encoder[adapter], f"prompt_encoder.{adapter}.", saved[_PROMPT])
    with_prefix = {
        _PREFIX + name.removeprefix(_PREFIX): own_name for name, own_name in names.items() if name != _PROMPT
    }
    return {name: prefix + own_name for name, own_name in {**with_prefix, **names}.items()}


def require_same_settings(folder: Path, model: nn.Module) -> None:
    """Refuse an adapter that was trained with settings other than those of the adapter that `model` has.

    Raises:
        CheckpointError: names the first setting that differs, or `model` has no adapter.
    """
    found = adapted(model)
    if found is None:
        raise CheckpointError(
            f"{folder} holds an adapter, and {type(model).__name__} has none. Give the model with its adapter: "
            f"{IS_TRAINABLE}."
        )
    saved = json.loads((folder / "adapter_config.json").read_text())
    present = found[1].peft_config[active_adapter(found[1])].to_dict()
    for name in _SCALES:
        if name in saved and name in present and saved[name] != getattr(present[name], "value", present[name]):
            raise CheckpointError(
                f"adapter {folder} was trained with {name}={saved[name]!r}, and the adapter of {type(model).__name__} has "
                f"{present[name]!r}. Give the model the adapter that was trained: {IS_TRAINABLE}."
            )


def active_adapter(module: Any) -> str:
    """The adapter that `module` computes with."""
    active = getattr(module, "active_adapter", None)
    active = active() if callable(active) else active
    name = active[0] if isinstance(active, (list, tuple)) and active else active
    return name if isinstance(name, str) and name in module.peft_config else next(iter(module.peft_config))


def virtual_tokens(model: nn.Module) -> int:
    """How many tokens prompt tuning puts in front of every sequence, for which `model` returns logits too."""
    found = adapted(model)
    if found is None:
        return 0
    config = found[1].peft_config[active_adapter(found[1])]
    is_prompt = getattr(config, "is_prompt_learning", False) and config.peft_type.value != "PREFIX_TUNING"
    return int(config.num_virtual_tokens) if is_prompt else 0


def _prompt(encoder: nn.Module, prefix: str, saved: Tensor) -> Mapping[str, str]:
    own = named_tensors(encoder)
    if list(own) == ["embedding.weight"] and own["embedding.weight"].shape == saved.shape:
        return {_PROMPT: f"{prefix}embedding.weight"}
    raise CheckpointError(
        f"an adapter with a {type(encoder).__name__} of {len(own)} parameters cannot be loaded: PEFT saves its output "
        "and not its parameters. Save and give the whole state_dict() of the model."
    )
