"""MAGIC by bergson on the GPT-2 of benchmarks/replay.py, judged in the same way, by trainings of bergson's own trainer.

    python -m venv peers/bergson && peers/bergson/bin/pip install torch==2.13.0 -e '.[text]' datasets peft accelerate psutil
    peers/bergson/bin/pip install ./plugins/trak-lightning-demos ./plugins/trak-lightning-replay
    peers/bergson/bin/pip install --no-deps bergson==2.5.1 torchopt optree graphviz simple-parsing docstring-parser natsort jaxtyping \
        wadler-lindig petname ml_dtypes bitsandbytes
    peers/bergson/bin/python benchmarks/peers/with_bergson.py

Data, pretrained weights, learning rates, weight decay, eps, batch size, epochs, targets, groups and removed shares are those of benchmarks/replay.py. Its trainer
has AdamW of torchopt and orders samples in its own way, and momentum does not follow the learning rate as in PyTorch's one cycle. It gives each name
of a tied weight gradients, moments and steps of its own, and then differentiates another training than it ran; so this script unties the output layer,
unless `--tied true`. The ratio that it prints first is 1 where a derivative is that of the training that was run.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchopt
from bergson.magic.cli import attach_doc_ids_if_missing, shuffled_epochs
from bergson.magic.data_stream import DataStream
from bergson.magic.trainer import BackwardState, Trainer
from bergson.utils import weighted_causal_lm_ce
from datasets import Dataset
from jsonargparse import auto_cli
from torchopt.pytree import tree_iter

sys.path.insert(0, str(Path(__file__).parent.parent))
from problems import PROBLEMS
from trak_lightning_replay.smoothness import drawn_subsets

from trak_lightning.evaluation.lds import bootstrap_mean, spearman


def main(
    folder: Path = Path("runs/replay/smooth-gpt-1"),
    removed: list[float] = [0.05, 0.01],  # noqa: B006
    models: int = 50,
    groups: int = 20,
    seed: int = 1,
    tied: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
) -> None:
    """Print the table.

    Args:
        folder: with the pretrained model of benchmarks/replay.py; it is trained if it is not there.
        removed: shares of the training samples that are left out.
        models: number of trainings for each share.
        groups: number of groups that 100 targets are divided into.
        seed: of the order of samples, and of what is left out.
        tied: whether embedding and output layer are one tensor.
        betas: of AdamW; bergson's defaults are 0.95 and 0.975.
        eps: of AdamW; bergson's default is 1e-8.
    """
    problem = PROBLEMS["smooth-gpt"]
    data = problem.data()
    data.setup()
    rows = attach_doc_ids_if_missing(Dataset.from_dict({"input_ids": data.train_set}))
    rows = shuffled_epochs(rows, seed, problem.epochs)
    stream = DataStream(rows, data.batch_size, weight_shape=(len(data.train_set),))
    targets = data.collate(data.test_set)
    labels, task = np.arange(len(data.test_set)) % groups, problem.task()
    rates = _one_cycle(len(stream), 1e-3)

    def train(weights: Any, save_dir: str | None = None) -> tuple[Trainer, Any]:
        stream.weights.data.copy_(torch.tensor(weights))
        module = problem.pretrained(data, folder / "pretrained.pt")  # type: ignore[misc]
        model = module.model.eval()
        model.set_attn_implementation("eager")  # as bergson loads models: the others have no second derivative
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.loss_function = weighted_causal_lm_ce
        optimizer = torchopt.adamw(
            lambda step: rates[int(step)], betas=betas, eps=eps, eps_root=1e-17, weight_decay=module.weight_decay
        )
        trainer, state = Trainer.initialize(model, optimizer)
        state.detach_()
        return trainer, trainer.train(state, stream, inplace=True, save_dir=save_dir)

    def outputs(trainer: Trainer, state: Any) -> torch.Tensor:
        found = task.output(trainer.model, targets)
        return torch.stack([found[torch.from_numpy(labels == group)].mean() for group in range(groups)])

    def trained_outputs(weights: Any) -> np.ndarray:
        trainer, state = train(weights)
        with torch.no_grad(), state.activate(trainer.model):
            return outputs(trainer, state).double().numpy()

    ones = np.ones(len(data.train_set))
    with tempfile.TemporaryDirectory() as checkpoints:
        start = time.process_time()
        trainer, state = train(ones, checkpoints)
        training = time.process_time() - start
        last, scores = state.to("cpu").detach_(), []
        for group in range(groups):
            state.detach_()
            state.copy_(last)
            with state.activate(trainer.model) as parameters:
                found = torch.autograd.grad(
                    outputs(trainer, state)[group], list(parameters.values()), allow_unused=True
                )
            gradients = dict(zip(parameters, found, strict=True))
            state.detach_()
            moments = [torch.zeros_like(each) for each in _floating(last.opt_state)]
            begun = BackwardState(gradients, moments, torch.zeros_like(stream.weights))
            ended = trainer.backward(checkpoints, stream, begun, state, inplace=True, cleanup=False)
            scores.append(ended.weight_grads.detach().double().numpy())
        cost = time.process_time() - start - training
    stream.requires_grad = False
    before = trained_outputs(ones)
    print(
        f"bergson {'tied' if tied else 'untied'}, betas {betas}, eps {eps:g}: training {training:.1f} s, scores {cost:.0f} s"
    )
    step = np.random.default_rng(0).normal(size=len(ones))
    ends = [trained_outputs(ones + sign * 1e-2 * step) for sign in (1, -1)]
    print(
        "derivative in a random direction / central difference:",
        np.round(np.array(scores) @ step / ((ends[0] - ends[1]) / 2e-2), 3),
    )
    print("| removed | LDS at a fixed seed | explained |\n| --- | --- | --- |")
    for share in removed:
        masks = drawn_subsets(len(ones), models, share, seed)
        actual = np.array([trained_outputs(each) for each in masks]) - before
        predicted = (masks - 1) @ np.array(scores).T
        mean, low, high = bootstrap_mean(spearman(predicted, actual), seed=0)
        explained = 1 - ((predicted - actual) ** 2).sum() / (actual**2).sum()
        print(f"| {share:.0%} | {mean:.3f} [{low:.3f}, {high:.3f}] | {explained:.2f} |", flush=True)


def _one_cycle(steps: int, peak: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return [*found, found[-1]]


def _floating(state: Any) -> list[torch.Tensor]:
    return [each for each in tree_iter(state) if isinstance(each, torch.Tensor) and each.is_floating_point()]


if __name__ == "__main__":
    auto_cli(main)
