"""``trak top``: the most helpful and most harmful training samples of a target."""

from collections.abc import Sequence

import numpy as np
from jsonargparse import Namespace

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.help import command_parser
from trak_lightning.cli.mistakes import UsageError
from trak_lightning.cli.output import print_json, print_trust, short
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.ranking import Ranking, rank
from trak_lightning.scoring.scores import Scores, open_scores


def main(argv: Sequence[str]) -> int:
    """Print a table of both."""
    parser = command_parser(
        "top",
        "RUN_DIR (--target I | --by_train I) [options]",
        "The most helpful and most harmful training samples of a target; or the targets that a training sample "
        "helps and harms most.",
    )
    parser.add_argument("--run_dir", type=str, required=True, help="a run directory with scores; also by position")
    parser.add_argument("--target", type=int | None, default=None, help="position of the target in its dataset")
    parser.add_argument(
        "--by_train", type=int | None, default=None, help="position of a training sample: rank the targets by it"
    )
    parser.add_argument("-k", type=int, default=10, help="number of samples to print on either side")
    parser.add_argument("--name", type=str | None, default=None, help="score file; default: the only one")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    config = CommandLine.of(argv, renamed={"--train": "--by_train"}).parse(parser)
    scores = open_scores(RunDirectory(config.run_dir), config.name)
    helpful, harmful = _rankings(config, scores)
    if config.json:
        entries = {"helpful": _entries(helpful), "harmful": _entries(harmful)}
        print_json({"path": scores.path, "trust": scores.trust, **entries})
        return 0
    if config.by_train is None:
        _print(f"Target {config.target} of {short(scores.path)}", "train", helpful, harmful)
    else:
        _print(f"Training sample {config.by_train} of {short(scores.path)}", "target", helpful, harmful)
    print_trust(scores)
    return 0


def _rankings(config: Namespace, scores: Scores) -> tuple[Ranking, Ranking]:
    if (config.target is None) == (config.by_train is None):
        raise UsageError("give either --target or --by_train, the position of one sample")
    if config.by_train is None:
        return scores.top(config.k, target=config.target), scores.bottom(config.k, target=config.target)
    effects = scores.effects(config.by_train)[None]
    if not 1 <= config.k <= scores.shape[0]:
        raise UsageError(f"k must lie in 1 … {scores.shape[0]}, the number of targets, got {config.k}")
    helpful, harmful = (rank(effects, which, config.k) for which in ("top", "bottom"))
    return Ranking(helpful.indices[0], helpful.values[0]), Ranking(harmful.indices[0], harmful.values[0])


def _entries(ranking: Ranking) -> list[dict[str, float]]:
    return [
        {"index": int(index), "score": float(value)}
        for index, value in zip(ranking.indices, ranking.values, strict=True)
    ]


def _print(title: str, what: str, helpful: Ranking, harmful: Ranking) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("rank", f"helpful: {what} index", "score", f"harmful: {what} index", "score"):
        table.add_column(heading, justify="right", no_wrap=heading == "score")
    for place in range(len(helpful.indices)):
        table.add_row(str(place + 1), *_entry(helpful, place), *_entry(harmful, place))
    Console().print(table)


def _entry(ranking: Ranking, place: int) -> tuple[str, str]:
    value = f"{ranking.values[place]:+.4g}"
    if ranking.spread is not None and np.isfinite(ranking.spread[place]):
        value += f" ± {ranking.spread[place]:.2g}"
    return str(ranking.indices[place]), value
