"""Influence functions with EK-FAC curvature by kronfluence, with its default damping and with three that are relative.

    python -m venv peers/kronfluence && peers/kronfluence/bin/pip install torch==2.13.0 -e . accelerate einops opt_einsum
    peers/kronfluence/bin/pip install --no-deps kronfluence einconv   # it wants torchvision, and uses it for nothing here

What it tracks are linear layers and convolutions; scores of several checkpoints are averaged. Of a language model, the layers of GPT-2 are
converted to linear ones, and scores are made with the output layer, which may have the weight of the token embedding, and without it.
"""

import copy
import logging
import tempfile
import time

import kronfluence.factor.config
import torch
from common import Job, margin
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import nn
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


class LanguageModel(Task):
    """The loss of a sequence is the sum over its tokens; a target's output is the sum of the margins of its tokens.

    Args:
        tracked: names of the layers to attribute to; None for all.
    """

    def __init__(self, tracked: list[str] | None = None) -> None:
        self.tracked = tracked

    def get_influence_tracked_modules(self):  # type: ignore[no-untyped-def]
        return self.tracked

    def compute_train_loss(self, batch, model, sample=False):  # type: ignore[no-untyped-def]
        logits, labels = self._tokens(batch, model)
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).view(labels.shape)
                labels = torch.where(labels == -100, labels, drawn)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")

    def compute_measurement(self, batch, model):  # type: ignore[no-untyped-def]
        logits, labels = self._tokens(batch, model)
        counted = labels != -100
        return -margin(logits[counted], labels[counted]).sum()

    def get_attention_mask(self, batch):  # type: ignore[no-untyped-def]
        return batch["attention_mask"]

    @staticmethod
    def _tokens(batch, model):  # type: ignore[no-untyped-def]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits[:, :-1], batch["labels"][:, 1:]


def with_linear_layers(model: nn.Module) -> nn.Module:
    """Replace every Conv1D of transformers, x·W + b, by a linear layer."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Conv1D":
                linear = nn.Linear(*child.weight.shape)
                linear.weight.data, linear.bias.data = child.weight.data.T.contiguous(), child.bias.data
                setattr(parent, name, linear)
    return model


def main() -> None:
    """Write the scores."""
    job = Job.from_command_line()
    if job.collate is None:
        score(job, Classification(), "")
        return
    layers = with_linear_layers(copy.deepcopy(job.model)).named_modules()
    inner = [name for name, layer in layers if isinstance(layer, nn.Linear) and not name.endswith("lm_head")]
    score(job, LanguageModel(), "")
    score(job, LanguageModel(inner), ", without the output layer")


def score(job: Job, task: Task, suffix: str) -> None:
    """Write the scores of a task with every damping; `suffix` ends the name of the method."""
    collate = job.collate
    dataloader = {"dataloader_kwargs": DataLoaderKwargs(collate_fn=collate)} if collate else {}
    sizes = (32, 64) if collate else (512, 512)
    totals = {name: (torch.zeros(()), 0.0) for name in DAMPINGS}
    for count, state in enumerate(job.states, 1):
        started = time.process_time()
        folder = tempfile.mkdtemp()
        plain = copy.deepcopy(job.model)
        plain.load_state_dict(state)
        model = prepare_model(with_linear_layers(plain), task)
        analyzer = Analyzer("lds", model, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=logging.ERROR)
        torch.manual_seed(0)
        analyzer.fit_all_factors("f", job.train, 64, factor_args=FactorArguments(strategy="ekfac"), **dataloader)
        fitting = time.process_time() - started
        for name, damping in DAMPINGS.items():
            started = time.process_time()
            # Relative dampings other than 0.1 are not among the library's settings.
            kronfluence.factor.config.HEURISTIC_DAMPING_SCALE = damping
            arguments = ScoreArguments(damping_factor=damping if name == "default damping" else None)
            analyzer.compute_pairwise_scores(
                name.replace(" ", "-"), "f", job.targets, job.train, *sizes, score_args=arguments, **dataloader
            )
            scores = analyzer.load_pairwise_scores(name.replace(" ", "-"))["all_modules"]
            total, seconds = totals[name]
            totals[name] = total + scores, seconds + fitting + time.process_time() - started
            if count in job.counts:
                job.keep(f"kronfluence EK-FAC{suffix}, {name}", count, totals[name][0] / count, totals[name][1])


if __name__ == "__main__":
    main()
