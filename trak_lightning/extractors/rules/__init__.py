"""Layer rules: per-sample parameter gradients of one kind of layer, from its input and the gradient of its output.

A rule is a function in one of the modules here, registered for the layer's class. Layers without a rule are done by
`trak_lightning.extractors.rules.fallback`.
"""

from trak_lightning.extractors.rules import convolution, embedding, linear, normalization
from trak_lightning.extractors.rules.registry import Rule, find_rule

__all__ = ["Rule", "convolution", "embedding", "find_rule", "linear", "normalization"]
