"""Models sharded over devices: no process holds a whole parameter (FSDP2, `torch.distributed.tensor.DTensor`)."""

from collections.abc import Iterable, Mapping

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, distributed, nn

from trak_lightning.errors import SettingsError, UnsupportedModelError
from trak_lightning.model.checkpoint_names import named_tensors

if distributed.is_available():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether this process holds only a part of `tensor`."""
    return distributed.is_available() and isinstance(tensor, DTensor)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether this process holds only a part of some; without processes that talk to each other it cannot, and none is looked at."""
    return distributed.is_available() and distributed.is_initialized() and any(map(is_sharded, tensors))


def whole(tensor: Tensor | None) -> Tensor | None:
    """Gather a sharded tensor; every rank must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[union-attr]


def require_whole(model: nn.Module, extractor: str) -> None:
    """Refuse a sharded model.

    Raises:
        UnsupportedModelError: the model is sharded.
    """
    sharded = [name for name, parameter in model.named_parameters() if is_sharded(parameter)]
    if sharded:
        raise UnsupportedModelError(
            f"the extractor {extractor!r} needs whole parameters, and {len(sharded)} of {type(model).__name__} are sharded over "
            f"devices, such as {sharded[0]}. Use extractor='hooks', which supports sharded layers that have a rule of their own."
        )


def load(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy weights into `model`; if it is sharded, each rank copies its part.

    Names are those of the tensors themselves, so they are copied in any case, whatever hooks of the model do with names;
    ``load_state_dict`` tells the model that its weights change.
    """
    if any_sharded(model.parameters()):
        set_model_state_dict(model, dict(state_dict), options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state_dict, strict=False)
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                tensor.copy_(state_dict[name])


def uses_sharding(trainer: L.Trainer, model: nn.Module) -> bool:
    """Whether the Trainer's strategy shards models.

    Raises:
        SettingsError: it shards in a way that hides the parameters of layers, or the model does not say how to shard it.
    """
    strategy = trainer.strategy
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise SettingsError(
            f"{type(strategy).__name__} flattens parameters, so that none can be attributed to. Use ModelParallelStrategy "
            "(FSDP2) for a model that does not fit on one device, else ddp."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return False
    if not (isinstance(model, L.LightningModule) and is_overridden("configure_model", model)):
        raise SettingsError(
            f"with ModelParallelStrategy the model must be a LightningModule whose configure_model shards it "
            f"(torch.distributed.fsdp.fully_shard); {type(model).__name__} has none"
        )
    return True
