"""Seconds and peak memory that traker takes from features to scores: FEATURES.npy TARGETS.npy, both float32.

Run by benchmarks/score.py in an environment that has traker. It calls what finalize_features and finalize_scores consist of;
reading is not timed. Prints one JSON object.
"""

import json
import logging
import resource
import sys
import time

import numpy as np
import torch
from trak.score_computers import BasicScoreComputer


def main(features: str, targets: str) -> None:
    """Print what it took."""
    # Read, as from the memory maps in which it keeps them.
    train, target = (torch.from_numpy(np.load(path)) for path in (features, targets))
    computer = BasicScoreComputer(torch.float32, torch.device("cpu"), logging_level=logging.ERROR)
    started = time.perf_counter()
    inverse = computer.get_x_xtx_inv(train, computer.get_xtx(train))
    scores = torch.zeros(len(train), len(target))
    computer.get_scores(inverse, target, scores)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))


if __name__ == "__main__":
    main(*sys.argv[1:])
