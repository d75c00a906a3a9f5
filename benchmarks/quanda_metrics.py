"""quanda's metrics next to ours, on the digits. Needs an environment with quanda: ``pip install '.[demos,quanda]'``.

``python benchmarks/quanda_metrics.py RUN NOISY`` reads two finished runs: ``trak run --config configs/digits.yaml --run_dir RUN``,
and another with ``--data.init_args.label_noise 0.1 --evaluation.mislabeled data --run_dir NOISY``.
"""

from pathlib import Path

import numpy as np
import quanda
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from trak_lightning.cli.job import Job
from trak_lightning.evaluation.lds_run import models_folder
from trak_lightning.evaluation.result import read_result
from trak_lightning.interop.quanda import TRAKExplainer
from trak_lightning.retraining.outputs import read_outputs
from trak_lightning.scoring.scores import open_scores


def main(run: Path, noisy: Path, targets: int = 400) -> None:
    """Print the metrics of trak_lightning next to those of quanda.

    Args:
        run: run directory of configs/digits.yaml.
        noisy: run directory of the same with wrong labels.
        targets: number of targets to explain with quanda.
    """
    table = Table(
        title=f"quanda {quanda.__version__ if hasattr(quanda, '__version__') else ''} next to trak evaluate".strip()
    )
    for column in ("what", "ours", "quanda"):
        table.add_column(column, justify="left" if column == "what" else "right")
    job, explainer = _explainer(run)
    images, labels = (torch.stack(parts) for parts in zip(*_samples(job.target_data, targets), strict=True))
    stored = np.array(open_scores(job.run).values[:targets])
    scores = explainer.explain(images, labels)
    table.add_row(
        "largest difference of scores, relative",
        "",
        f"{np.abs(scores.numpy() - stored).max() / np.abs(stored).max():.1e}",
    )

    evaluated = read_result(job.run.evaluation / "lds-test.json").values["scores"]
    table.add_row(
        "LDS", f"{next(iter(evaluated.values()))['lds']:.4f}", f"{_lds(job, explainer, scores, labels, images):.4f}"
    )

    cases = {"scores": scores, "random scores": torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))}
    for name, values in cases.items():
        classes = quanda.metrics.downstream_eval.ClassDetectionMetric(explainer.model, job.train_data.dataset, s=5)
        classes.update(values, labels)
        first = np.argsort(-values.numpy(), axis=1)[:, :5]
        known = np.array([int(label) for _, label in _samples(job.train_data)])
        own = (known[first] == labels.numpy()[:, None]).mean()
        table.add_row(
            f"of the class of the target, among the first 5, {name}", f"{own:.4f}", f"{classes.compute()['score']:.4f}"
        )
        overlap = quanda.metrics.heuristics.TopKCardinalityMetric(explainer.model, job.train_data.dataset, top_k=5)
        overlap.update(values)
        table.add_row(
            f"distinct among the first 5 of all targets, {name}",
            f"{len(np.unique(first)) / first.size:.4f}",
            f"{overlap.compute()['score']:.4f}",
        )

    job, explainer = _explainer(noisy)
    known = np.asarray(job.datamodule.mislabeled)
    found = read_result(job.run.evaluation / "mislabeled-test.json").values["self-influence"]["auc"]
    metric = quanda.metrics.downstream_eval.MislabelingDetectionMetric(
        explainer.model, job.train_data.dataset, known.tolist(), precomputed_self_influence=explainer.self_influence()
    )
    share = len(known) / len(job.train_data)
    area = found * (1 - share) + share / 2  # of the curve of those found, from the area under the ROC curve
    table.add_row(
        "mislabeled samples, area under the curve of those found", f"{area:.4f}", f"{metric.compute()['score']:.4f}"
    )
    Console(width=120).print(table)


def _explainer(run: Path) -> tuple[Job, TRAKExplainer]:
    job = Job("check", ["--config", str(run / "config.yaml"), "--run_dir", str(run)])
    files = [str(path) for path in job.checkpoints()]
    return job, TRAKExplainer(job.model.eval(), job.train_data.dataset, checkpoints=files, cache_dir=run / "quanda")


def _samples(data, count: int | None = None) -> list:
    return [data.dataset[i] for i in range(count or len(data))]


def _lds(job: Job, explainer: TRAKExplainer, scores, labels, images) -> float:
    """LDS by quanda, from the outputs of the models that `trak evaluate` retrained."""
    settings = job.parts.evaluation
    subsets, outputs = read_outputs(
        models_folder(job.run, settings.fraction),
        settings.models,
        num_samples=len(job.train_data),
        num_targets=len(job.target_data),
    )
    metric = quanda.metrics.ground_truth.LinearDatamodelingMetric(
        explainer.model,
        job.train_data.dataset,
        m=len(subsets),
        subset_ids=[np.flatnonzero(subset).tolist() for subset in subsets],
        subset_ckpt_filenames=[""] * len(subsets),
    )
    said = {j: torch.from_numpy(output[: len(labels)]) for j, output in enumerate(outputs)}
    metric.update(scores.double(), labels, images, said)
    return metric.compute()["score"]


if __name__ == "__main__":
    auto_cli(main)
