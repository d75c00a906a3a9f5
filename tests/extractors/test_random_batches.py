"""Whatever batches are put together, in whatever order, every row is that autograd gives for the sample alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.auto import Auto
from trak_lightning.tasks.base import Task
from trak_lightning.testing.extractors import autograd_loop, gradients

WIDTH = 3


class First(Task):
    def output(self, model, batch):
        return model(batch)


def padded(samples):
    return {
        "x": pad_sequence([x for x, _ in samples], batch_first=True),
        "mask": pad_sequence([torch.ones(len(x), dtype=torch.bool) for x, _ in samples], batch_first=True),
        "key": torch.tensor([key for _, key in samples]),
    }


def time_first(samples):
    batch = padded(samples)
    return {"x": batch["x"].transpose(0, 1), "mask": batch["mask"].T, "key": batch["key"]}


def end_to_end(samples):
    lengths = torch.tensor([len(x) for x, _ in samples])
    return {
        "x": torch.cat([x for x, _ in samples]),
        "lengths": lengths,
        "key": torch.tensor([key for _, key in samples]),
    }


def lists(samples):
    return {"x": [x for x, _ in samples], "key": torch.tensor([key for _, key in samples])}


LAYOUTS = {"padded": padded, "time first": time_first, "end to end": end_to_end, "lists": lists}


def pad(batch, layout):
    """(B, T, d) and the mask (B, T), from any layout."""
    if layout == "padded":
        return batch["x"], batch["mask"]
    if layout == "time first":
        return batch["x"].transpose(0, 1), batch["mask"].T
    parts = batch["x"] if layout == "lists" else batch["x"].split(batch["lengths"].tolist())
    return pad_sequence(list(parts), batch_first=True), pad_sequence(
        [torch.ones(len(x), dtype=torch.bool) for x in parts], batch_first=True
    )


class Block(nn.Module):
    """One step on (B, T, d), of which only the entries in the mask count."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x, mask, key):
        return x + getattr(self, self.kind)(x, mask, key).tanh()

    def plain(self, x, mask, key):
        return self.layer(x) * self.scale

    def flat(self, x, mask, key):
        return self.layer(x.flatten(0, 1)).view_as(x)

    def swapped(self, x, mask, key):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)

    def chosen(self, x, mask, key):
        out = torch.zeros_like(x)
        out[mask] = self.layer(x[mask]).to(x)
        return out

    def experts(self, x, mask, key):
        high = x.sum(-1) > 0
        out = torch.zeros_like(x)
        for which, expert in ((high, self.layer), (~high, self.other)):
            if which.any():
                out[which] = expert(x[which]).to(x)
        return out

    def ordered(self, x, mask, key):
        order = key.argsort(stable=True)
        return self.layer(x[order])[order.argsort()]

    def routed(self, x, mask, key):
        return torch.stack([(self.layer if k > 1 else self.other)(row) for row, k in zip(x, key.tolist(), strict=True)])

    def branch(self, x, mask, key):
        return self.layer(x) + (key > 1).to(x)[:, None, None] * F.linear(x, self.layer.weight)

    def borrowed(self, x, mask, key):
        return F.linear(self.layer(x), self.other.weight)


KINDS = ["plain", "flat", "swapped", "chosen", "experts", "ordered", "routed", "branch", "borrowed"]


class Net(nn.Module):
    def __init__(self, kinds, layout):
        super().__init__()
        self.layout = layout
        self.blocks, self.head = nn.ModuleList(map(Block, kinds)), nn.Linear(WIDTH, 1)

    def forward(self, batch):
        x, mask = pad(batch, self.layout)
        for block in self.blocks:
            x = block(x, mask, batch["key"])
        return self.head((x * mask.unsqueeze(-1)).sum(1))[:, 0]


samples = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=2, max_size=9)


def is_exact(kinds, layout, samples, size, seed, cast):
    torch.manual_seed(seed)
    dtype = torch.float32 if cast else torch.float64  # the latter is not cast
    model = Net(kinds, layout).to(dtype).eval()
    data = [(torch.randn(length, WIDTH, dtype=dtype), key) for length, key in samples]
    extractor, bound = Auto(), 0.2 if cast else 1e-9
    for start in range(0, len(data), size):
        batch = SampleBatch.of(data[start : start + size], LAYOUTS[layout])
        with torch.autocast("cpu", torch.bfloat16, enabled=cast, cache_enabled=False):
            try:
                output, found = gradients(extractor, model, First(), batch)
            except UnsupportedModelError as refusal:  # after some blocks: these are dropped, and the batch starts again
                output, found = gradients(extractor.fall_back(model, refusal), model, First(), batch)
            expected_output, expected = autograd_loop(model, First(), batch, batch.size)
        torch.testing.assert_close(output, expected_output, rtol=bound, atol=bound)
        whole = torch.stack([grad.flatten(1).norm(dim=1) for grad in expected.values()]).norm(dim=0)
        for name, grad in expected.items():
            error, norm = (found[name] - grad).flatten(1).norm(dim=1), grad.flatten(1).norm(dim=1)
            assert (error <= bound * (norm + (1.0 if cast else 1e-5) * whole)).all(), (start, name)


composed = given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    layout=st.sampled_from(sorted(LAYOUTS)),
    samples=samples,
    size=st.integers(1, 4),
    seed=st.integers(0, 99),
    cast=st.booleans(),
)
quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=25, derandomize=True, **quiet)
@composed
def test_composed_batches_are_exact(kinds, layout, samples, size, seed, cast):
    with torch.random.fork_rng():
        is_exact(kinds, layout, samples, size, seed, cast)


@pytest.mark.slow
@settings(max_examples=2500, **quiet)
@composed
def test_many_composed_batches_are_exact(kinds, layout, samples, size, seed, cast):
    with torch.random.fork_rng():
        is_exact(kinds, layout, samples, size, seed, cast)
