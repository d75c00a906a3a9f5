"""``trak report``: a run as a page."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.output import short_path, summary
from trak_lightning.cli.shown_samples import with_targets_of
from trak_lightning.cli.store_arguments import scored_parser
from trak_lightning.errors import SettingsError
from trak_lightning.registry import imported
from trak_lightning.run.atomic import require_writable
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_bytes
from trak_lightning.scoring.scores import open_scores


def main(argv: Sequence[str]) -> int:
    """Write the page."""
    options = CommandLine.of(argv, _parser()).parse()
    started = time.perf_counter()
    run = RunDirectory(options.run_dir)
    scores = open_scores(run, options.name)  # what is missing is said before torch is imported
    run.require_config("report(targets) of its TRAK object, or trak_lightning.report.write_report")
    require_writable(Path(options.output) if options.output else run.page(scores.path.stem))
    render = _function(options.render)

    from trak_lightning.cli.job import Job
    from trak_lightning.report.write import write_report

    job = Job("report", with_targets_of(run, scores))
    written = write_report(
        run.path,
        job.train_data,
        job.target_data,
        model=job.model,
        task=job.parts.task,
        verify=partial(job.require_same_rows, job.settings.train_split, job.settings.target_split),
        render=render,
        targets=options.targets,
        num_targets=options.num_targets,
        name=options.name,
        train_split=job.settings.train_split,
        target_split=job.settings.target_split,
        title=options.title,
        weights_only=job.settings.weights_only,
        path=options.output,
        token_scores=job.token_scores if options.tokens else None,
    )
    summary("report", f"{short_path(written)} ({format_bytes(written.stat().st_size)})", 1, "page", started)
    return 0


def _parser() -> ArgumentParser:
    parser = scored_parser(
        "report",
        "One self-contained page of a scored run: targets with the training examples that helped and harmed "
        "them, likely label errors, duplicates, and how far to trust the scores. It opens from disk.",
    )
    parser.add_argument("--targets", type=list[int] | None, help="positions of the targets to show: [3, 17]")
    parser.add_argument(
        "--num_targets", type=int, default=24, help="number of targets to show if none are named, mistakes first"
    )
    parser.add_argument(
        "--render",
        type=str | None,
        help="module:function or module.function that converts a sample to what the page shows; default: the DataModule's method render",
    )
    parser.add_argument("--title", type=str | None, help="title of the page; default: the run directory's name")
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="language models: mark the tokens of the first examples that moved each target; takes one backward pass per token",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="file to write; default: RUN_DIR/report/NAME.html, named as the scores are, such as test.html",
    )
    return parser


def _function(name: str | None) -> Any:
    if name is None:
        return None
    try:
        return imported(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"--render must name a function as module:function, importable from {Path.cwd()}; {name!r}: {error}"
        ) from error
