"""Layer rules: per-sample parameter gradients of one kind of layer, from its input and the gradient of its output.

A rule is a function in one of the modules here, registered for the layer's class. Layers without a rule are handled by
`trak_lightning.extractors.rules.fallback`.
"""

from trak_lightning.extractors.rules import (
    activation,
    attention,
    convolution,
    embedding,
    embedding_bag,
    linear,
    normalization,
    recurrent,
)
from trak_lightning.extractors.rules.registry import LayerCall, LayerRule, find_rule

__all__ = [
    "LayerCall",
    "LayerRule",
    "activation",
    "attention",
    "convolution",
    "embedding",
    "embedding_bag",
    "find_rule",
    "linear",
    "normalization",
    "recurrent",
]
