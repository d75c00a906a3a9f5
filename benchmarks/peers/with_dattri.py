"""TRAK and TracIn by dattri, with its defaults; K is the dimension of the projection of TRAK.

    python -m venv peers/dattri && peers/dattri/bin/pip install torch==2.13.0 -e . scipy pyyaml tqdm pretty_midi
    peers/dattri/bin/pip install --no-deps dattri

Its other methods know one checkpoint at a time; their scores are averaged. LoGra and EK-FAC attribute to linear layers only.
LoGra calls the loss as (model, batch, device), unlike the rest. EK-FAC divides by zero with its default damping of 0 where an
input of a layer is always 0, so it is given dampings relative to its mean eigenvalue, and stops on linear layers whose inputs
have three dimensions, as those of a transformer have. Left out: Arnoldi influence functions, which take the square root of
eigenvalues of the Hessian, some of which are negative here, and give NaN.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from common import Job, batches, margin
from dattri.algorithm.influence_function import IFAttributorEKFAC
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.nn import functional as F

warnings.filterwarnings("ignore")

Function: TypeAlias = Callable[..., Tensor]
Method: TypeAlias = Callable[[Job, dict[str, Tensor], Function, Function], Tensor]
"""Scores (n, m) by one checkpoint."""


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

    for name, method in OTHERS.items():

        def each(method: Method = method) -> Iterator[Tensor]:
            for state in job.states:
                model.load_state_dict(state)
                yield method(job, state, loss, negative).T

        try:
            job.keep_averages(f"dattri {name}", each())
        except UnboundLocalError as error:  # EK-FAC, see above
            print(f"dattri {name}: {error}")


def tracin(job: Job, state: dict[str, Tensor], loss: Function, negative: Function) -> Tensor:
    task = AttributionTask(loss, job.model, [state], negative)
    attributor = TracInAttributor(task, torch.ones(1), normalized_grad=False)
    found: Tensor = attributor.attribute(batches(job.train, 512), batches(job.targets, 512))
    return found


def logra(job: Job, state: dict[str, Tensor], *_: Function) -> Tensor:
    """The gradient of a target's loss is that of its margin but for a factor, and no rank correlation sees that."""

    def loss(model, batch, device) -> Tensor:  # type: ignore[no-untyped-def]
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels, reduction="sum")

    model = Batched(job.model, job.train[0][0].ndim)
    state = {f"model.{name}": value for name, value in state.items()}
    attributor = LoGraAttributor(AttributionTask(loss, model, [state]), cache_dir=tempfile.mkdtemp())
    attributor.cache(batches(job.train))
    found: Tensor = attributor.attribute(batches(job.train), batches(job.targets)).detach()
    return found


class Batched(nn.Module):
    """Takes a single sample too, of so many dimensions: LoGra tries the model on one."""

    def __init__(self, model: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.model = model
        self.dimensions = dimensions

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.model(inputs.unsqueeze(0) if inputs.ndim == self.dimensions else inputs)
        return outputs


def ekfac(damping: float, job: Job, state: dict[str, Tensor], loss: Function, negative: Function) -> Tensor:
    attributor = IFAttributorEKFAC(AttributionTask(loss, job.model, [state]))
    attributor.cache(batches(job.train))
    attributor.damping = damping * float(
        torch.cat([each.flatten() for each in attributor.cached_lambdas.values()]).mean()
    )
    found: Tensor = attributor.attribute(batches(job.train, 512), batches(job.targets, 512)).detach()
    return found


OTHERS: dict[str, Method] = {
    "TracIn": tracin,
    "LoGra": logra,
    **{f"EK-FAC, {damping:g} × mean": partial(ekfac, damping) for damping in (0.01, 0.1, 1.0)},
}


if __name__ == "__main__":
    main()
