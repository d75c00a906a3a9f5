"""Retraining in several processes, each of which reads the same configuration as its parent and takes its share of the models."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trak_lightning.errors import IncompleteRunError
from trak_lightning.retraining.outputs import Retraining, missing

WORKER = "import sys; del sys.path[:sys.path[0] == '']; from trak_lightning.cli.retrain_worker import main; main()"
"""Not ``python -m``, which would put the working directory first on the path; see `trak_lightning.cli.at_home`."""

SAID = 2000
"""Characters of a failed process's last words that are passed on."""


def retrain_in_processes(argv: Sequence[str], retrainings: Sequence[Retraining], workers: int, folder: Path) -> None:
    """Retrain with `workers` processes that share the processor's threads.

    Every model is stored as soon as it is trained: those that are stored when a process dies are not trained again.

    Raises:
        IncompleteRunError: a process failed; says what it said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".workers-") as scratch:
        processes = []
        try:
            for rank in range(workers):
                share = Path(scratch) / f"{rank}.npz"
                write_share(share, retrainings[rank::workers])
                command = [sys.executable, "-c", WORKER, str(share), json.dumps(list(argv))]
                log = (Path(scratch) / f"{rank}.log").open("w+")
                processes.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
            failed = [(process.wait(), log) for process, log in processes]
            for status, log in failed:
                if status and missing(retrainings):
                    log.seek(0)
                    raise IncompleteRunError(
                        f"a retraining process ended with status {status}; what the others stored is kept, run the same command to resume. "
                        f"It said: {log.read()[-SAID:].strip()}"
                    )
        finally:
            for process, log in processes:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                log.close()


def write_share(path: Path, retrainings: Sequence[Retraining]) -> None:
    """The models that one process is to train, as plain arrays."""
    arrays = {f"subset-{number}": each.subset for number, each in enumerate(retrainings)}
    plan = json.dumps([[str(each.path), each.seed, each.keep_batches] for each in retrainings])
    np.savez(path, plan=np.array(plan), **arrays)  # type: ignore[arg-type]


def read_share(path: Path) -> list[Retraining]:
    """What `write_share` wrote."""
    with np.load(path, allow_pickle=False) as file:
        plan = json.loads(str(file["plan"]))
        return [
            Retraining(Path(name), file[f"subset-{number}"], seed, keep_batches)
            for number, (name, seed, keep_batches) in enumerate(plan)
        ]
