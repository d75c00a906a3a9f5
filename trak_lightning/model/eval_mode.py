"""Refuse models that are not in the mode in which they can be attributed to: dropout active, or adapters merged."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trak_lightning.errors import SampleDependenceError, TrainModeError, UnsupportedModelError
from trak_lightning.model.quantized import require_unpacked
from trak_lightning.run.formatting import listed


def require_eval(model: nn.Module) -> None:
    """Check that no module of `model` would draw random numbers, use batch statistics, or hide weights in others.

    Raises:
        SampleDependenceError: names each batch normalization that has no running statistics to use.
        TrainModeError: names each dropout and batch normalization that is active.
        UnsupportedModelError: names a parameter or buffer of inference mode, an adapter that is merged into the weights it adapts, or a layer that repacks its weights.
    """
    _require_differentiable(model)
    _require_statistics(model)
    active = [
        f"{name or type(model).__name__} ({type(module).__name__}{reason})"
        for name, module in model.named_modules()
        if module.training and (reason := _reason(module))
    ]
    if active:
        raise TrainModeError(
            "these modules are in train mode, where a sample's gradient depends on chance or on its batch: "
            f"{listed(active)}. Call model.eval() first."
        )
    require_unpacked(model)
    _require_unmerged(model)


def _require_differentiable(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} was made under torch.inference_mode(), so autograd cannot use it. Make the model, or a "
                "deep copy of it, outside of that context; torch.no_grad() does no harm."
            )


def _require_statistics(model: nn.Module) -> None:
    mixing = [
        f"{name or type(model).__name__} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]
    if mixing:
        raise SampleDependenceError(
            f"these modules have no running statistics and use those of the batch in eval mode too: {listed(mixing)}. A sample's gradient would depend on its batch. Train with "
            "track_running_stats=True, or with GroupNorm or LayerNorm."
        )


def _require_unmerged(model: nn.Module) -> None:
    for name, module in model.named_modules():
        what = f"{name or 'the model'} ({type(module).__name__})"
        if getattr(module, "merged", False) is True and hasattr(module, "unmerge"):
            raise UnsupportedModelError(
                f"the adapter of {what} is merged into the weights that it adapts, so that it has no gradient. Call "
                "unmerge_adapter() of the PEFT model first."
            )
        changed = _changed_by_eval(module)
        if changed:
            raise UnsupportedModelError(
                f"eval() of {what} computes {changed} from other weights, so that gradients and checkpoints would not be those "
                "of the weights that were trained. Turn merging off (loralib: merge_weights=False)."
            )


def _changed_by_eval(module: nn.Module) -> str | None:
    """The name of a tensor that train() of a module of one's own changes, which means that eval() had changed it."""
    overridden = type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
    if module.training or not overridden or not any(True for _ in module.parameters()):
        return None
    try:
        trained = copy.deepcopy(module).train()
    except Exception:  # cannot be copied, or not be trained: nothing to compare with
        return None
    after = dict(trained.state_dict())
    for name, tensor in module.state_dict().items():
        if name not in after or after[name].shape != tensor.shape or not torch.equal(after[name], tensor):
            return name
    return None


def _reason(module: nn.Module) -> str:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return f", p={module.p}" if module.p > 0 else ""
    if isinstance(module, _BatchNorm):
        return ", batch statistics"
    dropout = getattr(module, "dropout", 0.0)
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and isinstance(dropout, float) and dropout > 0:
        return f", dropout={dropout}"
    return ""
