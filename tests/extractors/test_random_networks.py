"""Whatever network is put together from supported layers, its gradients equal the autograd loop."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import Apply

from trak_lightning.extractors.hooks import Hooks
from trak_lightning.testing.extractors import autograd_loop, extract
from trak_lightning.testing.models import Sum

POSITIONS, WIDTH = 4, 6


def reused(layer):
    return Apply(lambda x, f: f(f(x).tanh()), layer)


def norm_first(layer):
    """Time first, in place and around, as transformers are."""
    norm = nn.LayerNorm(WIDTH)
    return Apply(lambda x, f, n: f(n(x).transpose(0, 1)).transpose(0, 1).add_(x), layer, norm)


class Scaled(nn.Module):
    """Layer scale: a bare parameter around a module."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x):
        return x + self.inner(x) * self.scale


class Channels(nn.Module):
    """A layer over (B, channels, positions)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Flat(nn.Module):
    """A layer over samples and positions in one dimension."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def first(layer):
    return Apply(lambda x, f: f(x)[0], layer)


# Each maps (B, POSITIONS, WIDTH) to the same shape.
LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "prelu": lambda: Channels(nn.PReLU(WIDTH)),
    "convolution": lambda: Channels(nn.Conv1d(WIDTH, WIDTH, 3, padding="same", padding_mode="circular", groups=2)),
    "transposed convolution": lambda: Channels(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)),
    "group norm": lambda: Channels(nn.GroupNorm(2, WIDTH)),
    "instance norm": lambda: Channels(nn.InstanceNorm1d(WIDTH, affine=True)),
    "batch norm": lambda: Channels(nn.BatchNorm1d(WIDTH)),
    "attention": lambda: Apply(lambda x, f: f(x, x, x)[0], nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "transformer layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
    "lstm": lambda: first(nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)),
    "gru": lambda: first(nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "rnn": lambda: first(nn.RNN(WIDTH, WIDTH, batch_first=True)),
}
WRAPPERS = {"as it is": lambda layer: layer, "reused": reused, "norm first": norm_first, "scaled": Scaled, "flat": Flat}
ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "in place": lambda: nn.SiLU(inplace=True)}
NEEDS_POSITIONS = ("norm first", "flat")

parts = st.tuples(
    st.sampled_from(sorted(LAYERS)), st.sampled_from(sorted(WRAPPERS)), st.sampled_from(sorted(ACTIVATIONS))
)


def build(names):
    modules = []
    for layer, wrapper, activation in names:
        positionwise = layer.startswith(("linear", "layer norm", "rms norm"))
        wrap = WRAPPERS[wrapper if positionwise or wrapper not in NEEDS_POSITIONS else "as it is"]
        modules += [wrap(LAYERS[layer]()), ACTIVATIONS[activation]()]
    return nn.Sequential(nn.Embedding(9, WIDTH, padding_idx=0), *modules)


@settings(max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(names=st.lists(parts, min_size=1, max_size=4), size=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_random_networks_are_exact(names, size, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(names).double().eval()
        tokens = torch.randint(0, 9, (size, POSITIONS))
    found = extract(Hooks(), model, tokens, size)[1]
    expected = autograd_loop(model, Sum(), tokens, size)[1]
    largest = max(float(grad.norm()) for grad in expected.values())
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-9 * max(float(grad.norm()), 1e-3 * largest), name
