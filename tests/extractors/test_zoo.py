"""Per-sample gradients of every supported layer and of the architectures people bring equal the autograd loop."""

import gc

import pytest
import torch
from zoo import ARCHITECTURES, LAYERS, close

from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import DenseBlock, ParameterLayout
from trak_lightning.projectors.base import Projection
from trak_lightning.projectors.sparse_jl import SparseJL
from trak_lightning.projectors.two_sided import TwoStage
from trak_lightning.testing.extractors import autograd_loop

PROJECTORS = {"sparse_jl": SparseJL(dim=48), "two_stage": TwoStage(dim=48)}


@pytest.mark.parametrize("entry", [*LAYERS, *ARCHITECTURES], ids=lambda entry: entry.name)
def test_gradients_and_their_projections_equal_the_autograd_loop(entry):
    torch.manual_seed(0)
    model = entry.model().double().eval()
    layout, extractor = ParameterLayout.of(model), Hooks()
    projections = {
        name: Projection(projector, layout, seed=0, checkpoint="", device="cpu")
        for name, projector in PROJECTORS.items()
    }
    for size in (2, 7, 1):
        batch = entry.batch(size)
        grads = {slot.name: torch.zeros(size, *slot.shape, dtype=torch.float64) for slot in layout}
        from_factors = {name: p.zeros(size, torch.float64) for name, p in projections.items()}

        def sink(block, grads=grads, from_factors=from_factors):
            grads[block.name] += block.dense()
            for name, projection in projections.items():
                projection.add(block, from_factors[name])

        output = extractor.extract(model, entry.task, SampleBatch.of_rows(batch, size), layout, sink)
        expected_output, expected = autograd_loop(model, entry.task, batch, size)
        torch.testing.assert_close(output, expected_output, rtol=entry.tolerance, atol=entry.tolerance)
        largest = max(float(grad.abs().max()) for grad in expected.values())
        for name, grad in expected.items():
            assert close(grads[name], grad, entry.tolerance, largest), (name, size)
        for name, projection in projections.items():
            dense = projection.zeros(size, torch.float64)
            for parameter, grad in expected.items():
                projection.add(DenseBlock(parameter, grad), dense)
            assert close(from_factors[name], dense, entry.tolerance), (name, size)


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=lambda entry: entry.name)
def test_nothing_of_a_batch_outlives_it(entry):
    model, batch, extractor = entry.model().double().eval(), entry.batch(2), Hooks()
    layout, alive = ParameterLayout.of(model), []
    gc.freeze()  # so that what other tests have left is not looked through each time
    for _ in range(3):
        extractor.extract(model, entry.task, SampleBatch.of_rows(batch, 2), layout, lambda block: None)
        gc.collect()
        alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    gc.unfreeze()
    assert alive[1] == alive[2]
