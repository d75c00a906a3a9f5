"""Audit batches: compare rows with the gradients that autograd computes for the batch, and for one of its samples alone."""

import pickle
import random
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError, OneSampleAtATime, SampleDependenceError, UnsupportedModelError, first_line
from trak_lightning.extractors.audit import Audit, added, as_outputs, audit_coefficients, halves, only, reference
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.extractors.iterative import differentiating
from trak_lightning.featurize.diagnosis import SamplePosition, random_output, refuse
from trak_lightning.featurize.error_scale import error_scale
from trak_lightning.featurize.unusual import Unusual
from trak_lightning.gradients import GradientBlock, ParameterLayout
from trak_lightning.model.autocast import is_cast, without_autocast
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.seeds import derive_seed
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task, batch_of

SHARE = 64
"""One batch in 64, on average, is verified even if its kind is known, in addition to the second, fourth, eighth … of the kind."""

_SLACK = 10.0
"""Factor on the tolerance when a batch of one is compared with a larger batch: sums are added in another order, and
occasionally a ReLU switches."""


class BatchAuditor:
    """Verify the first, second, fourth … batch of a kind, since a short run would hardly draw any, and a share of all others, which is
    drawn as a function of the seed.

    A batch may look like any other and be unlike them: `Unusual` says which are verified in addition.
    """

    def __init__(self, model: nn.Module, task: Task, layout: ParameterLayout, seed: int) -> None:
        self._model = model
        self._task = task
        self._layout = layout
        self._seed = seed
        self._structures: Counter[Any] = Counter()
        self._unusual = Unusual()
        self._keeps = None if _own_loss(task) else False
        """Whether `output` of the task keeps something; None if that is not known yet."""
        self.draws = False
        """Whether random numbers were drawn in some batch."""

    def due(self, batch: SampleBatch, index: Tensor, ranks: int = 1) -> int | None:
        """The position of the sample to compute by itself, or None if this batch is not to be verified. If it is verified by a number
        of `ranks` together, as many times fewer are, so that each rank spends the same share of its time."""
        drawn = derive_seed(self._seed, "verify", int(index[0]))
        structure = batch.structure
        self._structures[structure] += 1
        number = self._structures[structure]
        share = ranks if number.bit_count() == 1 else ranks * SHARE
        unusual = self._unusual.samples(batch)
        if len(unusual):
            return int(unusual[(drawn // SHARE) % len(unusual)])
        return self.drawn(batch, index) if number == 1 or drawn % share == 0 else None

    def drawn(self, batch: SampleBatch, index: Tensor) -> int:
        """A position that is drawn from the seed."""
        return (derive_seed(self._seed, "verify", int(index[0])) // SHARE) % batch.size

    def left_out(self, rows: FeatureRows) -> int | None:
        """The position of a sample whose features are zero, if it is to be verified: the loss may leave it out because of the
        others, such as one that keeps the hardest samples of a batch."""
        zero = np.flatnonzero(~rows.features.any(axis=1))
        if not len(zero) or not (any_sharded(self._model.parameters()) or self._unusual.is_due("zero")):
            return None
        return int(zero[derive_seed(self._seed, "zero", int(rows.index[0])) % len(zero)])

    def begin(self, batch: SampleBatch, position: int, extractor: GradientExtractor) -> "Comparison | None":
        """What the blocks of a batch are to be compared with while its rows are computed; None if they cannot be, since they are
        rounded to 16 bits, or belong to samples that are computed one at a time anyway."""
        if extractor.one_by_one or is_cast():
            return None
        try:
            return self._comparison(batch, position, audited=extractor.audits(self._model, batch))
        except Exception:  # the batch is not one that can be computed as a whole
            return None

    def _comparison(
        self, batch: SampleBatch, position: int, *, audited: bool = False, measure: bool = False
    ) -> "Comparison":
        alone = partial(Comparison, self._model, self._task, self._layout, batch, position, audited, measure)
        try:
            return alone(batch.fetch([position]))
        except DataError:
            return alone(self._alone(batch, position))

    def verify(
        self,
        batch: SampleBatch,
        index: Tensor,
        position: int,
        extractor: GradientExtractor,
        rows: FeatureRows,
        compared: "Comparison | None" = None,
        *,
        chosen: bool = True,
    ) -> None:
        """Compare gradients, outputs and weights with those that autograd computes: for the batch in two halves, and for one
        sample, fetched and collated anew. Autocast is off, so that differences come only from rounding in the model's own precision.

        Args:
            batch: the batch.
            index: the dataset positions of its samples, (B,).
            position: the sample to compute by itself.
            extractor: the extractor that computed the rows.
            rows: its rows, in the precision of the run.
            compared: what has received the blocks of these rows; if None, they are computed again.
            chosen: whether the user chose the extractor, rather than another one falling back to it.

        Raises:
            SampleDependenceError: the output or gradient of the sample depends on its batch, or on random numbers.
            UnsupportedModelError: the extractor computed wrong gradients.
        """
        if extractor.one_by_one:
            self._compare_outputs(batch, index, position, rows, chosen)
            return
        place, output = SamplePosition(int(index[position]), position, batch.size), torch.from_numpy(rows.output)
        if compared is None or compared.doubtful:
            with without_autocast():
                compared = self._comparison(batch, position, measure=True)
                output = extractor.extract(self._model, self._task, batch, self._layout, compared)
        one, most, outputs = compared.one, compared.single.tolerance, compared.outputs
        size = self._unit(rows)
        for other in (position, *range(batch.size)) if batch.size > 1 else ():
            if (error := _shift(output[other], outputs[other], size)) > most:
                lone = batch.fetch([other])
                with without_autocast():
                    error = max(error, _shift(output[other], self._outputs(lone)[0], size))
                    self._refuse(SamplePosition(int(index[other]), other, batch.size), error, lone, batch)
        shift = _shift(output[position], compared.alone.output[0], size)
        wrong, name = compared.single.wrong(), type(extractor).__name__.lower()
        if wrong or shift > most:
            with without_autocast():
                self._blame(batch, one, place, wrong, shift, most, name, size)
        if compared.wrong_sum:
            raise UnsupportedModelError(_wrong_rows(compared.wrong_sum, name))
        self._compare_weights(batch, place, one, compared.alone.output, rows)

    def require_agreement(self, batch: SampleBatch, output: Tensor) -> None:
        """Compare the one number that the task finds for a batch with its outputs (B,), computed one at a time: in every batch, since a loss
        that is normalized over the batch is the mean of its samples in some."""
        if batch.size == 1 or type(self._task).require_agreement is Task.require_agreement:
            return
        try:
            self._outputs(batch)
        except OneSampleAtATime as refusal:
            self._task.require_agreement(refusal.whole, output)
        except Exception:  # the model does not support this batch
            return

    def require_repeatable(self, batch: SampleBatch, index: Tensor, output: Tensor, one_by_one: bool) -> None:
        """Compare the outputs of a batch, while random numbers were drawn, with those of another pass.

        Raises:
            SampleDependenceError: some differ.
        """
        self.draws = True
        if one_by_one:
            again = torch.cat([self._outputs(batch.fetch([position])) for position in range(batch.size)])
        else:
            again = self._outputs(batch)
        most = 1e-2 if _cast_or_short(self._model) else 1e-5
        for position, (one, other) in enumerate(zip(again, output, strict=True)):
            if (error := _shift(one, other)) > most:
                same = batch.fetch([position]) if one_by_one else batch
                raise random_output(self._model, self._task, int(index[position]), error, same)

    def _refuse(self, place: SamplePosition, error: float, alone: SampleBatch, batch: SampleBatch) -> NoReturn:
        if self.draws:
            raise random_output(self._model, self._task, place.in_dataset, error, batch)
        refuse(self._model, self._task, place, error, alone, batch)

    def _alone(self, batch: SampleBatch, position: int) -> SampleBatch:
        """A batch of this sample; of two copies of it if the model does not support a batch of one, such as one that ends in
        ``squeeze()``."""
        one = batch.fetch([position])
        try:
            self._outputs(one)
        except DataError:
            if batch.size == 1:
                raise
            return batch.fetch([position, position])
        return one

    def require_alone(self, batch: SampleBatch, index: Tensor, error: Exception) -> None:
        """Explain an `error` of the user's code that single samples raise and the whole batch does not.

        Raises:
            SampleDependenceError: the batch has outputs.
        """
        if batch.size == 1 or isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return
        try:
            self._outputs(batch)
        except Exception:
            return
        for position in range(batch.size):
            try:
                self._outputs(batch.fetch([position]))
            except Exception as alone:
                raise _needs_others(int(index[position]), batch.size, alone) from error

    def _outputs(self, batch: SampleBatch) -> Tensor:
        return outputs(self._model, self._task, batch)

    def _blame(
        self,
        batch: SampleBatch,
        one: SampleBatch,
        place: SamplePosition,
        wrong: dict[str, str],
        shift: float,
        most: float,
        extractor: str,
        size: float,
    ) -> NoReturn:
        """Find the cause of a difference between a sample by itself and in its batch: the model, if autograd differs too, or the
        `extractor`."""
        position = place.position
        within = reference(self._model, self._task, batch, self._layout, only(position, batch.size))
        alone = reference(self._model, self._task, one, self._layout, only(0, one.size))
        error = max(_distance(alone.grads, within.grads), _shift(within.output[position], alone.output[0], size))
        if error > most:
            self._refuse(place, error, one, batch)
        raise UnsupportedModelError(_wrong_rows(wrong or {"output": f"off by {shift:.2g}"}, extractor))

    def _compare_outputs(
        self, batch: SampleBatch, index: Tensor, position: int, rows: FeatureRows, chosen: bool
    ) -> None:
        """Check samples that were computed one at a time: compute one again and, unless the user chose this extractor, compare
        with the outputs of the batch."""
        most = 0.1 if _cast_or_short(self._model) else 1e-2
        found, size = torch.from_numpy(rows.output), self._unit(rows)
        one, names = batch.fetch([position]), list(self._layout.by_name)
        with differentiating(self._model, self._task, self._layout) as differentiate:
            (again, grads), (_, others) = differentiate(one), differentiate(one)
        drawn = _distance(dict(zip(names, grads, strict=True)), dict(zip(names, others, strict=True)))
        if (error := max(_shift(again[0], found[position], size), drawn)) > most:
            self._refuse(SamplePosition(int(index[position]), 0, 1), error, one, one)
        if batch.size == 1 or chosen:
            return
        try:
            output = self._outputs(batch)
        except Exception:  # the model does not support this batch
            return
        for other in range(batch.size):
            if (error := _shift(output[other], found[other], size)) > most:
                place = SamplePosition(int(index[other]), other, batch.size)
                self._refuse(place, error, batch.fetch([other]), batch)

    def loss_weight_and_curvature(
        self, batch: SampleBatch, output: Tensor, one_by_one: bool = False
    ) -> tuple[Tensor, Tensor]:
        """q and r of every sample, (B,) each. A task may keep what it needs for them in `output`, so if it keeps anything, it is given the
        batch again first: the last one that it has seen may be another.

        Raises:
            DataError: the task returns something else.
        """
        if one_by_one and batch.size > 1:
            each = [
                self.loss_weight_and_curvature(batch.fetch([position]), output[position : position + 1])
                for position in range(batch.size)
            ]
            loss_weight, curvature = (torch.cat(parts) for parts in zip(*each, strict=True))
            return loss_weight, curvature
        with torch.no_grad(), batch_of(batch.size):
            if self._keeps is not False:
                before = self._kept()
                self._task.output(self._model, batch.data)
                self._keeps = self._keeps or not _same(before, self._kept())
            loss_weight, curvature = self._task.loss_weight_and_curvature(self._model, batch.data, output.clone())
        return as_outputs(loss_weight, batch.size, self._task), as_outputs(curvature, batch.size, self._task)

    def _kept(self) -> list[dict[str, Any]]:
        return [dict(vars(each)) for each in (self._task, *self._model.modules())]

    def _unit(self, rows: FeatureRows) -> float:
        """The size relative to which outputs are compared."""
        return error_scale(rows.output, rows.output, exact=not _cast_or_short(self._model))

    def _compare_weights(
        self, batch: SampleBatch, place: SamplePosition, one: SampleBatch, output: Tensor, rows: FeatureRows
    ) -> None:
        exact = not _cast_or_short(self._model)
        most = 1e-2 if exact else 0.1
        weights = self.loss_weight_and_curvature(one, output)
        for own, column in zip(weights, (rows.loss_weight, rows.curvature), strict=True):
            size = error_scale(column, rows.output, exact=exact)
            if (error := _shift(torch.tensor(column[place.position]), own[0], size)) > most:
                self._refuse(place, error, one, batch)


class Comparison:
    """A sink that compares blocks with the gradients that autograd computes: for one sample by itself and, unless the extractor
    audits the batch, for the samples in two halves, drawn from the position. An extractor that audits tells the outputs of halves."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        layout: ParameterLayout,
        batch: SampleBatch,
        position: int,
        audited: bool,
        measure: bool,
        one: SampleBatch,
    ) -> None:
        self.one = one
        self._reference = partial(reference, model, task, layout=layout)
        self._outputs = partial(outputs, model, task)
        self._layout = layout
        self._batch = batch
        self._position = position
        self._audited = audited
        self._measure = measure
        self._in_halves: Tensor | None = None
        self._refer()

    @property
    def outputs(self) -> Tensor:
        """The outputs (B,) of the samples in two halves."""
        if self._in_halves is None:
            self._in_halves = self._joined([self._outputs(half) for half, _ in self._halves()])
        return self._in_halves

    @cached_property
    def wrong_sum(self) -> dict[str, str]:
        """The parameters for which the sum of all blocks is wrong, and how."""
        return {} if self.whole is None else self.whole.wrong()

    @property
    def doubtful(self) -> bool:
        """Whether the sum of all blocks may be right although it seems wrong, since sizes were not measured."""
        return bool(self.wrong_sum) and not self._measure

    def told(self, outputs: Tensor) -> None:
        """Take the outputs in two halves that the extractor has computed."""
        self._in_halves = outputs.to(torch.float64)

    def restart(self) -> None:
        """Begin again with the first block."""
        if self._begun:
            self._refer()

    def _halves(self) -> list[tuple[SampleBatch, list[int]]]:
        return [(self._batch.fetch(part), part) for part in halves(self._batch.size, self._position)]

    def _joined(self, outputs: list[Tensor]) -> Tensor:
        joined = torch.zeros(self._batch.size, dtype=torch.float64)
        for part, found in zip(halves(self._batch.size, self._position), outputs, strict=True):
            joined[part] = found.to(joined)
        return joined

    def _refer(self) -> None:
        self._begun = False
        size = self._batch.size
        self.alone = self._reference(self.one, weights=only(0, self.one.size))
        self.single = Audit(self._layout, self.alone, only(self._position, size), slack=_SLACK)
        self.whole = None
        if size == 1:
            self._in_halves = self.alone.output
        elif not self._audited:
            weights = audit_coefficients(size)
            found = [self._reference(half, weights=weights[part]) for half, part in self._halves()]
            self._in_halves = self._joined([each.output for each in found])
            self.whole = Audit(self._layout, added(found), weights, slack=_SLACK, measure=self._measure)

    def __call__(self, block: GradientBlock) -> None:
        self._begun = True
        self.single(block)
        if self.whole is not None:
            self.whole(block)


def outputs(model: nn.Module, task: Task, batch: SampleBatch) -> Tensor:
    """The outputs (B,) of a batch. Not under no_grad, since a model may differentiate inside, as for forces."""
    with torch.enable_grad(), batch_of(batch.size):
        return as_outputs(task.output(model, batch.data), batch.size, task).detach()


def random_state(device: torch.device, generators: Sequence[Any] = ()) -> list[Any]:
    """The state of every generator that a model may draw from unasked, and of these."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002  models draw from it
    states = [torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(keys).tobytes(), rest]
    states += [
        each.get_state().numpy().tobytes() if isinstance(each, torch.Generator) else pickle.dumps(each)
        for each in generators
    ]
    return states + ([torch.cuda.get_rng_state(device).numpy().tobytes()] if device.type == "cuda" else [])


def _needs_others(sample: int, size: int, error: Exception) -> SampleDependenceError:
    return SampleDependenceError(
        f"the model cannot compute sample {sample} in a batch of one, only in a batch of {size}: {type(error).__name__}: {first_line(error)}. "
        "Attributions are those of single samples, so the output of a sample must not need others: look for sums, means and "
        "top-k choices over the batch dimension, and for ``squeeze()`` without a dimension, in the model, the task and the collate "
        "function."
    )


def _own_loss(task: Task) -> bool:
    """Whether the user has written the loss weight or the curvature."""
    names = ("loss_weight", "curvature", "loss_weight_and_curvature")
    return any(not getattr(type(task), name).__module__.startswith("trak_lightning.") for name in names)


def _same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Whether objects have the very same attributes as before."""
    return all(
        one.keys() == other.keys() and all(value is other[name] for name, value in one.items())
        for one, other in zip(before, after, strict=True)
    )


def _wrong_rows(wrong: dict[str, str], extractor: str) -> str:
    some = ", ".join(f"{name} ({how})" for name, how in list(wrong.items())[:5])
    return f"the extractor {extractor!r} computed wrong gradients for a batch: {some}. Use extractor='auto' or 'iterative'."


def _shift(one: Tensor, other: Tensor, smallest: float = 1.0) -> float:
    first, second = float(one), float(other)
    return abs(first - second) / max(smallest, abs(second))


def _distance(alone: dict[str, Tensor | None], within: dict[str, Tensor | None]) -> float:
    """The largest difference of a parameter's gradients, relative to their norm, or to 1/1000 of the norm over all parameters."""
    norms = {name: 0.0 if grad is None else float(grad.norm()) for name, grad in alone.items()}
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    worst = 0.0
    for name, grad in alone.items():
        other = within[name]
        if grad is None and other is None:
            continue
        zero = torch.zeros(())
        error = float(((zero if other is None else other) - (zero if grad is None else grad)).norm())
        scale = max(norms[name], 1e-3 * whole, torch.finfo(torch.float32).tiny)
        worst = max(worst, error / scale)
    return worst


def _cast_or_short(model: nn.Module) -> bool:
    return is_cast() or any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())


def difference(alone: npt.NDArray[Any], within: npt.NDArray[Any]) -> float:
    """``‖alone − within‖ / ‖alone‖`` of a sample's features."""
    return float(np.linalg.norm(alone - within) / max(np.linalg.norm(alone), np.finfo(np.float32).tiny))
