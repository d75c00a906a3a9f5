"""How well do scores predict models retrained on other halves of the training set? Several problems, many methods.

    python benchmarks/lds.py --fashion /usr/share/datasets/fashion-mnist
    python benchmarks/lds.py --problems [digits] --checkpoints [1,3] --dims [512,2048]
    python benchmarks/lds.py --peers '{traker: peers/traker/bin/python, kronfluence: peers/kronfluence/bin/python}'
    python benchmarks/lds.py --problems [gpt,llama] --checkpoints [1,3] --ensemble 3 --models 40 --ceiling 10 --words true

Trains what is missing in `folder` (ten checkpoints on random halves, a hundred models on other halves, a few minutes per problem),
scores with every method, and prints the linear datamodeling score with its 95 % bootstrap interval over targets; the lead of our scores
over the best peer (paired, on the same targets and models, which makes the interval of the difference much narrower); and the seconds of
processor time that features and scores took together, which other processes on the machine do not change. Set OMP_NUM_THREADS=1. A
peer runs in its own environment on the same checkpoints; its script in benchmarks/peers says how to create that environment. Its scores
are kept in `folder` and read from there if present.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jsonargparse import auto_cli
from problems import Trained, find_fashion, prepare, projector
from problems.fashion import ROOT
from rich.console import Console
from rich.table import Table

from trak_lightning import TRAK
from trak_lightning.data.dataset import AttributionData
from trak_lightning.evaluation.lds import bootstrap_mean, lds, noise_ceiling
from trak_lightning.retraining.outputs import read_outputs
from trak_lightning.scoring.calibration import FEWEST

Found: TypeAlias = tuple[str, int | str, int, np.ndarray, float]
"""Method, k, number of checkpoints, scores (m, n) and seconds."""

METHODS: dict[str, dict[str, Any]] = {
    "trak (default)": {"name": "trak"},
    "trak, calibrated λ": {"name": "trak", "regularization": "calibrate", "weights": "residual"},
    "trak as in the paper: W = I, λ = 0": {"name": "trak", "regularization": 0.0, "weights": "none"},
    "gradient_dot": {"name": "gradient_dot"},
}
FURTHER = ["leave_one_out", "influence", "gradient_cosine", "tracin"]

UNPROJECTED = {"kronfluence"}
"""Peers that do not project: they run once, for all k."""


def main(
    problems: list[str] = ["digits", "fashion", "glosses"],  # noqa: B006
    folder: Path = Path("runs/lds"),
    dims: list[int | str] = ["auto"],  # noqa: B006
    checkpoints: list[int] = [1, 3, 10],  # noqa: B006
    models: int = 100,
    ceiling: int = 0,
    ensemble: int = 10,
    fashion: Path = ROOT,
    further: bool = False,
    draws: int = 0,
    words: bool = False,
    methods: list[str] | None = None,
    peers: dict[str, str] = {},  # noqa: B006
    output: Path | None = None,
) -> None:
    """Print the table.

    Args:
        problems: names of problems.
        folder: folder for models, features and scores.
        dims: dimensions k of `sparse_jl`; 0 does not project, and needs memory and disk for all parameters; auto is the default projector.
        checkpoints: numbers of checkpoints to attribute with.
        models: number of retrained models to judge scores by.
        ceiling: number of these to train a second time, with other seeds, to estimate the score of a perfect prediction.
        ensemble: number of checkpoints to train.
        fashion: folder with the four files of Fashion-MNIST.
        further: whether to run all our scorers, not only those compared with peers.
        draws: curvature_draws of our methods.
        words: whether to compare samples by their words, too (BM25, TF-IDF), for problems whose inputs are token ids.
        methods: names of our methods, as in the table; None runs all.
        peers: other libraries: name → Python executable of an environment that has it.
        output: JSON file to write the rows to.
    """
    find_fashion(fashion)
    rows = []
    for name in problems:
        trained = prepare(name, folder / name, ensemble=max(ensemble, *checkpoints), models=models, again=ceiling)
        sizes = {"num_samples": len(trained.train), "num_targets": len(trained.targets)}
        subsets, outputs = read_outputs(trained.models, models, **sizes)
        if ceiling:
            again = read_outputs(trained.again, ceiling, **sizes)[1]
            print(f"{name:8} noise ceiling {_interval(noise_ceiling(outputs[:ceiling], again)[:3])}", flush=True)
        ours = [_ours(trained, folder / name, k, M, further, methods, draws) for k in dims for M in checkpoints]
        theirs = []
        for k in dims:
            theirs += [
                peer_scores(
                    trained.checkpoints,
                    name,
                    folder / name,
                    0 if peer in UNPROJECTED else k,
                    checkpoints,
                    fashion,
                    peer,
                    python,
                )
                for peer, python in peers.items()
                if (k == dims[0] if peer in UNPROJECTED else isinstance(k, int) and k > 0)
            ]
        theirs += [_of_words(trained, M) for M in checkpoints if words]
        best: dict[int, np.ndarray] = {}
        # Peers first: ours are compared with the best of them, target by target.
        for peer, found_by in ((True, theirs), (False, ours)):
            for method, k, M, scores, seconds in chain.from_iterable(found_by):
                each = lds([scores], subsets, outputs)
                if peer and (M not in best or np.nanmean(each) > np.nanmean(best[M])):
                    best[M] = each
                found = bootstrap_mean(each, seed=0)
                ahead = bootstrap_mean(each - best[M], seed=0) if not peer and M in best else None
                row = {
                    "problem": name,
                    "method": method,
                    "k": k,
                    "M": M,
                    "lds": found,
                    "seconds": seconds,
                    "ahead": ahead,
                }
                rows.append(row)
                print(
                    f"{name:8} {method:36} k = {k or 'p':5} M = {M:2} LDS {_interval(found)} {seconds:.1f} s"
                    + ("" if ahead is None else f", ahead of the best peer by {_interval(ahead)}"),
                    flush=True,
                )
                if output is not None:
                    output.write_text(json.dumps(rows, indent=1))
    table = Table(title=f"Linear datamodeling score, {models} retrained models")
    for column in ("problem", "checkpoints", "method", "k", "LDS, 95 % interval", "time", "ahead of the best peer"):
        table.add_column(column)
    for row in sorted(rows, key=lambda row: (problems.index(row["problem"]), row["M"], -row["lds"][0])):
        ahead = "" if row["ahead"] is None else _interval(row["ahead"])
        size, time_taken = str(row["k"] or "p"), f"{row['seconds']:.1f} s"
        table.add_row(row["problem"], str(row["M"]), row["method"], size, _interval(row["lds"]), time_taken, ahead)
    Console(width=140).print(table)


def _interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


def _ours(
    trained: Trained, folder: Path, k: int | str, M: int, further: bool, only: list[str] | None, draws: int
) -> Iterator[Found]:
    run = folder / f"ours-{k}-{M}"
    shutil.rmtree(run, ignore_errors=True)  # so that everything is timed
    trak = TRAK(trained.model, trained.task, run, projector=projector(k), curvature_draws=draws)
    started = time.process_time()
    trak.featurize(trained.train, trained.checkpoints[:M])
    trak.score(trained.targets, "test", scorer="gradient_dot", top=1)  # which featurizes the targets
    featurized = time.process_time() - started
    methods = METHODS | {name: {"name": name} for name in FURTHER if further}
    for method, scorer in methods.items():
        if (only is not None and method not in only) or (scorer.get("regularization") == "calibrate" and M < FEWEST):
            continue
        shutil.rmtree(run / "factors", ignore_errors=True)
        started = time.process_time()
        scores = np.array(trak.score(trained.targets, "test", scorer=scorer).values)
        yield method, k, M, scores, featurized + time.process_time() - started
    for large in ("features", "factors"):
        shutil.rmtree(run / large, ignore_errors=True)


def _of_words(trained: Trained, M: int) -> Iterator[Found]:
    """BM25 (k1 = 1.2, b = 0.75) and the cosine of TF-IDF vectors, from token ids without padding; the training label adds nothing."""
    started = time.process_time()
    documents, queries = (
        [[token for token in np.asarray(ids).tolist() if token] for ids in _token_ids(data)]
        for data in (trained.train, trained.targets)
    )
    vocabulary = 1 + max(map(max, documents + queries))
    counts, asked = (
        np.stack([np.bincount(ids, minlength=vocabulary) for ids in each]) for each in (documents, queries)
    )
    holding, length = (counts > 0).sum(0), counts.sum(1, keepdims=True)
    n = len(documents)
    idf = np.log(1 + (n - holding + 0.5) / (holding + 0.5))
    saturated = counts * 2.2 / (counts + 1.2 * (0.25 + 0.75 * length / length.mean()))
    yield "BM25", "", M, (asked > 0) @ (idf * saturated).T, time.process_time() - started
    started = time.process_time()
    rows = [each * (np.log((1 + n) / (1 + holding)) + 1) for each in (asked, counts)]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows]
    yield "TF-IDF", "", M, unit[0] @ unit[1].T, time.process_time() - started


def _token_ids(data: AttributionData) -> Iterator[Any]:
    for position in range(len(data)):
        sample = data.dataset[position]
        yield sample[0] if isinstance(sample, tuple) else sample


def peer_scores(
    checkpoints: list[Path],
    problem: str,
    folder: Path,
    k: int,
    counts: list[int],
    fashion: Path,
    peer: str,
    python: str,
) -> Iterator[Found]:
    """Run the script of another library, unless its scores lie in `folder`."""
    output = folder / f"{peer}-{k}.npz"
    if not output.exists():
        script = Path(__file__).parent / "peers" / f"with_{peer}.py"
        names = [str(path) for path in checkpoints[: max(counts)]]
        numbers = ",".join(str(count) for count in counts)
        command = [python, str(script), problem, str(fashion), str(k), numbers, str(output), *names]
        if subprocess.run(command, check=False).returncode:
            print(f"{problem} {peer} k = {k}: failed")
    if output.exists():
        with np.load(output) as found:
            for key in found:
                method, count, what = key.split("|")
                if what == "scores":
                    seconds = float(found[f"{method}|{count}|seconds"])
                    unprojected = not method.startswith(("traker", "dattri TRAK"))
                    yield method, 0 if unprojected else k, int(count), found[key], seconds


if __name__ == "__main__":
    auto_cli(main)
