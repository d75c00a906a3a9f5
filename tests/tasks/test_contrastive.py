"""contrastive: the laws, the paper's formula, exact gradients of CLIP and of two towers, and the bank of other pairs."""

import pytest
import torch
from hugging_face import VOCABULARY, clip
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError, SettingsError
from trak_lightning.extractors.functional import Functional
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.featurize.fitting import FitFile, FitSamples
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.contrastive import Contrastive
from trak_lightning.tasks.criterion import CriterionWarning
from trak_lightning.testing import TaskConformance
from trak_lightning.testing.extractors import autograd_loop


class TwoTowers(nn.Module):
    """A user's own: embeddings that are not normalized, and the temperature, as a tuple."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.text = nn.EmbeddingBag(9, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images, words):
        return self.image(images), self.text(words), self.logit_scale.exp()


def towers_batch(size):
    return torch.randn(size, 6, dtype=torch.get_default_dtype()), torch.randint(9, (size, 3))


def clip_batch(size):
    words = torch.randint(3, VOCABULARY, (size, 7))
    words[:, 5:] = torch.tensor([2, 0])
    return {"input_ids": words, "attention_mask": (words > 0).long(), "pixel_values": torch.randn(size, 3, 16, 16)}


class TestContrastive(TaskConformance):
    task = Contrastive
    exact_loss = False
    model, batch = TwoTowers, staticmethod(towers_batch)


class TestContrastiveOfCLIP(TaskConformance):
    task = Contrastive
    exact_loss = False
    model, batch = staticmethod(clip), staticmethod(clip_batch)


def problem(make, batch, **settings):
    torch.manual_seed(0)
    model, task = make().double().eval(), Contrastive(negatives=12, **settings)
    with torch.no_grad():
        task = task.fitted(task.fit(model, [_double(batch(7)), _double(batch(5))]))
    return model, task, _double(batch(3))


def _double(batch):
    if isinstance(batch, dict):
        return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    return tuple(value.double() if value.is_floating_point() else value for value in batch)


PROBLEMS = {"clip": (clip, clip_batch), "two towers": (TwoTowers, towers_batch)}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("scale", [1.0, "model"])
def test_it_is_the_formula_of_the_paper(name, scale):
    model, task, batch = problem(*PROBLEMS[name], scale=scale)
    output = task.output(model, batch)
    weight, curvature = task.loss_weight(model, batch, output), task.curvature(model, batch, output)
    embed = model(**batch) if name == "clip" else model(*batch)
    images, texts = (embed.image_embeds, embed.text_embeds) if name == "clip" else embed[:2]
    temperature = model.logit_scale.exp()
    s = temperature if scale == "model" else 1.0
    bank_images, bank_texts = task._bank["images"], task._bank["texts"]
    for b in range(3):
        phi, psi = images[b] / images[b].norm(), texts[b] / texts[b].norm()
        to_text = torch.stack([phi @ (other - psi) for other in bank_texts])
        to_image = torch.stack([psi @ (other - phi) for other in bank_images])
        f = -(s * to_text).exp().sum().log() - (s * to_image).exp().sum().log()
        torch.testing.assert_close(output[b], f, rtol=1e-9, atol=1e-9)
        p = torch.stack([1 / (1 + (temperature * gaps).exp().sum()) for gaps in (to_text, to_image)])
        torch.testing.assert_close(weight[b], 1 - p.mean(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(curvature[b], (p * (1 - p)).mean(), rtol=1e-9, atol=1e-9)


def test_at_the_models_temperature_it_is_the_sum_of_both_log_odds():
    model, task, batch = problem(TwoTowers, towers_batch, scale="model")
    output = task.output(model, batch)
    p = task._probabilities(model, batch, output)
    torch.testing.assert_close(output, torch.log(p / (1 - p)).sum(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "extractor"), [("clip", Hooks()), ("two towers", Hooks()), ("two towers", Functional())]
)
def test_gradients_are_exact(name, extractor):
    model, task, batch = problem(*PROBLEMS[name])
    layout = ParameterLayout.of(model)
    found = {slot.name: torch.zeros(3, *slot.shape, dtype=torch.float64) for slot in layout}

    def sink(block):
        found[block.name] += block.dense()

    extractor.extract(model, task, SampleBatch.of_rows(batch, 3), layout, sink)
    _, expected = autograd_loop(model, task, batch, 3)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-9)
    assert any(grad.abs().max() > 1e-3 for grad in expected.values())


def test_a_pair_that_is_in_the_bank_is_not_compared_with_itself():
    model, task, batch = problem(TwoTowers, towers_batch)
    with torch.no_grad():
        found = task.fit(model, [batch])
    others = {key: value[1:] if value.ndim else value for key, value in found.items()}
    first = tuple(value[:1] for value in batch)
    torch.testing.assert_close(
        task.fitted(found).output(model, first), task.fitted(others).output(model, first), rtol=1e-12, atol=1e-12
    )


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(40, 6, generator=generator), torch.randint(9, (40, 3), generator=generator))


@pytest.fixture
def trak(tmp_path):
    torch.manual_seed(0)

    def make(task=None, **settings):
        task = {"name": "contrastive", "negatives": 10} | (task or {})
        return TRAK(TwoTowers().eval(), task, tmp_path, projector={"name": "identity"}, **settings)

    return make


@pytest.fixture
def states():
    torch.manual_seed(2)
    return [TwoTowers().state_dict() for _ in range(2)]


def test_every_checkpoint_has_the_bank_of_its_own_weights(trak, states, data, tmp_path):
    first = trak()
    first.featurize(data, states, batch_size=16)
    banks = [first.run.reference(record.id) for record in first.run.require_checkpoints()]
    assert [path.exists() for path in banks] == [True, True]
    reference = FitSamples.of(first.spec.task, AttributionData.of(data, 16))
    for path, state in zip(banks, states, strict=True):
        model = TwoTowers()
        model.load_state_dict(state)
        images, texts, scale = model(*data[list(reference.positions)])
        spec = first.store.open("train", path.stem).spec
        keys = ("checkpoint", "task", "precision", "reference")
        bank = FitFile(path, {key: spec.fingerprint.get(key) for key in keys}).load()
        torch.testing.assert_close(bank["images"], nn.functional.normalize(images, dim=-1).detach())
        torch.testing.assert_close(bank["texts"], nn.functional.normalize(texts, dim=-1).detach())
        torch.testing.assert_close(bank["logit_scale"], scale.detach())


def test_a_resumed_run_compares_with_the_same_pairs_and_a_lost_bank_is_not_drawn_again(trak, states, data):
    first = trak()
    first.featurize(data, states, batch_size=16)
    assert trak().featurize(data, states, batch_size=16) == 0
    for record in first.run.require_checkpoints():
        first.run.reference(record.id).unlink()
    with pytest.raises(IncompleteRunError, match=r"references/.*is missing, but stored features of 'train'"):
        trak().featurize(data, states, batch_size=16)  # which verifies stored rows


def test_other_pairs_are_other_features(trak, states, data):
    trak().featurize(data, states, batch_size=16)
    with pytest.raises(IncompatibleRunError, match="task.negatives = 10, and 11"):
        trak({"negatives": 11}).featurize(data, states, batch_size=16)


def test_when_the_training_set_grows_the_pairs_stay(trak, states, data, tmp_path):
    smaller = TensorDataset(*(tensor[:30] for tensor in data.tensors))
    first = trak()
    first.featurize(smaller, states, batch_size=10)
    before = first.run.reference(first.run.require_checkpoints()[0].id).read_bytes()
    second = trak()
    assert second.featurize(data, states, batch_size=10, grow=True) == 2 * 10
    assert second.run.reference(second.run.require_checkpoints()[0].id).read_bytes() == before
    second.score(data, name="test", regularization=1.0)


def test_check_needs_no_run(trak, data):
    assert any(finding.topic == "outputs" for finding in trak().check(data, batch_size=8))


class Nameless(TwoTowers):
    def forward(self, images, words):
        return {"image": self.image(images), "text": self.text(words)}


def test_what_is_missing_is_named():
    with pytest.raises(
        DataError,
        match=r"the model's output has no position 0 \(outputs\); it is a dict with image float64 \(7, 4\), text",
    ):
        problem(Nameless, towers_batch)
    with pytest.raises(DataError, match="task.fitted"):
        Contrastive().output(TwoTowers(), towers_batch(2))
    no_temperature = TwoTowers()
    del no_temperature.logit_scale
    no_temperature.forward = lambda images, words: (no_temperature.image(images), no_temperature.text(words))
    with pytest.raises(
        SettingsError, match=r"no parameters named logit_scale.*--task\.logit_scale 14\.3, or in Python task="
    ):
        Contrastive().fit(no_temperature, [towers_batch(3)])
    found = Contrastive(outputs=["image", "text"]).fit(Nameless(), [towers_batch(3)])
    assert found["images"].shape == (3, 4)
    with pytest.raises(SettingsError, match="scale must be"):
        Contrastive(scale="clip")


def test_the_logarithm_of_the_inverse_temperature_is_warned_of_with_both_numbers():
    model, batches = TwoTowers(), [towers_batch(3)]
    with pytest.warns(CriterionWarning, match=r"logit_scale is 1\.5, the value of .* give its exponential, 4\.482"):
        Contrastive(logit_scale=1.5).fit(model, batches)
    assert Contrastive(logit_scale=4.482).fit(model, batches)["logit_scale"] == pytest.approx(4.482)
    with torch.no_grad():
        model.logit_scale.fill_(14.3)  # no logarithm
    assert Contrastive(logit_scale=14.3).fit(model, batches)["logit_scale"] == pytest.approx(14.3)
