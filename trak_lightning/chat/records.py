"""Read examples as people keep them: JSON lines, JSON, Parquet, a folder of `datasets`, a dataset, or a list of mappings."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trak_lightning.errors import DataError, needed_for
from trak_lightning.scoring.display import after_question, excerpt, shortened

Record: TypeAlias = Mapping[str, Any]
TrainOn: TypeAlias = Literal["answers", "all"]
Source: TypeAlias = "str | Path | Iterable[Record]"

FORMATS = "JSON lines (.jsonl), JSON (.json), Parquet (.parquet), or a folder that datasets saved"


def answers_file(targets: str) -> str:
    """The file in a run directory that keeps the answers of these targets."""
    return f"answers{'' if targets == 'test' else f'-{targets}'}.jsonl"


def answer_line(question: str, text: str, span: str | None = None) -> str:
    """What is shown of a target: the answer, or the span of it that is asked about, after its question."""
    return after_question(question, shortened(excerpt(text, span)) or "(empty answer: only the end token)")


def answer_lines(file: Path) -> dict[int, str]:
    """The line of each answer that a file keeps, by the content hash of its tokens; none of a file of earlier versions, which has no hashes."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return {
        row["content"]: answer_line(row.get("question", ""), row["answer"], row.get("span"))
        for row in rows
        if "content" in row
    }


@dataclass(frozen=True)
class Records:
    """The examples of one source, in its order."""

    rows: tuple[Record, ...]
    name: str

    @classmethod
    def read(cls, source: Source) -> "Records":
        """Read all examples.

        Raises:
            DataError: the source is missing, of another format, broken, or empty; names the line.
        """
        path = Path(source) if isinstance(source, (str, Path)) else None
        name = str(path) if path is not None else type(source).__name__
        rows = tuple(_read(path) if path is not None else source)  # type: ignore[arg-type]
        if not rows:
            raise DataError(f"{name} is empty: there is no example in it")
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise DataError(
                    f"example {number} of {name} is a {type(row).__name__}; expected a mapping such as "
                    '{"messages": […]} or {"prompt": …, "completion": …}'
                )
        return cls(rows, name)

    def where(self, number: int) -> str:
        """How an error message names an example, counted from 0 as in scores."""
        return f"example {number} of {self.name}"


def _read(path: Path) -> Iterable[Any]:
    if path.is_dir():
        return _datasets().load_from_disk(str(path))
    if not path.is_file():
        raise DataError(f"there is no file {path} (looked in {path.absolute().parent})")
    if path.suffix in (".jsonl", ".ndjson"):
        return _json_lines(path)
    if path.suffix == ".json":
        return _json(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    raise DataError(f"{path} has the ending {path.suffix!r}; expected {FORMATS}")


def _json_lines(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number} is not valid JSON: {error}. Mend or delete that line.") from None


def _json(path: Path) -> Iterable[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}. If it has one example a line, name it .jsonl.") from None
    if not isinstance(found, list):
        raise DataError(f"{path} holds a {type(found).__name__}; expected a list of examples")
    return found


def _parquet(path: Path) -> Iterable[Any]:
    with needed_for(str(path), "pyarrow"):
        from pyarrow import ArrowInvalid, parquet
    try:
        return parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _datasets() -> Any:
    with needed_for("a folder of data", "datasets"):
        import datasets
    return datasets
