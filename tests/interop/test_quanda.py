"""quanda's metrics agree with ours where both measure the same. Runs where quanda is installed, which most environments lack."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import lds
from trak_lightning.evaluation.mislabeled import auc

quanda = pytest.importorskip(
    "quanda", reason="it needs an environment of its own: pip install 'trak-lightning[quanda]'"
)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator))


@pytest.fixture
def explainer(model, data, tmp_path):
    from trak_lightning.interop.quanda import TRAKExplainer

    weights = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    torch.save(weights, tmp_path / "other.ckpt")
    torch.save(model.state_dict(), tmp_path / "one.ckpt")
    return TRAKExplainer(
        model,
        data,
        checkpoints=[str(tmp_path / "one.ckpt"), str(tmp_path / "other.ckpt")],
        cache_dir=tmp_path,
        projector="identity",
    )


def test_the_explainer_gives_the_scores_of_trak(explainer, model, data, tmp_path):
    trak = TRAK(model, "image_classification", tmp_path / "ours", projector="identity")
    trak.featurize(data, [tmp_path / "one.ckpt", tmp_path / "other.ckpt"])
    targets = data[:7]
    expected = np.array(trak.score(TensorDataset(*targets)).values)
    np.testing.assert_allclose(explainer.explain(*targets).numpy(), expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(
        explainer.explain(targets[0][2:4], targets[1][2:4].tolist()), expected[2:4], rtol=1e-5, atol=1e-9
    )


def test_the_order_of_self_influence_survives_what_quanda_adds_to_it(explainer, model, data):
    known = [3, 8, 30]
    metric = quanda.metrics.downstream_eval.MislabelingDetectionMetric(
        model, data, known, precomputed_self_influence=explainer.self_influence()
    )
    found, ours = metric.compute(), explainer._trak.self_influence().self_influence
    order = np.argsort(-ours, kind="stable")
    assert found["success_arr"].tolist() == np.isin(order, known).tolist()
    # The area under the curve of those found, in terms of the area under the ROC curve.
    share, mask = len(known) / len(data), np.isin(np.arange(len(data)), known)
    assert found["score"] == pytest.approx(auc(ours, mask) * (1 - share) + share / 2, abs=1 / len(data))


def test_the_linear_datamodeling_score_is_ours(explainer, model, data):
    rng = np.random.default_rng(0)
    subsets, outputs = rng.random((12, 40)) < 0.5, rng.standard_normal((12, 5))
    inputs, labels = data[:5]
    scores = explainer.explain(inputs, labels)
    metric = quanda.metrics.ground_truth.LinearDatamodelingMetric(
        model,
        data,
        m=12,
        subset_ids=[np.flatnonzero(subset).tolist() for subset in subsets],
        subset_ckpt_filenames=[""] * 12,
    )
    metric.update(scores, labels, inputs, {j: torch.from_numpy(output) for j, output in enumerate(outputs)})
    assert metric.compute()["score"] == pytest.approx(lds([scores.numpy()], subsets, outputs).mean(), abs=1e-5)
