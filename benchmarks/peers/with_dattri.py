"""TRAK and TracIn by dattri, with its defaults; K is the dimension of the projection of TRAK.

    python -m venv peers/dattri && peers/dattri/bin/pip install torch==2.13.0 -e . scipy pyyaml tqdm pretty_midi
    peers/dattri/bin/pip install --no-deps dattri

Left out, because we did not get them to run on the digits network: its LoGra and EK-FAC, which are for linear layers and stopped
with errors, and its Arnoldi influence functions, which gave NaN. Scores of TracIn are averaged over checkpoints.
"""

import time
import warnings
from collections.abc import Iterator

import torch
from common import Job, batches, margin
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.nn import functional as F

warnings.filterwarnings("ignore")


def main() -> None:
    """Write the scores."""
    job = Job.from_command_line()
    model = job.model
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def call(parameters, batch) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        inputs, labels = batch
        single = labels.ndim == 0
        logits = torch.func.functional_call(model, parameters, inputs.unsqueeze(0) if single else inputs)
        return logits, labels.unsqueeze(0) if single else labels

    def loss(parameters, batch) -> Tensor:  # type: ignore[no-untyped-def]
        logits, labels = call(parameters, batch)
        return F.cross_entropy(logits, labels)

    def output(parameters, batch) -> Tensor:  # type: ignore[no-untyped-def]
        logits, labels = call(parameters, batch)
        return margin(logits, labels).mean()

    def negative(parameters, batch) -> Tensor:  # type: ignore[no-untyped-def]
        return -output(parameters, batch)  # TRAK differentiates the margin of training samples, not their loss

    def probability(parameters, batch) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.exp(-loss(parameters, batch))

    for count in job.counts:
        started = time.process_time()
        task = AttributionTask(loss_func=output, model=model, checkpoints=job.states[:count])
        trak = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": job.k})
        with torch.no_grad():
            trak.cache(batches(job.train))
            scores = trak.attribute(batches(job.targets))
        job.keep("dattri TRAK", count, scores.T, time.process_time() - started)

    def each(name: str) -> Iterator[Tensor]:
        for state in job.states:
            model.load_state_dict(state)
            yield OTHERS[name](AttributionTask(loss, model, [state], negative), job).T

    for name in OTHERS:
        job.keep_averages(f"dattri {name}", each(name))


def tracin(task: AttributionTask, job: Job) -> Tensor:
    attributor = TracInAttributor(task, torch.ones(1), normalized_grad=False)
    found: Tensor = attributor.attribute(batches(job.train, 512), batches(job.targets, 512))
    return found


OTHERS = {"TracIn": tracin}


if __name__ == "__main__":
    main()
