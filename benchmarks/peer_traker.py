"""Seconds that traker, the paper's own library, takes to featurize one batch. Runs in an environment that has it:

    python -m venv traker && traker/bin/pip install torch==2.13.0 traker
    python benchmarks/featurize.py --models resnet9 --traker traker/bin/python

Prints one JSON list, a number for each batch after the first.
"""

import json
import logging
import sys
import tempfile
import time

import numpy as np
import torch
from models import WORKLOADS
from trak import TRAKer


def main(name: str, dim: int, device: str, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    workload = WORKLOADS[name]
    inputs, labels = workload.batch(workload.batch_size)
    batch = [tensor.to(device) for tensor in (*inputs.values(), labels)]
    size = workload.batch_size
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model=workload.model().to(device).eval(),
            task="image_classification",
            train_set_size=size * (rounds + 1),
            save_dir=folder,
            device=device,
            proj_dim=dim,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(traker.model.state_dict(), model_id=0)
        seconds = []
        for position in range(rounds + 1):
            start = time.perf_counter()
            traker.featurize(batch, inds=np.arange(size) + position * size)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
