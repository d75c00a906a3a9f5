"""curvature_draws: rows of the Gram matrix with labels drawn from the model."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import IncompatibleRunError, IncompleteRunError, SettingsError
from trak_lightning.scoring.linear_system import System
from trak_lightning.scoring.score_run import load_features
from trak_lightning.tasks.drawn import DrawnLabels
from trak_lightning.tasks.language import CausalLM


def attribute(model, run_dir, draws=2, **options):
    options = {"task": "image_classification", "projector": "identity", **options}
    return TRAK(model, run_dir=run_dir, curvature_draws=draws, **options)


def log_gradients(model, inputs):
    """∇ log p(y) of every sample and class, (n, C, p), and p(y), (n, C), by plain autograd."""
    found = []
    for x in inputs:
        log_p = model(x[None]).log_softmax(-1)[0]
        grads = [torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in log_p]
        found.append(torch.stack([torch.cat([part.flatten() for part in grad]) for grad in grads]))
    return torch.stack(found).numpy(), model(inputs).softmax(-1).detach().numpy()


def test_rows_are_gradients_of_the_log_probability_of_some_label_whatever_the_batch(model, train_set, tmp_path):
    gradients, _ = log_gradients(model, train_set.tensors[0])
    found = []
    for name, options in {"a": {"batch_size": 4}, "b": {"batch_size": 7, "block_size": 14}}.items():
        for extractor in ("auto", "functional"):
            trak = attribute(model, tmp_path / name / extractor, extractor=extractor)
            assert trak.featurize(train_set, **options) == 3 * len(train_set)
            found.append([trak.features(f"train.draw-{number}")[:] for number in (1, 2)])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-6)
    distance = np.abs(np.array(found[0])[:, :, None] - gradients).max(-1)  # (draws, n, C)
    assert distance.min(-1).max() < 1e-5
    labels = distance.argmin(-1)
    assert (labels[0] != labels[1]).any()


def test_the_mean_of_many_draws_is_the_fisher_matrix(model, train_set, tmp_path):
    few = TensorDataset(*(tensor[:20] for tensor in train_set.tensors))
    trak = attribute(model, tmp_path, draws=24)
    trak.featurize(few)
    rows = np.array([trak.features(f"train.draw-{number}")[:] for number in range(1, 25)])
    gradients, p = log_gradients(model, few.tensors[0])
    fisher = np.einsum("ic,icj,ick->jk", p, gradients, gradients)
    estimate = np.einsum("dij,dik->jk", rows, rows) / 24
    assert np.linalg.norm(estimate - fisher) < 0.15 * np.linalg.norm(fisher)


@pytest.mark.parametrize("dim", [40, 400])  # fewer dimensions than rows, and more
def test_the_gram_matrix_has_their_mean(dim, model, train_set, test_set, tmp_path):
    trak = attribute(model, tmp_path, projector={"name": "gaussian", "dim": dim})
    trak.featurize(train_set, subsets=[np.arange(0, 50, 2)], batch_size=4, block_size=16)
    scores = trak.score(test_set, regularization=0.3, weights="residual").values
    phi, targets = trak.features()[:].astype(np.float64), trak.features("targets")[:].astype(np.float64)
    q = trak.features().loss_weight[:].astype(np.float64)
    drawn = np.concatenate([trak.features(f"train.draw-{number}")[:] for number in (1, 2)]).astype(np.float64)
    gram = phi.T @ (np.abs(q)[:, None] * phi) + drawn.T @ drawn / 2
    inverse = np.linalg.inv(gram + 0.3 * np.eye(dim))
    np.testing.assert_allclose(scores, targets @ inverse @ phi.T * q, rtol=1e-4, atol=1e-5)
    [features] = load_features(trak.run, trak.store, targets="targets")
    system = System(features, "residual")
    assert system.trace == pytest.approx(np.trace(gram), rel=1e-5)
    nodes, weights = system.own_effects()
    effects = np.einsum("ik,kl,il->i", phi, inverse, phi) * trak.features().curvature[:] * np.abs(q)
    assert (weights / (nodes + 0.3)).sum() == pytest.approx(effects.mean(), rel=0.2)


def test_they_are_resumed_bit_for_bit_and_scores_wait_for_them(model, train_set, test_set, tmp_path):
    trak = attribute(model, tmp_path, draws=1)
    trak.featurize(train_set, batch_size=4, block_size=8)
    before = trak.features("train.draw-1")[:]
    with_draws = np.array(trak.score(test_set).values)
    (tmp_path / "features/train.draw-1" / trak.run.read().checkpoints[0].id / "block-00002.h5").unlink()
    with pytest.raises(IncompleteRunError, match="1 of 7 blocks of train and its draws"):
        trak.score(test_set, name="other")
    assert attribute(model, tmp_path, draws=1).featurize(train_set, batch_size=4) == 8
    np.testing.assert_array_equal(trak.features("train.draw-1")[:], before)
    np.testing.assert_array_equal(trak.score(test_set).values, with_draws)
    plain = attribute(model, tmp_path / "plain", draws=0)
    plain.featurize(train_set)
    assert not np.allclose(plain.score(test_set).values, with_draws)


def test_rows_that_a_grown_training_set_lacks_are_refused(model, train_set, test_set, tmp_path):
    fewer = TensorDataset(*(tensor[:30] for tensor in train_set.tensors))
    attribute(model, tmp_path).featurize(fewer, batch_size=4)
    trak = attribute(model, tmp_path, draws=0)
    trak.featurize(train_set, batch_size=4, grow=True)
    with pytest.raises(IncompatibleRunError, match=r"train\.draw-1/\w+ has num_samples 30, and .* 50.*curvature_draws"):
        trak.score(test_set)
    again = attribute(model, tmp_path)
    again.featurize(train_set, batch_size=4, grow=True)
    again.score(test_set)


class Bigrams(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 11)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_tokens_are_drawn_whatever_the_padding(reduction, tmp_path):
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(1, 11, (length,), generator=generator) for length in (3, 9, 5, 7, 4, 8)]

    def collate(rows):
        longest = max(map(len, rows))
        ids = torch.stack([nn.functional.pad(row, (0, longest - len(row))) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    model, found = Bigrams().eval(), []
    for batch_size in (1, 3):
        loader = torch.utils.data.DataLoader(samples, batch_size, collate_fn=collate)
        trak = attribute(model, tmp_path / str(batch_size), draws=1, task={"name": "causal_lm", "reduction": reduction})
        trak.featurize(loader)
        found.append(trak.features("train.draw-1")[:].reshape(-1, 11, 11))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    # ∇ log p(y) of a row of the table is 1 − p for the drawn token and −p for others, added up over its occurrences.
    p = model.table.weight.softmax(-1).detach().numpy()
    for sample, row in zip(samples, found[0], strict=True):
        counts = row * (1 if reduction == "sum" else len(sample) - 1)
        occurrences = np.bincount(sample[:-1], minlength=11)
        np.testing.assert_allclose(
            counts + occurrences[:, None] * p, np.round(counts + occurrences[:, None] * p), atol=1e-4
        )
        assert (counts + occurrences[:, None] * p).sum() == pytest.approx(len(sample) - 1, abs=1e-3)


@pytest.mark.parametrize(
    "task",
    [
        "regression",
        {"name": "image_classification", "class_weight": [1.0, 2.0, 3.0]},
        {"name": "causal_lm", "class_weight": [1.0]},
    ],
)
def test_tasks_that_do_not_say_how_a_label_is_drawn_are_refused(task, model, tmp_path):
    with pytest.raises(SettingsError, match=r"does not say how labels are drawn.*curvature_draws=0"):
        attribute(model, tmp_path, task=task)


def test_a_negative_number_of_draws_is_refused(model, tmp_path):
    with pytest.raises(SettingsError, match="0 or more, got -1"):
        attribute(model, tmp_path, draws=-1)


def test_labels_are_as_frequent_as_they_are_likely():
    task = DrawnLabels(CausalLM(), 1, seed=0)
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0)).expand(5000, 4, 5)
    labels = task._draw(logits, torch.ones(5000, 4, dtype=torch.bool), torch.arange(5000))
    frequency = nn.functional.one_hot(labels, 5).double().mean(0)
    np.testing.assert_allclose(frequency, logits[0].softmax(-1), atol=0.03)  # four standard errors
    both = (labels[:, 0] == 0) & (labels[:, 1] == 0)  # tokens of one sample are independent
    assert float(both.double().mean()) == pytest.approx(float(frequency[0, 0] * frequency[1, 0]), abs=0.02)
