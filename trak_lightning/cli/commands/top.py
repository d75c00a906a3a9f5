"""``trak top``: the most helpful and most harmful training samples of a target; without one, the targets that the models get wrong, or
those with the lowest probability or output if no target is right or wrong."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

import numpy as np
from jsonargparse import Namespace

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.kept_mistakes import find_mistakes
from trak_lightning.cli.kept_mistakes import says as says_of
from trak_lightning.cli.output import print_json, print_trust, short_path, trust_in
from trak_lightning.cli.shown_samples import ShownSamples, What, shown_samples
from trak_lightning.cli.store_arguments import add_json, add_numbers, scored_parser
from trak_lightning.errors import DataError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_number
from trak_lightning.run.sample_lines import SampleLine
from trak_lightning.scoring.display import print_table, print_to_read, ranking_table, ranking_title, sample_columns
from trak_lightning.scoring.mistakes import Mistakes
from trak_lightning.scoring.ranking import Ranking, rank, signed
from trak_lightning.scoring.same_rows import require_scored
from trak_lightning.scoring.scores import Scores, open_scores
from trak_lightning.stores.configured import open_store

SHOWN = 10


def main(argv: Sequence[str]) -> int:
    """Print the most helpful and most harmful samples, or the mistakes; return 0."""
    parser = scored_parser(
        "top",
        "The most helpful and most harmful training samples of a target; or the targets that a training sample "
        "helps and harms most. Without either, the targets whose label is not what the models say, worst first; for a task that predicts "
        "neither classes nor numbers, the targets with the lowest probability or output.",
        usage="RUN_DIR [--target I | --by_train I] [options]",
    )
    parser.add_argument("--target", type=int | None, help="position of the target in its dataset")
    parser.add_argument("--by_train", type=int | None, help="position of a training sample: rank the targets by it")
    parser.add_argument(
        "-k", type=int | None, help=f"number of samples to print on either side; default: {SHOWN}, or all if fewer"
    )
    add_json(parser)
    add_numbers(parser)
    config = CommandLine.of(argv, parser, renamed={"--train": "--by_train"}).parse()
    run = RunDirectory(config.run_dir)
    scores = open_scores(run, config.name)
    require_scored(open_store(run), scores)
    if config.target is None and config.by_train is None:
        return _print_targets(config, run, scores)
    helpful, harmful = _rankings(config, scores)
    what: What = "train" if config.by_train is None else "target"
    by = config.target if what == "train" else config.by_train
    with redirect_stdout(sys.stderr) if config.json else nullcontext():  # the user's code may print
        samples, own = (None, None) if config.numbers else _shown(run, scores, (helpful, harmful), what, by)
        says = says_of(run, scores, by) if what == "train" and not config.numbers else None
    if config.json:
        asked = {"index": by, **_line(own), **(scores.outputs(by) if what == "train" else {})}
        asked |= {} if says is None else {"says": says}
        entries = {"helpful": _entries(helpful, samples), "harmful": _entries(harmful, samples)}
        of = "target" if what == "train" else "train"
        print_json({"path": scores.path, of: asked, **trust_in(run, scores), **entries})
        return 0
    from rich.console import Console

    kind, facts = ("Target", scores.facts(by)) if what == "train" else ("Training sample", [])
    title = ranking_title(f"{kind} {by} of {short_path(scores.path)}", own, facts, scores.averaged, says)
    headings = scores.meaning.headings
    Console().print(ranking_table(title, what, headings, (helpful, harmful), samples))
    print_trust(run, scores)
    return 0


def _rankings(config: Namespace, scores: Scores) -> tuple[Ranking, Ranking]:
    if config.target is not None and config.by_train is not None:
        raise UsageError("give either --target or --by_train, the position of one sample")
    if config.by_train is None:
        return scores.sides(min(SHOWN, scores.shape[1]) if config.k is None else config.k, config.target)
    effects = scores.effects(config.by_train)[None]
    k = min(SHOWN, scores.shape[0]) if config.k is None else config.k
    if not 1 <= k <= scores.shape[0]:
        raise UsageError(f"k must lie in 1 … {scores.shape[0]}, the number of targets, got {k}")
    helpful, harmful = (rank(effects, which, k) for which in ("top", "bottom"))
    return (
        signed(Ranking(helpful.indices[0], helpful.values[0]), "top"),
        signed(Ranking(harmful.indices[0], harmful.values[0]), "bottom"),
    )


def _print_targets(config: Namespace, run: RunDirectory, scores: Scores) -> int:
    """Print which targets the models get wrong, or are least sure of, and how to look at one."""
    ask = "--target I or --by_train I, the position of one sample"
    if scores.grouped:
        raise UsageError(
            f"give {ask}: {short_path(scores.path)} has scores of groups of targets, and which are mistakes is known of single ones"
        )
    with redirect_stdout(sys.stderr) if config.json else nullcontext():  # the user's code may print
        try:
            found = find_mistakes(run, scores)
        except DataError as error:
            raise UsageError(f"give {ask}. Which targets the models get wrong is not known: {error}") from error
    if found is None:
        return _print_lowest(config, run, scores, ask)
    k = min(SHOWN if config.k is None else config.k, len(found))
    if config.json:
        print_json({"path": scores.path, **found.to_json(k), **trust_in(run, scores)})
        return 0
    print(f"{found.describe()}{f' ({scores.averaged})' if scores.averaged else ''}")
    if len(found):
        _print_worst(found, k, scores)
        _print_how_to_look(config, run, found[0].target, k, len(found))
    return 0


def _print_worst(found: Mistakes, k: int, scores: Scores) -> None:
    last = "error" if found.number else scores.meaning.probability_name
    rows = [
        (
            str(each.target),
            each.label or "",
            each.said,
            format_number(each.error, 3) if each.error is not None else f"{each.probability:.3f}",
        )
        for each in found[:k]
    ]
    print_table(("target", "label", "models say", last), rows, numeric=(0, 3))


def _print_lowest(config: Namespace, run: RunDirectory, scores: Scores, ask: str) -> int:
    """Print the targets with the lowest stored probability or, if that is not known, the lowest output f. Nothing is predicted."""
    outputs, meaning = scores.outputs(), scores.meaning
    probable = bool(np.isfinite(outputs.get("probability", np.full(1, np.nan))).any())
    heading, key = (meaning.probability_name, "probability") if probable else (meaning.output, "output")
    if key not in outputs:
        raise UsageError(f"give {ask}: {short_path(scores.path)} does not hold the outputs of targets")
    values = outputs[key]
    order = np.argsort(values, kind="stable")[
        : np.isfinite(values).sum()
    ]  # NaN, last, is of a target without any label that counts
    why = (
        "the task predicts neither classes nor numbers, so that no target is right or wrong"
        if run.config.exists() or not (meaning.number or meaning.probability)
        else "the run was made in Python, where mistakes() of the scores that TRAK.score returns predicts targets, if the task does"
    )
    said = f"{len(order):,} targets, lowest {heading} first"
    k = min(SHOWN if config.k is None else config.k, len(order))
    first = order[:k].tolist()
    with redirect_stdout(sys.stderr) if config.json else nullcontext():  # the user's code may print
        wanted: dict[What, list[int]] = {"target": first}
        shown = {} if config.numbers else shown_samples("top", run, wanted, {"target": len(scores)}, scores)
    samples = shown.get("target")
    if config.json:
        lowest = [
            {"target": each}
            | {name: float(found[each]) for name, found in outputs.items() if np.isfinite(found[each])}
            | _line(None if samples is None else samples.show(each))
            for each in first
        ]
        described = {"found": f"{said}: {why}", "num_targets": len(scores), "indices": order.tolist()}
        print_json({"path": scores.path, **described, "lowest": lowest, **trust_in(run, scores)})
        return 0
    print(f"{said}{f' ({scores.averaged})' if scores.averaged else ''}: {why}")
    columns = {"target": [str(each) for each in first], heading: [format_number(values[each], 3) for each in first]}
    columns |= sample_columns(first, samples)
    print_table(tuple(columns), zip(*columns.values(), strict=True), numeric=(0, 1))
    print_to_read(first, samples)
    if first:
        _print_how_to_look(config, run, first[0], k, len(order))
    return 0


def _print_how_to_look(config: Namespace, run: RunDirectory, target: int, k: int, count: int) -> None:
    """The last line of a list of targets, of which `k` of `count` are printed."""
    more = f"The first {k} of {count:,}; -k {count} prints them. " if k < count else ""
    name = "" if config.name is None else f" --name {config.name}"
    print(f"{more}To see what moved one: trak top {short_path(run.path)}{name} --target {target}")


def _shown(
    run: RunDirectory, scores: Scores, sides: Sequence[Ranking], what: What, by: int
) -> tuple[ShownSamples | None, SampleLine | None]:
    """The ranked samples, and the one that they are ranked by, or the name of a group of targets."""
    other: What = "target" if what == "train" else "train"
    wanted: dict[What, list[int]] = {what: [int(index) for side in sides for index in side.indices], other: [by]}
    counts: dict[What, int] = {"target": scores.shape[0], "train": scores.shape[1]}
    shown = shown_samples("top", run, wanted, counts, scores)
    return shown.get(what), shown[other].show(by) if other in shown else None


def _entries(ranking: Ranking, samples: ShownSamples | None) -> list[dict[str, Any]]:
    """Index, score, its standard error or null, and label and text where samples are shown."""
    spread = np.full(len(ranking.indices), np.nan) if ranking.spread is None else ranking.spread
    return [
        {"index": int(index), "score": float(score), "spread": float(error) if np.isfinite(error) else None}
        | _line(None if samples is None else samples.show(int(index)))
        for index, score, error in zip(ranking.indices, ranking.values, spread, strict=True)
    ]


def _line(sample: SampleLine | None) -> dict[str, str | None]:
    return {} if sample is None else {"label": sample.label, "text": sample.line}
