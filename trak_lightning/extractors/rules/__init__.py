"""Layer rules: per-sample parameter gradients of one kind of layer, from its input and the gradient of its output.

A rule is a function in one of the modules here, registered for the layer's class. Layers without a rule are handled by
`trak_lightning.extractors.rules.fallback`.
"""

from trak_lightning.extractors.rules import (  # noqa: F401  which register their rules
    activation,
    attention,
    convolution,
    embedding,
    linear,
    normalization,
    recurrent,
)
from trak_lightning.extractors.rules.registry import LayerCall, LayerRule, find_rule

__all__ = ["LayerCall", "LayerRule", "find_rule"]
