"""Ranks of one job as torchrun, SLURM and clusters of several nodes start them: real processes that meet over gloo."""

import socket
from itertools import count

_number = count()


def torchrun(rank, world):
    """What torchrun sets, on one node."""
    return {"LOCAL_RANK": rank, "GROUP_RANK": 0, "RANK": rank, "WORLD_SIZE": world, "TORCHELASTIC_RUN_ID": "test"}


def nodes(rank, world):
    """What torchrun sets, on as many nodes as there are ranks."""
    return {**torchrun(rank, world), "LOCAL_RANK": 0, "GROUP_RANK": rank}


def slurm(rank, world):
    """What srun sets, on one node."""
    return {
        "SLURM_JOB_ID": 1000 + next(_number),
        "SLURM_JOB_NAME": "trak",
        "SLURM_NTASKS": world,
        "SLURM_NTASKS_PER_NODE": world,
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
        "SLURM_NODEID": 0,
        "SLURM_NNODES": 1,
    }


def start(job, run_dir, world, launcher=torchrun, *more, before=None):
    """One process per rank; `before` is called in each first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    devices = (
        {"--trainer.devices": 1, "--trainer.num_nodes": world} if launcher is nodes else {"--trainer.devices": world}
    )
    options = [part for option in devices.items() for part in option]
    return [
        job.fork(
            run_dir,
            "--trainer.strategy",
            "ddp",
            *options,
            *more,
            name=f"-{rank}",
            before=before,
            environment={name: str(value) for name, value in {**each, **launcher(rank, world)}.items()},
        )
        for rank in range(world)
    ]


def finish(processes):
    """The exit codes."""
    for process in processes:
        process.join(600)
    return [process.exitcode for process in processes]
