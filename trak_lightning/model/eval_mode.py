"""Refuse modules that behave differently in training and were left in train mode."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trak_lightning.errors import SampleDependenceError, TrainModeError


def require_eval(model: nn.Module) -> None:
    """Check that no module of `model` would draw random numbers or use batch statistics.

    Raises:
        SampleDependenceError: names each batch normalisation that has no running statistics to use.
        TrainModeError: names each dropout and batch normalisation that is active.
    """
    mixing = [
        f"{name or type(model).__name__} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]
    if mixing:
        raise SampleDependenceError(
            f"these modules have no running statistics and use those of the batch in eval mode too: {', '.join(mixing[:5])}"
            f"{' …' if len(mixing) > 5 else ''}. A sample's gradient would depend on its batch. Train with "
            "track_running_stats=True, or with GroupNorm or LayerNorm."
        )
    active = [
        f"{name or type(model).__name__} ({type(module).__name__}{reason})"
        for name, module in model.named_modules()
        if module.training and (reason := _reason(module))
    ]
    if active:
        raise TrainModeError(
            "these modules are in train mode, where a sample's gradient depends on chance or on its batch: "
            f"{', '.join(active[:5])}{' …' if len(active) > 5 else ''}. Call model.eval() first."
        )


def _reason(module: nn.Module) -> str:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return f", p={module.p}" if module.p > 0 else ""
    if isinstance(module, _BatchNorm):
        return ", batch statistics"
    dropout = getattr(module, "dropout", 0.0)
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and isinstance(dropout, float) and dropout > 0:
        return f", dropout={dropout}"
    return ""
