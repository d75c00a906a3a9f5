"""TRAK by traker, the paper's own library, with its defaults, but with full precision and normal projections.

python -m venv peers/traker && peers/traker/bin/pip install torch==2.13.0 -e . traker
"""

import logging
import shutil
import tempfile
import time

import numpy as np
import torch
from common import Job, batches
from trak import TRAKer
from trak.projectors import BasicProjector


def main() -> None:
    """Write the scores."""
    job = Job.from_command_line()
    folder = tempfile.mkdtemp()
    traker = TRAKer(
        model=job.model,
        task="image_classification",
        train_set_size=len(job.train),
        save_dir=folder,
        device="cpu",
        proj_dim=job.k,
        projector=projector(job),
        use_half_precision=False,
        logging_level=logging.ERROR,
    )
    seconds = 0.0
    for position, state in enumerate(job.states):
        started = time.process_time()
        traker.load_checkpoint(state, model_id=position)
        for batch in batches(job.train):
            traker.featurize(batch=batch, num_samples=len(batch[1]))
        traker.finalize_features(model_ids=[position])
        traker.projector = projector(job)  # finalize_features has emptied the other one
        traker.start_scoring_checkpoint("x", checkpoint=state, model_id=position, num_targets=len(job.targets))
        for batch in batches(job.targets):
            traker.score(batch=batch, num_samples=len(batch[1]))
        seconds += time.process_time() - started
        if position + 1 in job.counts:
            started = time.process_time()
            scores = traker.finalize_scores(exp_name="x", model_ids=list(range(position + 1)))
            job.keep("traker", position + 1, np.array(scores).T, seconds + time.process_time() - started)
    shutil.rmtree(folder)


def projector(job: Job) -> BasicProjector:
    """Dense, on the CPU; the same numbers every time."""
    size = sum(parameter.numel() for parameter in job.model.parameters())
    return BasicProjector(
        grad_dim=size,
        proj_dim=job.k,
        seed=0,
        proj_type="normal",
        device=torch.device("cpu"),
        block_size=min(job.k, 512),
    )


if __name__ == "__main__":
    main()
