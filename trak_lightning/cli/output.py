"""What commands print on standard output: one line per stage, tables, and JSON where it is asked for."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning.evaluation.result import Result, lds_of, measured_lds
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.lds_in_words import UNKNOWN, in_words
from trak_lightning.scoring.scores import Scores


def summary(stage: str, what: str, new: int | None = None, verb: str = "", started: float | None = None) -> None:
    """Print one line: the stage, its result, and what was done now. ``new=0`` says that nothing was left to do; True is the whole result."""
    if new is None:
        done = ""
    elif new:
        seconds = f" in {time.perf_counter() - started:.1f} s" if started is not None else ""
        done = f" ({'' if new is True else f'{new} '}{verb}{seconds})"
    else:
        done = " (already finished, nothing to do)"
    print(f"{stage:<10} {what}{done}", flush=True)


def trust_in(run: RunDirectory, scores: Scores) -> dict[str, Any]:
    """How well the scores predict retrained models: as measured, as the checkpoints predict, or why they cannot tell."""
    if (result := measured_lds(run, scores)) is None or np.isnan(lds_of(result)).any():
        return {"trust": scores.trust, "trust_unknown": scores.trust_unknown}
    lds, low, high = lds_of(result)
    models = f"{result.values['num_models']} retrained models"
    word, interval = in_words(lds, low, high), f"[{low:.3f}, {high:.3f}] over {models}"
    sentence = (
        f"{word}: the LDS is anywhere in {interval}; more of these would narrow this"
        if word == UNKNOWN
        else f"{word}, as measured: LDS {lds:.3f} {interval}"
    )
    return {"trust": {"lds": lds, "low": low, "high": high, "sentence": sentence}, "trust_unknown": None}


def print_trust(run: RunDirectory, scores: Scores) -> None:
    """Print how well the scores predict retrained models, if that is known."""
    if found := trust_in(run, scores)["trust"]:
        summary("trust", found["sentence"])


def print_trust_or_why_not(run: RunDirectory, scores: Scores) -> None:
    """Print what `trust_in` says, if anything."""
    print_trust(run, scores)
    if unknown := trust_in(run, scores)["trust_unknown"]:
        summary("trust", unknown)


def short_path(path: Path) -> Path:
    """A path as a person in the working directory writes it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) and path != here else path


def print_json(found: Any) -> None:
    """Print the numbers behind a table, as one JSON document."""
    print(json.dumps(found, indent=1, ensure_ascii=False, default=_plain))


def print_results(
    results: Iterable[tuple[Result, bool]], speaks: Callable[[], bool], *, as_json: bool = False, skipped: str = ""
) -> None:
    """Print each result of an evaluation as soon as it is there, or all as JSON, in the process that `speaks` for the job; last, why the
    LDS was `skipped`."""
    started, found = time.perf_counter(), []
    for result, computed in results:
        found.append(result.to_json())
        if speaks() and not as_json:
            result.print()
            summary("evaluate", result.headline, computed, "computed", started)
        started = time.perf_counter()
    if (skipped or not found) and speaks() and not as_json:
        summary("evaluate", skipped or "nothing is asked for: evaluation.models is 0")
    if as_json and speaks():
        print_json(found)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


@contextmanager
def narrated() -> Iterator[None]:
    """Print what our own modules log, one line each."""
    logger = logging.getLogger("trak_lightning")
    handler, level = _Printer(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Printer(logging.Handler):
    """Prints to what is standard output at that moment: a progress bar puts a stream there that moves the bar aside."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)
