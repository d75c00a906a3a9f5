"""The hooks extractor: per-sample gradients from one forward and one backward pass of the batch.

Words used in these modules:

* layer: a module whose parameter gradients a layer rule computes (`trak_lightning.extractors.rules`);
* re-run module (`Rerun`): a module without a rule, which is run again to differentiate its outputs with respect to its parameters;
* handler of a parameter: the layer or re-run module that computes its gradient; this is its owner or a module that encloses it;
* lift: make the next enclosing module the handler of a parameter;
* plan: the layers and re-run modules that together compute the gradient of every parameter;
* probe: forward passes on two, three and B samples that show which dimensions of every tensor hold the samples;
* tape: the hooks that record one forward pass and make gradient blocks in its backward pass;
* anchor: a leaf that makes layer outputs require a gradient while no parameter does;
* sink: the function that receives the blocks (`trak_lightning.gradients.Sink`);
* audit: a sink that compares the sum of all blocks with the gradient of the batch (`trak_lightning.extractors.audit`);
* rehearse: try out a plan on a batch, with an audit as the sink, before any block is projected;
* kind of a batch: the modules that ran, the operations that made the output, and the structure of the batch.
"""

from trak_lightning.extractors.hooks.extractor import Hooks

__all__ = ["Hooks"]
