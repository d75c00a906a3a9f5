"""``trak tokens``: which tokens of a training sample moved which tokens of a target."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.output import print_json, summary
from trak_lightning.cli.shown_samples import with_targets_of
from trak_lightning.cli.store_arguments import add_json, scored_parser
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.display import TOKENIZER, print_table
from trak_lightning.scoring.same_rows import require_scored
from trak_lightning.scoring.scores import open_scores
from trak_lightning.stores.configured import open_store

STRONGEST = 8
SHOWN = 3
POSITION = "position"


def main(argv: Sequence[str]) -> int:
    """Print, for each pair, its strongest pairs of tokens."""
    parser = scored_parser(
        "tokens",
        "Which tokens of a training sample moved which tokens of a target? The values of a pair sum to its score. Takes one "
        "backward pass per token.",
        usage="RUN_DIR --target I [--example I] [options]",
    )
    parser.add_argument("--target", type=int | None, help="position of the target in its dataset")
    parser.add_argument(
        "--example", type=int | None, help="position of a training sample; default: the most helpful ones, see -k"
    )
    parser.add_argument(
        "-k",
        type=int | None,
        help=f"number of most helpful training samples to show where --example names none; default: {SHOWN}",
    )
    add_json(parser)
    config = CommandLine.of(argv, parser, renamed={"--train": "--example"}).parse()
    if config.target is None:
        raise UsageError("target is missing: --target 0")
    run = RunDirectory(config.run_dir)
    scores = open_scores(run, config.name)
    require_scored(open_store(run), scores)
    run.require_config("token_scores(targets, pairs) of its TRAK object")
    best = scores.top(min(SHOWN, scores.shape[1]) if config.k is None else config.k, target=config.target).indices
    examples = [int(index) for index in best] if config.example is None else [config.example]

    from trak_lightning.cli.job import Job
    from trak_lightning.report.known import samples_of_both

    job = Job("tokens", with_targets_of(run, scores))
    train, targets = samples_of_both(job.train_data, job.target_data, task=job.parts.task, model=job.model)
    found = [
        {
            "target": pair.target,
            "example": pair.example,
            "score": pair.score,
            "target_positions": pair.target_positions,
            "example_positions": pair.example_positions,
            "target_tokens": targets.token_texts(pair.target, pair.target_positions),
            "example_tokens": train.token_texts(pair.example, pair.example_positions),
            "values": pair.values,
        }
        for pair in job.token_scores([(config.target, example) for example in examples])
    ]
    if config.json:
        print_json(found)
    else:
        _print_all(found, getattr(job.parts.task, "term", "token"), tokenized=train.tokenizer is not None)
    return 0


def _print_all(pairs: Sequence[dict[str, Any]], term: str, *, tokenized: bool) -> None:
    for pair in pairs:
        _print(pair, term, tokenized=tokenized)
    if not tokenized and term == "token":
        summary("tokens", f"are shown by their positions among the labels; as text with {TOKENIZER}")


def _print(pair: dict[str, Any], term: str, *, tokenized: bool) -> None:
    values = pair["values"]
    strongest = np.argsort(-np.abs(values), axis=None, kind="stable")[:STRONGEST]
    i, j = np.unravel_index(strongest, values.shape)
    columns = _columns(pair, "example", f"training {term}", j, tokenized)
    columns += _columns(pair, "target", f"moved target {term}", i, tokenized)
    columns += [("by", [f"{value:+.3g}" for value in values[i, j]])]
    headings, cells = zip(*columns, strict=True)
    title = (
        f"target {pair['target']}, training sample {pair['example']}: {pair['score']:+.4g} = sum over "
        f"{values.shape[0]} × {values.shape[1]} {term}s"
    )
    numeric = [place for place, heading in enumerate(headings) if heading in (POSITION, "by")]
    print_table(headings, zip(*cells, strict=True), numeric=numeric, title=title)


def _columns(
    pair: dict[str, Any], what: str, heading: str, places: Array, tokenized: bool
) -> list[tuple[str, list[str]]]:
    """The positions among the labels of some tokens, and their texts, which are positions where nothing decodes them."""
    texts = [pair[f"{what}_tokens"][place] for place in places]
    if not tokenized:
        return [(heading, texts)]
    return [(POSITION, [str(pair[f"{what}_positions"][place]) for place in places]), (heading, list(map(repr, texts)))]
