"""Commands that need no torch: score, evaluate (unless models have yet to be retrained), top."""

import time
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from trak_lightning.cli.arguments import TRAINING_KEYS, light_parser, open_run
from trak_lightning.cli.names import rewrite
from trak_lightning.cli.output import summary
from trak_lightning.errors import DataError, IncompleteRunError
from trak_lightning.evaluation.stage import evaluate_run
from trak_lightning.rundir import RunDirectory
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.stage import score_run


def score(argv: Sequence[str]) -> int:
    """``trak score``."""
    started = time.perf_counter()
    parser = light_parser("score", "Attribute the targets to the training samples, from the features of a run.")
    config = parser.parse_args(rewrite(argv, reads=("store", "scorer")))
    instances = parser.instantiate(config)
    run, store = open_run(config, instances)
    scores, fresh = score_run(run, store, instances.scorer, train=config.train_split, targets=config.target_split)
    summary("score", f"{scores.describe()} in {scores.path}", int(fresh), "computed", started)
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """``trak evaluate``."""
    if any(
        token.lstrip("-").partition(".")[0].partition("=")[0] in TRAINING_KEYS for token in argv if token[:2] == "--"
    ):
        return _retrain_and_evaluate(argv)
    started = time.perf_counter()
    parser = light_parser(
        "evaluate",
        "Linear datamodeling score: do the scores predict models retrained on random subsets of the training set? Models "
        "that are missing are retrained, with the model, data and trainer of the configuration.",
    )
    config = parser.parse_args(rewrite(argv, reads=("store", "scorer")))
    instances = parser.instantiate(config)
    run, store = open_run(config, instances)
    try:
        evaluation, fresh = evaluate_run(
            run,
            store,
            instances.scorer,
            instances.evaluation,
            seed=config.seed,
            train=config.train_split,
            targets=config.target_split,
        )
    except IncompleteRunError:
        return _retrain_and_evaluate(argv)
    evaluation.print()
    summary("evaluate", evaluation.headline(), int(fresh), "computed", started)
    return 0


def _retrain_and_evaluate(argv: Sequence[str]) -> int:
    from trak_lightning.cli import training

    return training.evaluate(argv)


def top(argv: Sequence[str]) -> int:
    """``trak top``."""
    from rich.console import Console
    from rich.table import Table

    parser = ArgumentParser(prog="trak top", description="The most helpful and harmful training samples of a target.")
    parser.add_argument("run_dir", type=str, help="a run directory with scores")
    parser.add_argument("--target", type=int, required=True, help="position of the target in its dataset")
    parser.add_argument("-k", type=int, default=10, help="how many of each")
    parser.add_argument("--name", type=str | None, default=None, help="score file; default: the only one")
    config = parser.parse_args(list(argv))
    scores = _open_scores(RunDirectory(config.run_dir), config.name)
    m, n = scores.values.shape
    if not 0 <= config.target < m:
        raise DataError(f"--target {config.target} is out of range: {scores.path} has targets 0 … {m - 1}")
    if not 1 <= config.k <= n:
        raise DataError(f"-k {config.k} is out of range: there are {n} training samples")
    helpful, harmful = scores.top(config.k, target=config.target), scores.bottom(config.k, target=config.target)
    table = Table(title=f"Target {config.target} of {scores.path}", title_justify="left")
    for heading in ("rank", "helpful: train index", "score", "harmful: train index", "score"):
        table.add_column(heading, justify="right")
    for rank in range(config.k):
        table.add_row(
            str(rank + 1),
            str(helpful.indices[rank]),
            f"{helpful.values[rank]:+.4g}",
            str(harmful.indices[rank]),
            f"{harmful.values[rank]:+.4g}",
        )
    Console().print(table)
    return 0


def _open_scores(run: RunDirectory, name: str | None) -> Scores:
    found = sorted(path.stem for path in (run.path / "scores").glob("*.h5"))
    if not found:
        raise IncompleteRunError(f"there are no scores in {run.path / 'scores'}. Run trak score first.")
    if name is None and len(found) > 1:
        raise DataError(f"{run.path} has several score files, {', '.join(found)}: choose one with --name")
    if name is not None and name not in found:
        raise DataError(f"{run.path} has no scores named {name!r}; it has {', '.join(found)}")
    return Scores(run.scores(name or found[0]))
