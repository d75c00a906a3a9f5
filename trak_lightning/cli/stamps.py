"""Knowing in a moment that a command has nothing left to do.

A finished command leaves a stamp in ``run.json``: its arguments, the contents of its configuration files, of the source
files of model and data, and what it made. The same command finds all of that unchanged without importing torch. If
anything differs, the command runs as usual and finds out for itself what is missing.
"""

import argparse
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trak_lightning import __version__
from trak_lightning.cli.names import load_config
from trak_lightning.errors import TrakError
from trak_lightning.run.directory import RunDirectory


def finished(command: str, argv: Sequence[str]) -> bool:
    """Whether this very command has finished before and nothing that it depends on or made has changed since."""
    try:
        configs, run_dir = _files_of(argv)
        if run_dir is None:
            return False
        stamp = RunDirectory(run_dir).read().stages.get(command)
        return stamp is not None and all(
            [
                stamp["request"] == _request(argv, configs),
                all(_digest(Path(path)) == digest for path, digest in stamp["sources"].items()),
                all(_outline(Path(path)) == outline for path, outline in stamp["outputs"].items()),
                # What a process that died left behind while another one finished, the command itself deletes.
                not any(left for path in stamp["outputs"] for left in Path(path).rglob("*.part")),
            ]
        )
    except (TrakError, OSError, KeyError, TypeError):
        return False  # the command itself reports what is wrong, with all it knows


def record(
    run: RunDirectory, command: str, argv: Sequence[str], sources: Sequence[type], outputs: Sequence[Path]
) -> None:
    """Leave the stamp of a finished command."""
    files = {inspect.getsourcefile(source) for source in sources}
    stamp = {
        "request": _request(argv, _files_of(argv)[0]),
        "sources": {file: _digest(Path(file)) for file in files if file},
        "outputs": {str(path.resolve()): _outline(path.resolve()) for path in outputs},
    }
    record = run.read()
    run.write(replace(record, stages={**record.stages, command: stamp}))


def _files_of(argv: Sequence[str]) -> tuple[list[str], str | None]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--run_dir")
    known, _ = parser.parse_known_args(list(argv))
    named = [load_config(config).get("run_dir") for config in known.config]
    return known.config, known.run_dir or next((name for name in reversed(named) if name), None)


def _request(argv: Sequence[str], configs: Sequence[str]) -> dict[str, Any]:
    digests = {config: _digest(Path(config)) for config in configs if Path(config).is_file()}
    return {"version": __version__, "arguments": list(argv), "configs": digests}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _outline(path: Path) -> list[int]:
    """Number, total size and newest modification of the files in `path`."""
    files = [file.stat() for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return [len(files), sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)]
