"""Features under every precision of Lightning's Trainer, against those of float64."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from trak_lightning import TRAK
from trak_lightning.errors import DataError, NonFiniteGradientError
from trak_lightning.stores.memory import MemoryStore


def features(model, data, precision, run_dir, extractor="hooks"):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", precision=precision, **quiet)
    options = {"projector": "identity", "extractor": extractor, "store": MemoryStore(), "trainer": trainer}
    trak = TRAK(model, "image_classification", run_dir, **options)
    trak.featurize(data)
    found = trak.store.open(*trak.store.list()[0])
    assert found.spec.fingerprint["precision"] == precision  # features of two precisions are never mixed
    return np.concatenate([block.features for block in found.blocks()])


@pytest.mark.parametrize("extractor", ["hooks", "functional"])
# Products of c terms err by about √c·2⁻²⁴ in each of a few layers: below 1e-5 in float32, whichever library multiplies. TF32
# or 16 bits would be above it by a factor of 50 or more.
@pytest.mark.parametrize(
    ("precision", "bound"), [("32-true", 1e-5), ("bf16-mixed", 5e-3), ("bf16-true", 5e-3), ("16-true", 1e-3)]
)
def test_features_of_lower_precision_are_close_to_float64(precision, bound, extractor, model, train_set, tmp_path):
    """By the median over samples: where rounding switches a ReLU on or off, one sample is far away."""
    exact = features(model, train_set, "64-true", tmp_path / "exact")
    found = features(model, train_set, precision, tmp_path / "found", extractor)
    assert (exact.dtype, found.dtype) == (np.float64, np.float32)
    assert np.median(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)) < bound


def test_overflow_of_16_bits_names_the_samples_and_the_way_out(model, train_set, tmp_path):
    train_set.tensors[0][[3, 20]] *= 1e5
    with pytest.raises(NonFiniteGradientError, match=r"samples: \[3, 20\].*beyond ±65504 overflow: use .*bf16-mixed"):
        features(model, train_set, "16-true", tmp_path / "half")
    assert np.isfinite(features(model, train_set, "32-true", tmp_path / "single")).all()


@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad])
def test_only_the_precision_of_the_trainer_counts_and_not_what_the_caller_is_in(around, model, train_set, tmp_path):
    expected = features(model, train_set, "32-true", tmp_path / "a")
    with around():
        found = features(model, train_set, "32-true", tmp_path / "b")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_an_operation_that_knows_no_16_bits_is_refused_with_the_precision_that_it_knows(tmp_path):
    def collate(samples):
        inputs, labels = default_collate(samples)
        return inputs.to_sparse_csr(), labels

    data = [(torch.eye(4)[i % 4], i % 3) for i in range(8)]
    loader = DataLoader(data, 4, collate_fn=collate)
    expected = features(nn.Linear(4, 3).eval(), loader, "32-true", tmp_path / "a", "auto")
    assert np.isfinite(expected).all()
    with pytest.raises(DataError, match=r"not implemented for 'BFloat16'.*use precision 32-true"):
        features(nn.Linear(4, 3).eval(), loader, "bf16-mixed", tmp_path / "b", "auto")
