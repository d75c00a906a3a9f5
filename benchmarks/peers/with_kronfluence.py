"""Influence functions with EK-FAC curvature by kronfluence, with its default damping and with three that are relative.

    python -m venv peers/kronfluence && peers/kronfluence/bin/pip install torch==2.13.0 -e . accelerate einops opt_einsum
    peers/kronfluence/bin/pip install --no-deps kronfluence einconv   # it wants torchvision, and uses it for nothing here

What it tracks are linear layers and convolutions; scores of several checkpoints are averaged.
"""

import logging
import tempfile
import time

import kronfluence.factor.config
import torch
from common import Job, margin
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.nn import functional as F

DAMPINGS = {"default damping": 1e-8, "0.01 × mean": 0.01, "0.1 × mean": 0.1, "1 × mean": 1.0}


class Classification(Task):
    def compute_train_loss(self, batch, model, sample=False):  # type: ignore[no-untyped-def]
        inputs, labels = batch
        logits = model(inputs)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.softmax(-1), 1).flatten()
        return F.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch, model):  # type: ignore[no-untyped-def]
        inputs, labels = batch
        return -margin(model(inputs), labels).sum()  # a score is positive where training on a sample lowers this


def main() -> None:
    """Write the scores."""
    job = Job.from_command_line()
    totals = {name: (torch.zeros(()), 0.0) for name in DAMPINGS}
    for count, state in enumerate(job.states, 1):
        started = time.process_time()
        folder = tempfile.mkdtemp()
        task = Classification()
        plain = type(job.model)()
        plain.load_state_dict(state)
        model = prepare_model(plain, task)
        analyzer = Analyzer("lds", model, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=logging.ERROR)
        torch.manual_seed(0)
        analyzer.fit_all_factors("f", job.train, 64, factor_args=FactorArguments(strategy="ekfac"))
        fitting = time.process_time() - started
        for name, damping in DAMPINGS.items():
            started = time.process_time()
            # Relative dampings other than 0.1 are not among the library's settings.
            kronfluence.factor.config.HEURISTIC_DAMPING_SCALE = damping
            arguments = ScoreArguments(damping_factor=damping if name == "default damping" else None)
            analyzer.compute_pairwise_scores(
                name.replace(" ", "-"), "f", job.targets, job.train, 512, 512, score_args=arguments
            )
            scores = analyzer.load_pairwise_scores(name.replace(" ", "-"))["all_modules"]
            total, seconds = totals[name]
            totals[name] = total + scores, seconds + fitting + time.process_time() - started
            if count in job.counts:
                job.keep(f"kronfluence EK-FAC, {name}", count, totals[name][0] / count, totals[name][1])


if __name__ == "__main__":
    main()
