"""TracIn with the learning rates of the run, and SOURCE, from features of several states of one recorded run.

    python benchmarks/unrolling.py

compares SOURCE in full rank with exact unrolling of gradient descent on a linear regression. `benchmarks/replay.py --unrolled true` measures both scores.

A training is cut into stretches of time, and each stretch l is described by one state, with a_l the sum of its learning rates, ∇f and q
of each sample, and H_l = (1/n) Σ_i ψ_i ψ_iᵀ + weight decay, ψ_i the gradient of log p with a label drawn from the model. TracIn (Pruthi et al.
2020) adds up steps,

    τ_i = (1/n) Σ_l a_l ∇f_l(z)ᵀ ∇f_l(z_i) q_l,i

and SOURCE (Bae et al. 2024, arXiv 2405.12186) lets each step decay in the stretches after it, as if H were constant in each:

    τ_i = (1/n) ∇f_T(z)ᵀ Σ_l e^(−a_L H_L) ⋯ e^(−a_(l+1) H_(l+1)) · (1 − e^(−a_l H_l)) H_l⁻¹ · ∇f_l(z_i) q_l,i

With Adam, gradients are scaled by S = D^½, D the mean of 1/(√v̂ + eps) over the run, weighted by the learning rate, so that the run takes D times a gradient. One P is
shared by all states, since what one leaves over is multiplied by the next.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader
from trak_lightning_replay.recording import Recording, read_state, state_path

from trak_lightning import TRAK, Task, registry
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors.base import BlockMaps, ProjectionSpec, Projector
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.score_run import load_features

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stretch:
    """A part of the training, as described by one state."""

    rate: float
    """a, the sum of its learning rates."""
    train: Array
    """(n, k), ∇f of the training samples."""
    weight: Array
    """(n,), their q = −∂ℓ/∂f."""
    root: Array
    """(s, k), n·H without weight decay is rootᵀ root."""
    targets: Array
    """(m, k), ∇f of the targets."""


def tracin(stretches: list[Stretch]) -> Array:
    """Scores (m, n)."""
    n = len(stretches[0].train)
    found: Array = sum(each.rate / n * (each.targets @ each.train.T) * each.weight for each in stretches)  # type: ignore[assignment]
    return found


def source(stretches: list[Stretch], targets: Array, decay: float = 0.0) -> Array:
    """Scores (m, n), for ∇f of the targets in the last state (m, k)."""
    n, left = len(stretches[0].train), targets
    scores = np.zeros((len(targets), n))
    for each in reversed(stretches):
        a = each.rate
        values, vectors = _spectrum(each.root / np.sqrt(n))
        # Where no sample has a gradient, H is the weight decay alone.
        values, inside = np.append(values, 0) + decay, left @ vectors
        steps, remaining = (
            left * of[-1] + (inside * (of[:-1] - of[-1])) @ vectors.T
            for of in (a * _mean_decay(a * values), np.exp(-a * values))
        )
        scores += (steps @ each.train.T) * each.weight / n
        left = remaining
    return scores


def _mean_decay(x: Array) -> Array:
    """(1 − e^(−x))/x."""
    return np.where(x > 1e-8, -np.expm1(-x) / np.where(x > 1e-8, x, 1), 1.0)


def _spectrum(root: Array) -> tuple[Array, Array]:
    """The eigenvalues of rootᵀ root that are not zero, and eigenvectors (k, r)."""
    if len(root) >= root.shape[1]:
        values, vectors = np.linalg.eigh(root.T @ root)
        return np.maximum(values, 0), vectors
    values, vectors = np.linalg.eigh(root @ root.T)
    kept = values > 1e-6 * values[-1]  # in single precision
    return values[kept], root.T @ (vectors[:, kept] / np.sqrt(values[kept]))


class OneRun(Projector):
    """``P·S`` with one P for all states of a run, and the S of its optimizer: 1 for SGD."""

    def __init__(self, dim: int, recording: str) -> None:
        super().__init__(dim)
        self.recording = recording
        self._scales = _scales(Path(recording))

    def _inner(self, layout: ParameterLayout) -> Projector:
        same = self.dim == layout.numel
        return registry.create("projectors", "identity" if same else {"name": "sparse_jl", "dim": self.dim})

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        return self._inner(layout).columns(layout)

    def bind(self, spec: ProjectionSpec) -> BlockMaps:
        bound = self._inner(spec.layout).bind(replace(spec, checkpoint="all"))

        def block(slot: Any) -> Any:
            then, scale = bound(slot), self._scales.get(slot.name)
            return then if scale is None else lambda grad, out: then(grad * scale.to(grad).flatten(), out)

        return block


def _scales(folder: Path) -> dict[str, Tensor]:
    recording = Recording.read(folder)
    names = [name for group in recording.groups for name in group]
    rates = [sum(recording.options_at(step)[0]["lr"] for step in segment) for segment in recording.segments]
    found: dict[str, Any] = {}
    for segment, rate in zip(recording.segments, rates, strict=True):
        (group, *_), stored = recording.options_at(segment.stop - 1), read_state(state_path(folder, segment.stop))
        for at, state in stored["optimizer"]["state"].items():
            if "exp_avg_sq" in state:
                mean = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                found[names[at]] = found.get(names[at], 0) + rate / sum(rates) / (mean.sqrt() + group["eps"])
    return {name: mean.sqrt() for name, mean in found.items()}


def featurized(
    module: Any, task: Task, folder: Path, train: DataLoader, targets: DataLoader, run: Path, k: int, count: int = 3
) -> tuple[list[Stretch], Array, float]:
    """The stretches of a recorded run, `count` of them, equally long; the features of the targets in its last state; the weight decay."""
    recording = Recording.read(folder)
    last = recording.num_steps
    known = [*(segment.start for segment in recording.segments), last]
    edges = np.linspace(0, last, count + 1).round().astype(int)
    nearest = [min(known, key=lambda state: abs(state - middle)) for middle in (edges[:-1] + edges[1:]) / 2]
    groups = [recording.options_at(step)[0] for step in range(last)]
    rates = np.array([group["lr"] / (1 - group.get("momentum", 0)) for group in groups])
    attribution = TRAK(module.eval(), task, run, projector=OneRun(k, str(folder)), curvature_draws=DRAWS)
    attribution.featurize(train, [state_path(folder, state) for state in (*nearest, last)])
    attribution.score(targets, "targets", scorer="gradient_dot", top=1)  # which featurizes the targets
    found = load_features(RunDirectory(run), attribution.store, targets="targets")
    stretches = []
    for (start, stop), features in zip(pairwise(edges), found, strict=False):
        drawn: Any = features.with_drawn
        root = np.concatenate([each.rows(0, each.spec.num_samples).features for each in drawn.drawn]) / np.sqrt(DRAWS)
        rows, own = features.train.rows(0, features.train.spec.num_samples), features.targets
        stretches.append(
            Stretch(
                float(rates[start:stop].sum()),
                rows.features,
                rows.loss_weight.astype(np.float64),
                root,
                own.rows(0, own.spec.num_samples).features,
            )
        )
    return stretches, found[-1].targets.rows(0, found[-1].targets.spec.num_samples).features, groups[0]["weight_decay"]


DRAWS = 2
"""Labels that are drawn for each sample."""


def main() -> None:
    """Linear regression by gradient descent on all samples: largest error of SOURCE, relative to the largest exact score."""
    generator = np.random.default_rng(0)
    x, y, z = (generator.normal(size=shape) for shape in ((30, 8), (30,), (5, 8)))
    print("| steps | stretches | error |\n| --- | --- | --- |")
    for steps, count in ((100, 100), (400, 400), (1600, 1600), (1600, 40), (1600, 6), (1600, 3), (1600, 1)):
        rate = 5.0 / steps
        weights, derivative = [np.zeros(8)], np.zeros((8, 30))
        for _ in range(steps):
            residual = x @ weights[-1] - y
            derivative -= rate / 30 * (x.T @ x @ derivative + x.T * residual)
            weights.append(weights[-1] - rate / 30 * x.T @ residual)
        edges = np.linspace(0, steps, count + 1).round().astype(int)
        stretches = [
            Stretch(rate * (stop - start), x, y - x @ weights[(start + stop) // 2], x, z)
            for start, stop in pairwise(edges)
        ]
        exact = z @ derivative
        error = np.abs(source(stretches, z) - exact).max() / np.abs(exact).max()
        print(f"| {steps} | {count} | {error:.5f} |")


if __name__ == "__main__":
    main()
