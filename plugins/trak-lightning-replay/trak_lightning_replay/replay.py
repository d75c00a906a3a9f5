"""Differentiate the outputs of a trained model through the run that trained it.

With weights w in the training losses, Σ_i w_i ℓ_i / B in each step, an output f of the trained model is a function of w. Its
derivative at w = 1 is found in reverse: λ_T = ∂f/∂θ_T, and for each step t, s_{t+1} = h(s_t, g_t) with the gradient g_t of the
batch at θ_t and the state s_t = (θ_t, moments):

    u = (∂h/∂g)ᵀ λ_{t+1}      ∂f/∂w_i += ∇ℓ_i(θ_t)ᵀ u / B      λ_t = (∂h/∂s)ᵀ λ_{t+1} + ∇²L_t u

Engstrom et al. 2025 (arXiv 2503.13751), Ilyas and Engstrom 2025 (arXiv 2504.13430). States are stored every √T steps and
computed again in between.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from trak_lightning import Scores, Task
from trak_lightning.authoring import (
    AttributionData,
    batch_of,
    create,
    fingerprint,
    progress,
    store_repetitions,
    write_matrix,
)
from trak_lightning.errors import DataError, OneSampleAtATime
from trak_lightning_replay.double import doubled, in_double
from trak_lightning_replay.optimizers import clipped
from trak_lightning_replay.recording import Losses, Recording, losses_of, read_state, seed_step, write_state
from trak_lightning_replay.smoothness import Smoothness, drawn_subsets
from trak_lightning_replay.trajectory import Snapshot, Trajectory

log = logging.getLogger(__name__)

Adjoint = tuple[list[Tensor], list[list[Tensor]]]
"""The derivative of one output with respect to parameters and optimizer state."""

STEPS = (1e-6, 1e-8, 1e-10)
"""Steps of the finite differences that the second derivative is compared with, in 64 bits. A step that crosses the kink of a ReLU, as
one in some of a million units does, says nothing; a smaller one does not cross it."""

SECOND = 1e-2
"""Largest relative difference from the nearest of them."""

AGREEMENT = 1e-4
"""Largest relative difference between the loss of ``training_step`` and the mean of `losses`, beyond rounding."""


REPEAT = "Replay.repeat(scores, targets, task, {groups}models=…, removed=…)"
"""What makes the repetitions that `trak evaluate` judges scores by."""


class Replay:
    """A recorded training run, to differentiate and to run again with other weights.

    >>> replay = Replay(module, train_loader, "runs/x/recording")
    >>> scores = replay.score(test_dataset, "image_classification", "runs/x", name="replayed")
    >>> scores.top(10).indices  # (m, 10)

    Args:
        module: the module that was trained; its present weights do not matter.
        train: the loader that it was trained with, or another one of the same dataset with the same collate function.
        folder: of the recording.
        losses: ``losses(module, batch)`` returns the loss of every sample, (B,), whose mean is what ``training_step``
            returns; the method ``losses(batch)`` of the module if None.

    Raises:
        IncompleteRunError: there is no recording, or its training did not end.
        IncompatibleRunError: the module or the data are not those of the recording.
        DataError: no `losses`.
    """

    def __init__(
        self,
        module: L.LightningModule,
        train: DataLoader | AttributionData,
        folder: str | os.PathLike[str],
        losses: Losses | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.recording = Recording.read(self.folder)
        self.module = module
        self.data = AttributionData.of(train)
        self._losses: Losses = losses_of(module, losses)
        self._trajectory = Trajectory(module, self.data, self.recording, self.folder)

    def __repr__(self) -> str:
        return (
            f"Replay({type(self.module).__name__}, folder={str(self.folder)!r}): {self.recording.num_steps} steps over "
            f"{self.num_samples} training samples"
        )

    @property
    def num_samples(self) -> int:
        return self.recording.num_samples

    def verify(self) -> None:
        """Run the whole training again, segment by segment, and compare it bit by bit.

        Raises:
            IncompatibleRunError: the first step that differs.
        """
        with self._trajectory as trajectory, progress("replay", len(self.recording.segments)) as advance:
            for segment in self.recording.segments:
                trajectory.require_same_bits(segment)
                advance(1)

    def outputs(
        self,
        targets: "Dataset | DataLoader",
        task: str | dict[str, Any] | Task,
        weights: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float64]:
        """Train again with a weight for the loss of each training sample, and return the outputs (m,) of the new model.

        Args:
            targets: the samples to return outputs of.
            task: what an output is.
            weights: (n,); a sample of weight 0 is left out, without changing the other samples of its batches. All one if None.
            groups: (m,) integers: return the mean output of each group instead, in ascending order of these labels.
        """
        data, chosen = AttributionData.of(targets), create("tasks", task)
        members = _members(groups, len(data))
        given = np.ones(self.num_samples) if weights is None else np.asarray(weights, np.float64)
        if given.shape != (self.num_samples,):
            raise DataError(f"weights must have shape ({self.num_samples},), got {given.shape}")
        with self._trajectory as trajectory:
            trajectory.load(0)
            for step in range(self.recording.num_steps):
                mine = torch.tensor(given[self.recording.batches[step]], dtype=trajectory.parameters[0].dtype)
                trajectory.step(step, None if (mine == 1).all() else self._weighted(mine))
            with torch.no_grad():
                return np.array([float(each) for each in self._outputs(data, chosen, members)])

    def score(
        self,
        targets: "Dataset | DataLoader",
        task: str | dict[str, Any] | Task,
        run_dir: str | os.PathLike[str],
        name: str = "replayed",
        *,
        groups: npt.ArrayLike | None = None,
        check: int = 4,
    ) -> Scores:
        """Compute ∂f/∂w_i of every target, or of the mean of every group of targets, and write them as a score file.

        An interrupted call is resumed. The training runs again once, each step also backward and once more for each target.

        Args:
            targets: the samples whose outputs are attributed.
            task: what an output is.
            run_dir: scores are written to its folder ``scores``, where `trak top` and `trak report` find them.
            name: of the score file.
            groups: (m,) integers: attribute the mean output of each group, in ascending order of these labels.
            check: trainings without a twentieth of the samples, at least 2, to compare with what the scores predict; 0 for none.

        Returns:
            Scores whose ``values`` is an (m, n) array: positive where having that training sample raises the output.

        Raises:
            IncompatibleRunError: the replay differs from the training.
            DataError: `losses` are not those of ``training_step``, or detach something that depends on the parameters; or the scores do
                not predict what the trainings of `check` do.
        """
        if check < 0 or check == 1:
            raise DataError(
                f"check must be 0, or at least 2 trainings that can be compared with each other, got {check}"
            )
        data, chosen = AttributionData.of(targets), create("tasks", task)
        members = _members(groups, len(data))
        request = self._request(data, chosen, members)
        partial = Path(run_dir).expanduser() / "replay" / f"{name}.pt"
        with self._trajectory as trajectory:
            self._require_second_derivative(trajectory)
            values = self._backward(trajectory, data, chosen, members, partial, fingerprint(request))
        settings: dict[str, Any] = {
            "request": request,
            "repeated_by": REPEAT.format(groups="" if groups is None else "groups=groups, "),
        }
        if check:
            found = self.smoothness(values, targets, chosen, groups, check)
            found.require()
            settings["smoothness"] = found.settings
        scores = write_matrix(run_dir, name, values, "exact derivative of the recorded run", settings)
        partial.unlink(missing_ok=True)
        return scores

    def repeat(
        self,
        scores: Scores,
        targets: "Dataset | DataLoader",
        task: str | dict[str, Any] | Task,
        *,
        groups: npt.ArrayLike | None = None,
        models: int = 100,
        removed: float = 0.05,
        seed: int = 0,
    ) -> None:
        """Train again without random samples, many times, for ``trak evaluate RUN_DIR --name NAME --evaluation.protocol fixed_seed``.

        An interrupted call is resumed.

        Args:
            scores: what `score` returned for these targets.
            targets: as for `score`.
            task: as for `score`.
            groups: as for `score`.
            models: the number of trainings.
            removed: the share of the training samples that each of them leaves out.
            seed: draws the samples that are left out.

        Raises:
            DataError: the scores are of another recording, of other targets, or of another task.
        """
        data, chosen = AttributionData.of(targets), create("tasks", task)
        members = _members(groups, len(data))
        for what, value in self._request(data, chosen, members).items():
            if scores.settings["request"].get(what) != value:
                raise DataError(f"{scores} has another {what} than this call. Give what it was scored with.")

        def outputs(subset: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            weights = np.zeros(self.num_samples)
            weights[subset] = 1
            return self.outputs(targets, chosen, weights, groups)

        store_repetitions(scores, outputs, models, removed, seed)

    def _request(
        self, targets: AttributionData, task: Task, members: Sequence[npt.NDArray[np.int64]]
    ) -> dict[str, Any]:
        """What determines scores. JSON."""
        return {
            "recording": fingerprint([self.recording.batches, self.recording.losses]),
            "task": task.state,
            # The fingerprint, which reads three of them, refuses samples that differ each time they are read.
            "targets": [targets.fingerprint(), targets.digest(range(len(targets)))],
            "groups": [each.tolist() for each in members],
        }

    def smoothness(
        self,
        scores: npt.ArrayLike,
        targets: "Dataset | DataLoader",
        task: str | dict[str, Any] | Task,
        groups: npt.ArrayLike | None = None,
        subsets: int = 4,
        removed: float = 0.05,
        seed: int = 0,
    ) -> Smoothness:
        """Train again without some random samples, and compare the outputs with what the scores predict.

        Args:
            scores: (m, n), as from `score`.
            targets: as for `score`.
            task: as for `score`.
            groups: as for `score`.
            subsets: the number of trainings.
            removed: the share of the training samples that each of them leaves out.
            seed: draws the samples that are left out.
        """
        matrix = np.asarray(scores)
        kept = drawn_subsets(self.num_samples, subsets, removed, seed)
        before = self.outputs(targets, task, None, groups)
        with progress("check", subsets) as advance:
            actual = []
            for weights in kept:
                actual.append(self.outputs(targets, task, weights, groups) - before)
                advance(1)
        return Smoothness((kept - 1) @ matrix.T, np.array(actual), removed)

    def _backward(
        self,
        trajectory: Trajectory,
        targets: AttributionData,
        task: Task,
        members: Sequence[npt.NDArray[np.int64]],
        partial: Path,
        request: str,
    ) -> npt.NDArray[np.float32]:
        segments = self.recording.segments
        done = read_state(partial) if partial.exists() else {}
        if done.get("request") == request:
            left, adjoints, scores = done["left"], done["adjoints"], done["scores"]
        else:
            trajectory.load(self.recording.num_steps)
            left, scores = len(segments), torch.zeros(len(members), self.num_samples, dtype=torch.float64)
            adjoints = [self._last(trajectory, output) for output in self._outputs(targets, task, members)]
        with progress("replay", left) as advance:
            for number in reversed(range(left)):
                segment = segments[number]
                snapshots = trajectory.require_same_bits(segment)
                for step in reversed(segment):
                    adjoints = self._step_back(trajectory, step, snapshots.pop(), adjoints, scores)
                write_state(partial, {"request": request, "left": number, "adjoints": adjoints, "scores": scores})
                advance(1)
        return scores.numpy().astype(np.float32)

    def _require_second_derivative(self, trajectory: Trajectory) -> None:
        """Compare ∇²L v of the first step, for a random v, with differences of gradients at θ ± εv, in 64 bits.

        Raises:
            DataError: they differ, since the loss depends on the parameters in a way that autograd does not see.
        """
        trajectory.load(0)
        with in_double(self.module):
            parameters = trajectory.parameters
            batch = doubled(trajectory.batch(0))
            ones = torch.ones(len(self.recording.batches[0]), dtype=torch.float64)

            def gradients(create_graph: bool = False) -> list[Tensor]:
                seed_step(self.recording.seed, 0)
                with sdpa_kernel(SDPBackend.MATH):
                    loss = self._weighted(ones)(batch)
                found = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
                return [_or_zero(each, parameter) for each, parameter in zip(found, parameters, strict=True)]

            try:
                first = gradients(create_graph=True)
            except RuntimeError as refusal:
                log.warning(
                    "replay     second derivatives are not verified: %s does not compute in 64 bits (%s)",
                    type(self.module).__name__,
                    str(refusal).partition("\n")[0],
                )
                return
            generator = torch.Generator().manual_seed(0)
            direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters]
            graph = [(each, v) for each, v in zip(first, direction, strict=True) if each.requires_grad]
            if not graph:
                return
            found = torch.autograd.grad(
                [each for each, _ in graph], parameters, [v for _, v in graph], allow_unused=True
            )
            second = [_or_zero(each, parameter) for each, parameter in zip(found, parameters, strict=True)]
            before = [parameter.detach().clone() for parameter in parameters]
            found_by_step = []
            for step in STEPS:
                ends = []
                for signed in (step, -step):
                    with torch.no_grad():
                        for parameter, value, v in zip(parameters, before, direction, strict=True):
                            parameter.copy_(value + signed * v)
                    ends.append(gradients())
                difference = [(plus - minus) / (2 * step) for plus, minus in zip(*ends, strict=True)]
                found_by_step.append(
                    (_norm([a - b for a, b in zip(second, difference, strict=True)]), _norm(difference))
                )
            error, size = min(found_by_step)
        if error > SECOND * size and size > SECOND * _norm([each.detach() for each in first]):
            raise DataError(
                f"the second derivative of the losses of {type(self.module).__name__}, through which samples act on later steps, is off "
                f"by {error / size:.0%}: the losses depend on the parameters through something that is detached or computed under "
                "torch.no_grad() (a weight, a target), or a hook changes gradients. Let the gradient flow through it, or use scorer trak."
            )

    def _last(self, trajectory: Trajectory, output: Tensor) -> Adjoint:
        parameters = trajectory.parameters
        found = torch.autograd.grad(output, parameters, allow_unused=True)
        return (
            [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)],
            [[torch.zeros_like(p) for _ in trajectory.rule.state] for p in parameters],
        )

    def _step_back(
        self, trajectory: Trajectory, step: int, before: Snapshot, adjoints: list[Adjoint], scores: Tensor
    ) -> list[Adjoint]:
        """Add to `scores` what a step contributes, and return the adjoints of the state before it."""
        recording, parameters = self.recording, trajectory.parameters
        with torch.no_grad():
            for parameter, value in zip(parameters, before.values, strict=True):
                parameter.copy_(value)
        trajectory.train_mode()
        batch = trajectory.batch(step)
        seed_step(recording.seed, step)
        positions = torch.tensor(recording.batches[step])
        weights = torch.ones(len(positions), dtype=parameters[0].dtype, requires_grad=True)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = self._weighted(weights)(batch)
        self._require_agreement(step, float(loss.detach()))
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        # A parameter without a gradient is left alone by the optimizer.
        used = [at for at, gradient in enumerate(found) if gradient is not None]
        gradients = [gradient for gradient in found if gradient is not None]
        update = _Update(trajectory, step, before, used, gradients)
        following = []
        for row, (values, states) in enumerate(adjoints):
            own_values, own_states, directions = update.pull_back(values, states)
            pulled = torch.autograd.grad(
                gradients, [weights, *parameters], directions, retain_graph=True, allow_unused=True
            )
            scores[row].index_add_(0, positions, _or_zero(pulled[0], weights).detach().double().cpu())
            following.append(
                (
                    [own + _or_zero(second, own) for own, second in zip(own_values, pulled[1:], strict=True)],
                    own_states,
                )
            )
        return following

    def _weighted(self, weights: Tensor) -> Callable[[Any], Tensor]:
        def loss(batch: Any) -> Tensor:
            with batch_of(len(weights)):
                found = self._losses(self.module, batch)
            if found.shape != weights.shape:
                raise DataError(
                    f"losses must return one loss per sample, ({len(weights)},), got {tuple(found.shape)}: use reduction='none'"
                )
            return (weights.to(found) * found).mean()

        return loss

    def _require_agreement(self, step: int, mean: float) -> None:
        recorded = self.recording.losses[step]
        if not abs(mean - recorded) <= AGREEMENT * max(abs(recorded), 1e-3):
            raise DataError(
                f"the mean of losses in step {step} is {mean:.6g}, and training_step returned {recorded:.6g}. It must be the mean of the "
                "same losses, with random numbers drawn in the same order."
            )

    def _outputs(
        self, targets: AttributionData, task: Task, members: Sequence[npt.NDArray[np.int64]]
    ) -> Iterator[Tensor]:
        """Yield the mean output of each group under the present weights."""
        self.module.eval()
        for group in members:
            parts = []
            for first in range(0, len(group), targets.batch_size):
                positions = group[first : first + targets.batch_size].tolist()
                try:
                    parts.append(self._output(targets, task, positions))
                except OneSampleAtATime:
                    parts.extend(self._output(targets, task, [each]) for each in positions)
            yield torch.cat(parts).mean()

    def _output(self, targets: AttributionData, task: Task, positions: list[int]) -> Tensor:
        with batch_of(len(positions)):
            return task.output(self.module, self._trajectory.moved(targets, positions))


class _Update:
    """One step of the optimizer, as a function of parameters, state and gradients that can be differentiated."""

    def __init__(
        self, trajectory: Trajectory, step: int, before: Snapshot, used: Sequence[int], gradients: Sequence[Tensor]
    ) -> None:
        recording = trajectory.recording
        options = [
            group for group, names in zip(recording.options_at(step), recording.groups, strict=True) for _ in names
        ]
        self._used = used
        self._values = [before.values[at].requires_grad_() for at in used]
        self._states = [[each.requires_grad_() for each in before.state[at]] for at in used]
        self._gradients = [gradient.detach().requires_grad_() for gradient in gradients]
        self._results: list[Tensor] = []
        with torch.enable_grad():
            cut = clipped(self._gradients, recording.clip_value, recording.clip_algorithm)
            for at, value, state, gradient in zip(used, self._values, self._states, cut, strict=True):
                new, states = trajectory.rule.step(value, gradient, state, before.counts[at], options[at])
                self._results += [new, *states]

    def pull_back(
        self, values: Sequence[Tensor], states: Sequence[Sequence[Tensor]]
    ) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
        """Return the adjoints of parameters and state before the step, and those of the gradients that it used."""
        inputs = [*self._values, *self._gradients, *(each for state in self._states for each in state)]
        outgoing = [each for at in self._used for each in (values[at], *states[at])]
        pairs = [(out, given) for out, given in zip(self._results, outgoing, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in pairs], inputs, [given for _, given in pairs], retain_graph=True, allow_unused=True
        )
        filled = [_or_zero(each, like) for each, like in zip(found, inputs, strict=True)]
        size = len(self._used)
        new_values, new_states = list(values), [list(state) for state in states]
        rest = iter(filled[2 * size :])
        for at, value in zip(self._used, filled[:size], strict=True):
            new_values[at] = value
            new_states[at] = [next(rest) for _ in states[at]]
        return new_values, new_states, filled[size : 2 * size]


def _members(groups: npt.ArrayLike | None, m: int) -> list[npt.NDArray[np.int64]]:
    """The positions of the targets of each group, in ascending order of the labels."""
    try:
        labels = np.arange(m) if groups is None else np.asarray(groups)
    except ValueError:  # lists of several lengths
        raise DataError(f"groups must be ({m},) integers, one label a target, not a list of positions") from None
    if labels.shape != (m,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"groups must be ({m},) integers, one label a target; got {labels.dtype} of shape {labels.shape}"
        )
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.cat([each.flatten() for each in tensors]).norm())


def _or_zero(found: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if found is None else found
