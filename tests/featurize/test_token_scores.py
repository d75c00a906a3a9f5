"""Scores of pairs of tokens: those of gradients by autograd, which sum to the score of the pair."""

import numpy as np
import pytest
import torch
from torch import nn

from trak_lightning import TRAK, registry
from trak_lightning.errors import SettingsError, StaleRowsError
from trak_lightning.scoring.score_run import score_run
from trak_lightning.tasks.margin import margin

VOCABULARY = 31


class Recurrent(nn.Module):
    """A causal language model: each token sees the sum of those before it."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8), nn.Linear(8, VOCABULARY)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(torch.tanh(self.mix(self.embed(input_ids).cumsum(1))))}


def sequences(count, seed):
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, 7), generator=made)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()} for row in ids]


TRAIN, TARGETS = sequences(10, 0), sequences(2, 1)
TARGETS[1]["labels"][:4] = -100


def run(model, folder, checkpoints=None, projector="sparse_jl", store="hdf5", **task):
    torch.manual_seed(0)
    trak = TRAK(model, {"name": "causal_lm", **task}, folder, projector={"name": projector}, store=store)
    trak.featurize(TRAIN, checkpoints, batch_size=4)
    return trak


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Recurrent().eval()


@pytest.fixture
def checkpoints(model):
    torch.manual_seed(1)
    return [{name: w + 0.05 * torch.randn_like(w) for name, w in model.state_dict().items()} for _ in range(2)]


SCORERS = ("trak", {"name": "trak", "normalize": "unit"}, "influence", "leave_one_out", "tracin")


@pytest.mark.parametrize("task", [{}, {"level": "token", "reduction": "mean"}])
def test_token_scores_sum_to_the_score_of_the_pair(model, checkpoints, task, tmp_path):
    trak = run(model, tmp_path, checkpoints, **task)
    trak.score(TARGETS, batch_size=2)
    for scorer in SCORERS:
        if task and scorer in ("influence", "leave_one_out"):
            continue  # minus the loss has no curvature
        scores, _ = score_run(trak.run, trak.store, registry.create("scorers", scorer), targets="targets")
        found = trak.token_scores(TARGETS, [(0, 3), (1, 3)], scorer=scorer, batch_size=2)
        assert [pair.values.shape for pair in found] == [(6, 6), (3, 6)]
        assert found[1].target_positions.tolist() == [4, 5, 6]
        for pair in found:
            expected = scores.values[pair.target, pair.example]
            assert abs(pair.score - expected) < 1e-3 * np.abs(pair.values).sum()


def test_a_token_score_is_the_product_of_the_gradients_of_two_tokens(model, tmp_path):
    model = model.double()
    trak = run(model, tmp_path, projector="identity", store="memory")
    trak.score(TARGETS, batch_size=2, scorer="gradient_dot")
    (found,) = trak.token_scores(TARGETS, [(1, 2)], scorer="gradient_dot", batch_size=2)
    parameters = list(model.parameters())

    def gradients(sample, positions):
        margins = margin(model(input_ids=sample["input_ids"][None])["logits"][0, :-1], sample["input_ids"][1:])
        each = [torch.autograd.grad(margins[p - 1], parameters, retain_graph=True) for p in positions]
        return torch.stack([torch.cat([grad.flatten() for grad in grads]) for grads in each]), margins

    left, _ = gradients(TARGETS[1], [4, 5, 6])
    right, margins = gradients(TRAIN[2], range(1, 7))
    expected = left @ right.T * torch.sigmoid(-margins).mean()
    np.testing.assert_allclose(
        found.values, expected.detach().numpy(), rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max())
    )


def test_labels_that_are_not_shifted_are_counted_from_the_first(model, tmp_path):
    trak = TRAK(model, "token_classification", tmp_path, projector={"name": "sparse_jl", "dim": 64})
    trak.featurize(TRAIN, batch_size=4)
    scores = trak.score(TARGETS, batch_size=2)
    (pair,) = trak.token_scores(TARGETS, [(0, 3)], batch_size=2)
    assert pair.example_positions.tolist() == list(range(7))
    assert abs(pair.score - scores.values[0, 3]) < 1e-3 * np.abs(pair.values).sum()


def test_rows_of_other_weights_are_refused(model, tmp_path):
    trak = run(model, tmp_path)
    trak.score(TARGETS, batch_size=2)
    feature_set = trak._job.feature_sets["train"][0]
    rows = feature_set.read_block(0)
    rows.features[3] *= -0.5 + np.arange(rows.features.shape[1]) % 2
    feature_set.discard(0)
    feature_set.write_block(0, rows)
    with pytest.raises(StaleRowsError, match="stored row of training sample 3 is not the sum over its tokens"):
        trak.token_scores(TARGETS, [(0, 3)], batch_size=2)


REFUSED = [
    ("gradient_cosine", (0, 3), "since it scales each row"),
    ({"name": "trak", "threshold": 0.1}, (0, 3), "SoftThreshold are no sums over tokens"),
    ("trak", (0, 10), "sample 10 is out of range: train has samples 0 … 9"),
]


def test_what_is_no_sum_over_tokens_is_refused(model, tmp_path):
    trak = run(model, tmp_path)
    trak.score(TARGETS, batch_size=2)
    for scorer, pair, message in REFUSED:
        with pytest.raises(SettingsError, match=message):
            trak.token_scores(TARGETS, [pair], scorer=scorer, batch_size=2)


def first_token_loss(model, batch):
    logits = model(batch["input_ids"])["logits"][:, 0]
    return torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1], reduction="none")


def test_a_task_without_tokens_is_refused(model, tmp_path):
    trak = TRAK(model, {"name": "loss", "function": first_token_loss}, tmp_path)
    trak.featurize(TRAIN[:4], batch_size=4)
    with pytest.raises(SettingsError, match="Loss is no sum over tokens"):
        trak.token_scores(TRAIN[:4], [(0, 0)], "train", batch_size=4)
