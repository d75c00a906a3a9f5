"""Leave training samples out one at a time: measure the effect that a score estimates. No torch."""

import numpy as np

from trak_lightning.evaluation.lds import bootstrap_mean, spearman
from trak_lightning.evaluation.result import Result
from trak_lightning.retraining.outputs import Retrained
from trak_lightning.scoring.base import Array, evenly


def choose_samples(scores: Array, count: int) -> Array:
    """Choose the positions of `count` training samples to leave out: half of them have the largest mean absolute score, so
    that their effects stand out from the noise of training, and half are spread evenly over the rest. `scores` are (m, n)."""
    order = np.argsort(-np.abs(scores).mean(axis=0), kind="stable")
    largest, rest = order[: -(-count // 2)], order[-(-count // 2) :]
    return np.concatenate([largest, rest[evenly(len(rest), count - len(largest))]])


def leave_one_out(scores: dict[str, Array], samples: Array, retrained: Retrained, *, seed: int) -> Result:
    """Correlate, by rank and over left-out samples, scores with measured effects f(z; θ) − f(z; θ₋ᵢ), for each target.
    `scores` are (m, len(samples)) by name."""
    outputs = retrained.without([[], *([sample] for sample in samples)])
    effects = outputs[:1] - outputs[1:]  # (samples, m)
    found = {name: bootstrap_mean(spearman(values.T, effects), seed=seed) for name, values in scores.items()}
    rows = tuple((name, f"{mean:.3f}", f"{low:.3f} … {high:.3f}") for name, (mean, low, high) in found.items())
    first = next(iter(found.values()))
    return Result(
        "leave-one-out",
        f"Leave-one-out: scores against the measured effect of {len(samples)} training examples",
        f"{len(samples)} training examples were left out, one at a time, and the model was retrained without each "
        f"({retrained.repeats} × with different seeds). "
        "Shown is the rank correlation between the change of the output and the score, over examples: its mean over "
        f"{outputs.shape[1]} targets with a 95 % interval. Effects of single examples are small compared with the noise of "
        "training, so that even exact scores are far from 1.",
        f"leave-one-out correlation {first[0]:.3f} [{first[1]:.3f}, {first[2]:.3f}]",
        ("scores", "correlation", "95 % interval"),
        rows,
        {"samples": samples.tolist(), "correlation": {name: list(values) for name, values in found.items()}},
    )
