"""Modules with quantized weights, such as those of bitsandbytes: what they keep, and where a gradient would depend on other passes."""

from torch import nn

from trak_lightning.errors import UnsupportedModelError


def quantized(model: nn.Module) -> set[str]:
    """The names of modules whose weights are integers. What they keep in attributes (scales) is a part of the weights."""
    return {
        name
        for name, module in model.named_modules()
        if any(not (each.is_floating_point() or each.is_complex()) for each in module.parameters(recurse=False))
    }


def require_unpacked(model: nn.Module) -> None:
    """Refuse layers of bitsandbytes that repack their 4-bit weights for some processors in eval mode, in the middle of a pass: they
    compute otherwise from then on.

    Raises:
        UnsupportedModelError: names the first.
    """
    for name, module in model.named_modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and any(
            weight.device.type == "cpu" for weight in module.parameters(recurse=False)
        ):
            raise UnsupportedModelError(
                f"{name} ({type(module).__name__}) repacks its 4-bit weights for this processor in eval mode, so that a gradient depends "
                "on the passes before it. Load the model again and turn that off before its first pass (for every module that has it: "
                "module.support_avx512bf16_for_cpu = False), or load it in 8 bits."
            )


def require_rows_apart(model: nn.Module) -> None:
    """Refuse batches of layers of bitsandbytes that choose the columns that they do not quantize by all samples of a batch.

    Raises:
        UnsupportedModelError: names the first.
    """
    for name, module in model.named_modules():
        state = getattr(module, "state", None)
        if hasattr(state, "has_fp16_weights") and getattr(state, "threshold", 0) > 0:
            raise UnsupportedModelError(
                f"{name} ({type(module).__name__}) quantizes a sample otherwise in another batch, by the outliers of all samples. Load "
                "the model with BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0) to compute batches. Use "
                "extractor='auto' or 'iterative' for one sample at a time."
            )
