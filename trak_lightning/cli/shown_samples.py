"""Label and content of samples, for the tables that commands print: kept lines, or the user's data if they are not known."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from trak_lightning.chat.records import answer_lines, answers_file
from trak_lightning.errors import DataError
from trak_lightning.featurize.reuse import changed_samples
from trak_lightning.run.content_hashes import changed
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.sample_lines import SampleLine, SampleLines
from trak_lightning.scoring.display import ShownLine, ShowsLines, shortened
from trak_lightning.scoring.held_out import numbers_of
from trak_lightning.scoring.scores import Scores
from trak_lightning.stores.base import FeatureStore
from trak_lightning.stores.configured import configured, open_store

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job
    from trak_lightning.data.dataset import AttributionData

What: TypeAlias = Literal["train", "target"]

SECONDS = 1.0
"""How long samples may be read that later commands may show."""
RANKED = 10
"""How many of the best and of the worst training samples of a target these are."""


class ShownSamples:
    """Some samples of a split, by position."""

    def __init__(self, lines: Mapping[int, SampleLine]) -> None:
        self._lines = lines

    def show(self, index: int) -> SampleLine:
        """The label and the line of a sample."""
        return self._lines[index]


class ShownOrSaidWhyNot:
    """Samples, empty ones from the first on that cannot be shown; the reason is printed on standard error."""

    def __init__(self, samples: ShowsLines) -> None:
        self._samples: ShowsLines | None = samples

    def show(self, index: int) -> ShownLine:
        try:
            return SampleLine(None, "") if self._samples is None else self._samples.show(index)
        except Exception as error:  # a user's data module may raise anything, and the numbers are there
            print(_not_shown(error), file=sys.stderr)
            self._samples = None
            return self.show(index)


def with_targets_of(run: RunDirectory, scores: Scores | None) -> list[str]:
    """The arguments of a job whose targets and training samples are those of `scores`, if the file says which these are."""
    return _arguments(run, {} if scores is None else _splits(scores))


def _splits(scores: Scores) -> dict[What, str | None]:
    return {"train": scores.train_split, "target": scores.target_split}


def _arguments(run: RunDirectory, splits: Mapping[What, str | None]) -> list[str]:
    return [str(run.path), *(f"--{what}_split={split}" for what, split in splits.items() if split)]


def shown_samples(
    command: str,
    run: RunDirectory,
    wanted: Mapping[What, Iterable[int]],
    counts: Mapping[What, int],
    scores: Scores | None = None,
    splits: Mapping[What, str | None] | None = None,
) -> dict[What, ShownSamples]:
    """Show samples of a run, or groups of its targets.

    Args:
        command: the command that shows them.
        run: the run directory.
        wanted: their positions.
        counts: how many samples there were when scores or features were computed.
        scores: the scores that they are shown with, if any.
        splits: where the samples are, if not those of `scores`, or of the run.

    Returns:
        Those that can be shown; the reason for others is printed on standard error.
    """
    if not run.config.exists():
        return {}
    found: dict[What, ShownSamples] = {}
    reasons = []
    kept, job = SampleLines(run), None
    splits = splits or ({} if scores is None else _splits(scores))
    for what, positions in wanted.items():
        if what == "target" and scores is not None and scores.grouped:
            names = scores.group_names or [""] * len(scores)
            found[what] = ShownSamples({position: SampleLine(None, name) for position, name in enumerate(names)})
            continue
        try:
            content = _Contents(open_store(run), run, _split(run, what, splits)).of(positions)
            lines = _answers(run, what, splits, content) or kept.find(content)
            if lines is None:
                if job is None:
                    from trak_lightning.cli.job import Job

                    job = Job(command, _arguments(run, splits))
                lines = _read(job, what, content, counts[what])
                kept.add({content[position]: line for position, line in lines.items()})
            found[what] = ShownSamples(lines)
        except Exception as error:  # a user's data module may raise anything, and the numbers are there
            reasons.append(_not_shown(error))
    for reason in dict.fromkeys(reasons):
        print(reason, file=sys.stderr)
    if job is not None and scores is not None and not reasons:
        keep_samples(job, scores)
    return found


def _answers(
    run: RunDirectory, what: What, splits: Mapping[What, str | None], content: Mapping[int, int]
) -> dict[int, SampleLine] | None:
    """The answers that are the targets of ``trak sft``, each after its question, given content hashes; None of other targets."""
    if what == "train":
        return None
    lines = answer_lines(run.path / answers_file(_split(run, what, splits)))
    found = {position: SampleLine(None, lines[hashed]) for position, hashed in content.items() if hashed in lines}
    return found if len(found) == len(content) else None


def shown_train(
    command: str, run: RunDirectory, positions: Iterable[int], count: int, split: str
) -> ShownSamples | None:
    """Show training samples of a run, see `shown_samples`; None if they cannot be shown."""
    return shown_samples(command, run, {"train": positions}, {"train": count}, splits={"train": split}).get("train")


def all_train(job: "Job") -> ShowsLines:
    """Show any training sample of a job that has compared them with the stored rows."""
    return ShownOrSaidWhyNot(_samples(job, "train"))


def _not_shown(error: Exception) -> str:
    return f"samples are not shown: {type(error).__name__}: {error}"


def keep_samples(job: "Job", scores: Scores) -> None:
    """Keep lines of targets and of their best and worst training samples, those of one target and of as many as can be read in
    `SECONDS`."""
    kept, until = SampleLines(job.run), time.perf_counter() + SECONDS
    new: dict[int, SampleLine] = {}
    if not job.run.config.exists():
        return
    contents = {what: _Contents(job.store, job.run, _split(job.run, what, _splits(scores))) for what in get_args(What)}
    for target, what, position in _ranked(scores):
        if target and time.perf_counter() > until:
            break
        content = contents[what].of([position])
        if kept.find(content) is None:
            try:
                new[content[position]] = _read(job, what, content, scores.shape[what == "train"])[position]
            except Exception:  # the user's code may raise anything; a command that shows this sample says what
                break
    kept.add(new)


def _ranked(scores: Scores) -> Iterator[tuple[int, What, int]]:
    for target in range(len(scores)):
        if not scores.grouped:
            yield target, "target", target
        for side in scores.sides(min(RANKED, scores.shape[1]), target):
            yield from ((target, "train", int(position)) for position in side.indices)


def _split(run: RunDirectory, what: What, splits: Mapping[What, str | None]) -> str:
    return str(splits.get(what) or configured(run, f"{what}_split"))


class _Contents:
    """The content hashes that are stored with the rows of a split."""

    def __init__(self, store: FeatureStore, run: RunDirectory, split: str) -> None:
        rows = store.open(split, run.require_checkpoints()[0].id)
        self._size = rows.spec.block_size
        self._block = lru_cache(maxsize=None)(lambda block: rows.column("content", [block]))

    def of(self, positions: Iterable[int]) -> dict[int, int]:
        return {int(each): int(self._block(int(each) // self._size)[int(each) % self._size]) for each in positions}


def stored_numbers(job: "Job", split: str) -> Callable[[int], float] | None:
    """`numbers_of` a split, for a task that predicts numbers."""
    number = job.parts.task.meaning.number
    return numbers_of(job.store.open(split, job.run.require_checkpoints()[0].id)) if number else None


def _read(job: "Job", what: What, content: Mapping[int, int], count: int) -> dict[int, SampleLine]:
    """Read samples, given their stored content hashes, and refuse those that have changed."""
    data, split = _data(job, what)
    if len(data) != count:
        raise DataError(f"the data has {len(data)} samples, and the run was made with {count}")
    if job.settings.verify_data != "off":
        now = {position: data.content(position) for position in content}
        others = [position for position, then in content.items() if changed(then, now[position])]
        if (error := changed_samples(split, others, len(content), read_all=False)) is not None:
            raise error
    samples = _samples(job, what)
    shown = {position: samples.show(position) for position in content}
    return {position: SampleLine(each.label, shortened(each.line)) for position, each in shown.items()}


def _data(job: "Job", what: What) -> "tuple[AttributionData, str]":
    settings = job.settings
    return (job.train_data, settings.train_split) if what == "train" else (job.target_data, settings.target_split)


def _samples(job: "Job", what: What) -> ShowsLines:
    from trak_lightning.report.known import samples_of

    data, split = _data(job, what)
    return samples_of(data, task=job.parts.task, class_names=job.class_names, number_of=stored_numbers(job, split))
