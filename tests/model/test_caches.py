"""What modules keep between calls does not outlive a checkpoint, and what eval() computes is not taken for weights."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import UnsupportedModelError


class Cached(nn.Module):
    """Computes the features of a frozen backbone once per sample in eval mode."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(6, 5).requires_grad_(False), nn.Linear(5, 3)
        self.register_buffer("shift", torch.ones(6))
        self.scale = torch.full((6,), 2.0)  # a constant that no checkpoint holds
        self.reset()

    def reset(self):
        self.cache = {}

    def get(self, key):
        return self.cache.get(key)

    def put(self, key, value):
        self.cache[key] = value

    def features(self, x):
        return self.backbone(x * self.scale + self.shift).tanh()

    def forward(self, x):
        rows = []
        for row in x:
            key = tuple(row.tolist())
            found = self.get(key)
            if found is None:
                found = self.features(row)
                self.put(key, found)
            rows.append(found if isinstance(found, torch.Tensor) else torch.from_numpy(found))
        return self.head(torch.stack(rows))


class InAnObject(Cached):
    def reset(self):
        self.memory = type("Memory", (), {})()
        self.memory.known = {}

    def get(self, key):
        return self.memory.known.get(key)

    def put(self, key, value):
        self.memory.known[key] = value


class AsArrays(Cached):
    def put(self, key, value):
        self.cache[key] = value.detach().numpy()


class OnDemand(Cached):
    """The attribute is not there until it is needed."""

    def reset(self):
        pass

    def get(self, key):
        return self.cache.get(key) if hasattr(self, "cache") else None

    def put(self, key, value):
        if not hasattr(self, "cache"):
            self.cache = {}
        self.cache[key] = value


class Fused(Cached):
    """Keeps one product of its weights."""

    def reset(self):
        self.fused = None

    def forward(self, x):
        if self.fused is None:
            self.fused = self.backbone.weight * 2
        return self.head(((x * self.scale + self.shift) @ self.fused.T).tanh())


class ByFunctools(Cached):
    @functools.cached_property
    def fused(self):
        return self.backbone.weight * 2

    forward = Fused.forward

    def reset(self):
        pass


class ByLRU(Cached):
    @functools.lru_cache(maxsize=None)  # noqa: B019, UP033
    def _fused(self):
        return self.backbone.weight * 2

    @property
    def fused(self):
        return self._fused()

    forward = Fused.forward


@functools.lru_cache(maxsize=None)  # noqa: UP033
def fused_of(model):
    return model.backbone.weight * 2


class ByFunctionUnderLRU(Cached):
    @property
    def fused(self):
        return fused_of(self)

    forward = Fused.forward


class Slots:
    __slots__ = ("known",)

    def __init__(self):
        self.known = {}

    def __call__(self, key):
        return self.known.get(key)


class Nested(Cached):
    """In a slot of a callable object, in a list, in a dict."""

    def reset(self):
        self.stores = {"features": [Slots()], "scale": torch.ones(5)}

    def get(self, key):
        return self.stores["features"][0](key)

    def put(self, key, value):
        self.stores["features"][0].known[key] = value * self.stores["scale"]


class OfTheClass(Cached):
    known = None

    def reset(self):
        type(self).known = {}

    def get(self, key):
        return self.known.get(key)

    def put(self, key, value):
        self.known[key] = value


class Unfilled(Cached):
    """Next to constants."""

    def reset(self):
        self.derived = [None, torch.ones(5)]

    def forward(self, x):
        if self.derived[0] is None:
            self.derived[0] = self.backbone.weight * 2
        return self.head(((x * self.scale + self.shift) @ self.derived[0].T).tanh() * self.derived[1])


KINDS = [
    Cached,
    InAnObject,
    AsArrays,
    OnDemand,
    Fused,
    ByFunctools,
    ByLRU,
    ByFunctionUnderLRU,
    Nested,
    OfTheClass,
    Unfilled,
]
DATA = TensorDataset(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)


def checkpoints(kind):
    return [{name: torch.randn_like(tensor) for name, tensor in kind().state_dict().items()} for _ in range(2)]


def rows(model, sources, run_dir):
    trak = TRAK(model.eval(), "image_classification", run_dir, projector="identity", store="memory")
    trak.featurize(DATA, sources, batch_size=4)
    count = len(trak.run.read().checkpoints)
    return [torch.from_numpy(np.asarray(trak.features(checkpoint=number))) for number in range(count)]


def fresh(kind, state):
    model = kind()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_a_model_that_never_had_other_weights(kind, used_before, tmp_path):
    torch.manual_seed(3)
    sources = checkpoints(kind)
    expected = [rows(fresh(kind, source), None, tmp_path / f"{i}")[0] for i, source in enumerate(sources)]
    model = kind().eval()
    if used_before:
        with torch.no_grad():
            own = model(DATA.tensors[0])
    for found, wanted in zip(rows(model, sources, tmp_path / "both"), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    if used_before:
        with torch.no_grad():
            torch.testing.assert_close(model(DATA.tensors[0]), own)


class Detached(Cached):
    """Also keeps what depends on weights that are trained."""

    def __init__(self, detach):
        super().__init__()
        self.backbone.requires_grad_(True)
        self._detach = detach

    def put(self, key, value):
        self.cache[key] = value.detach() if self._detach else value


@pytest.mark.parametrize("detach", [True, False])
def test_a_cache_is_empty_whenever_a_batch_begins_so_that_gradients_flow(detach, tmp_path):
    torch.manual_seed(3)
    model = Detached(detach)
    (found,) = rows(model, None, tmp_path)
    assert model.cache == {}
    model.cache = None
    model.get, model.put = lambda key: None, lambda key, value: None
    (wanted,) = rows(model, None, tmp_path / "uncached")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


class Merging(nn.Linear):
    """As loralib does: eval() adds the adapter to the weight, train() takes it away."""

    def __init__(self):
        super().__init__(6, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(3, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.a.T @ self.b.T)


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: nn.Sequential(nn.Identity(), module)])
def test_a_module_that_merges_adapters_in_eval_mode_is_refused(wrap, tmp_path):
    model = wrap(Merging()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        UnsupportedModelError, match=r"eval\(\) of .*Merging.* computes weight from other weights.*merge_weights=False"
    ):
        TRAK(model, "image_classification", tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class KeepsFrozen(nn.Linear):
    def train(self, mode=True):
        super().train(mode)
        return self.requires_grad_(True)


def test_a_train_method_of_its_own_that_changes_no_weight_is_fine(tmp_path):
    TRAK(KeepsFrozen(6, 3).eval(), "image_classification", tmp_path)


def test_a_lazy_parameter_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"no shape before the first batch, such as weight"):
        TRAK(nn.LazyLinear(3).eval(), "image_classification", tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_parameters_that_are_no_leaves_are_refused_until_they_are(tmp_path):
    model = copy.deepcopy(torch.jit.script(nn.Linear(3, 3).eval()))
    with pytest.raises(UnsupportedModelError, match=r"such as weight, are no leaves of autograd"):
        TRAK(model, "image_classification", tmp_path)
    [each.detach_().requires_grad_() for each in model.parameters() if not each.is_leaf]
    trak = TRAK(model, "image_classification", tmp_path, projector="identity")
    trak.featurize([(torch.eye(3)[label], label) for label in range(3)])
    assert np.abs(trak.features()[:]).max(1).all()
