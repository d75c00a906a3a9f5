"""Filling feature sets: which sets there are to be, and a Trainer that computes what is missing of them, with any number of
ranks and of other jobs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

import lightning as L
import torch
from torch import Tensor, nn

from trak_lightning.check import Checker, Finding
from trak_lightning.checkpoints import Checkpoint
from trak_lightning.compiled import uncompiled
from trak_lightning.data import AttributionData
from trak_lightning.errors import IncompatibleRunError, IncompleteRunError, TerminatedError
from trak_lightning.eval_mode import require_eval
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurizer import BlockWriter, Featurizer
from trak_lightning.fitting import FitFile, Reference, TrainingSet
from trak_lightning.gradients import ParameterLayout
from trak_lightning.progress import progress
from trak_lightning.projectors.base import Projector
from trak_lightning.quiet import from_the_weights_there_are, interruptible, quiet_lightning
from trak_lightning.ranks import agreed, follow_rank_zero, lost_ranks, outlast_rank_zero, takes_part, yet_to_meet
from trak_lightning.rundir import RunDirectory
from trak_lightning.sharded import is_sharded, shards
from trak_lightning.shards import Shard
from trak_lightning.stopping import StopRequest
from trak_lightning.stores.base import FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.memory import MemorySet
from trak_lightning.tasks.base import Task

FeaturizerType = TypeVar("FeaturizerType", bound=Featurizer)

POLL_SECONDS = 0.2
"""How often a job whose work is done looks whether other jobs have finished theirs."""


class Work(NamedTuple):
    """The blocks of one feature set that are a job's."""

    checkpoint: Checkpoint
    feature_set: FeatureSet
    blocks: range

    def missing(self) -> list[int]:
        return self.feature_set.missing_in(self.blocks)


@dataclass(frozen=True)
class Filler:
    """Everything that determines the features of a split, but the split."""

    model: nn.Module
    task: Task
    extractor: GradientExtractor
    projector: Projector
    layout: ParameterLayout
    seed: int
    store: FeatureStore
    run: RunDirectory
    trainer: L.Trainer | None
    """One of the user's; `default_trainer` if None."""

    def fill(
        self,
        data: AttributionData,
        split: str,
        checkpoints: Sequence[Checkpoint],
        training: TrainingSet,
        *,
        block_size: int,
        grow: bool,
        shard: Shard,
    ) -> int:
        """Compute what is missing of a shard of the features of `data` under every checkpoint; returns the rows computed by
        all processes of this job. `training` is what a projector or a task that has to be fitted learns from.

        Raises:
            IncompatibleRunError: the features there were made with other settings, or of other data.
            IncompleteRunError: not every row of the shard is there afterwards.
            TerminatedError: the process was asked to end.
        """
        require_eval(self.model)
        specs = [self._spec(data, split, checkpoint.id, block_size, training) for checkpoint in checkpoints]
        sets = [self._create(spec, data, grow) for spec in specs]
        shard.record(self.run)
        work = list(map(Work, checkpoints, sets, shard.blocks(sets)))
        missing = sum(len(part.feature_set.spec.block_range(block)) for part in work for block in part.missing())
        trainer, stop = self.trainer or default_trainer(), StopRequest()
        shards(trainer, self.model)
        if not takes_part(trainer, split, bool(missing)):
            return 0
        self._require_fits()
        bar = progress(f"featurize {split}", missing, enabled=trainer.is_global_zero)
        with uncompiled(self.model), self._restored(), quiet_lightning(), stop.watching(trainer), bar as advance:
            try:
                return self._fill(trainer, data, training, work, advance, stop)
            except TerminatedError:
                outlast_rank_zero()
                raise

    def check(self, data: AttributionData, split: str) -> list[Finding]:
        """What `trak_lightning.check` finds in the first batch of `data`; nothing is stored."""
        require_eval(self.model)
        training = TrainingSet(data, Reference.of(self.task, data))
        spec = self._spec(data, split, "check", data.batch_size, training)
        with uncompiled(self.model), self._restored(), quiet_lightning():
            checker = self._module(Checker, data, MemorySet(spec), training, StopRequest())
            _predict(self.trainer or default_trainer(), checker, [])
            return checker.findings

    def _spec(
        self, data: AttributionData, split: str, checkpoint: str, block_size: int, training: TrainingSet
    ) -> FeatureSpec:
        batch_size = min(data.batch_size, len(data))
        fingerprint = {
            "checkpoint": checkpoint,
            "parameters": self.layout.fingerprint,
            "task": self.task.state,
            "loss_function": self.task.loss_function,
            "projector": self.projector.state,
            "seed": self.seed,
            "precision": self.trainer.precision if self.trainer else "32-true",
            "data": data.fingerprint(),
        }
        if training.reference is not None:
            fingerprint["reference"] = training.reference.fingerprint
        return FeatureSpec(
            split=split,
            checkpoint=checkpoint,
            num_samples=len(data),
            dim=self.projector.output_dim(self.layout),
            batch_size=batch_size,
            block_size=-(-block_size // batch_size) * batch_size,
            fingerprint=fingerprint,
        )

    def _create(self, spec: FeatureSpec, data: AttributionData, grow: bool) -> FeatureSet:
        try:
            before = self.store.open(spec.split, spec.checkpoint).spec.num_samples
        except IncompleteRunError:
            return self.store.create(spec)
        if before < spec.num_samples and grow:
            old = {**spec.fingerprint, "data": data.fingerprint(before)}
            return self.store.grow(replace(spec, num_samples=before, fingerprint=old), spec)
        try:
            return self.store.create(spec)
        except IncompatibleRunError as error:
            if before >= spec.num_samples:
                raise
            raise IncompatibleRunError(
                f"{error} If the {before} samples of before come first and are unchanged, featurize with grow=True "
                "(--grow true): only the new ones are computed then."
            ) from error

    def _fill(
        self,
        trainer: L.Trainer,
        data: AttributionData,
        training: TrainingSet,
        work: list[Work],
        advance: Callable[[int], None],
        stop: StopRequest,
    ) -> int:
        """Compute until nothing is missing, with however many other jobs; returns the rows computed by this one."""
        if trainer.world_size > 1:
            follow_rank_zero(stop)
        # Ranks meet in their first prediction. Before that, each sees for itself what is missing; afterwards, rank 0.
        computed = self._compute(trainer, data, training, work[0], advance, stop) if yet_to_meet(trainer) else 0
        missing, idle = agreed(trainer, partial(_missing, work)), 0
        while missing:
            for number in missing:
                stop.check()
                computed += self._compute(trainer, data, training, work[number], advance, stop)
            before = missing
            while (missing := agreed(trainer, partial(_missing, work, free=True))) is None:
                stop.check()
                time.sleep(POLL_SECONDS)
            idle = 0 if missing != before else idle + 1
            if missing and idle > 1:
                raise IncompleteRunError(
                    f"{sum(missing.values())} blocks of {work[0].feature_set.spec.split} are missing after featurizing: it was "
                    "interrupted, a process died, or the Trainer limits the batches. What is stored is kept; run the same "
                    "command again."
                )
        return computed

    def _require_fits(self) -> None:
        """Refuse to fit a projector or a task anew where there are rows already that were made with an earlier fit."""
        needed = [self.run.projection] if self.projector.fit_samples else []
        needed += [self.run.reference] if self.task.fit_samples else []
        for split, checkpoint in self.store.list() if needed else ():
            spec = (found := self.store.open(split, checkpoint)).spec
            path = next((path for path in (file(checkpoint) for file in needed) if not path.exists()), None)
            if path and len(found.missing_blocks()) < spec.num_blocks:
                raise IncompleteRunError(
                    f"{path} is missing, and features of {split!r} that were made with it are there. Restore the "
                    f"file, or delete all features of checkpoint {checkpoint}."
                )

    def _module(
        self,
        cls: type[FeaturizerType],
        data: AttributionData,
        feature_set: FeatureSet,
        training: TrainingSet,
        stop: StopRequest,
        blocks: range | None = None,
    ) -> FeaturizerType:
        spec = feature_set.spec
        # What a projector learns does not depend on the split that is projected.
        fit_file = FitFile(
            self.run.projection(spec.checkpoint),
            {key: value for key, value in spec.fingerprint.items() if key != "data"},
        )
        reference_file = FitFile(
            self.run.reference(spec.checkpoint),
            {key: spec.fingerprint.get(key) for key in ("checkpoint", "task", "precision", "reference")},
        )
        return cls(
            self.model,
            self.task,
            self.extractor,
            self.projector,
            self.layout,
            data,
            feature_set,
            seed=self.seed,
            blocks=range(spec.num_blocks) if blocks is None else blocks,
            stop=stop,
            training=training,
            fit_file=fit_file,
            reference_file=reference_file,
        )

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """The model's weights, and the dtype and device that a Trainer changes, as they were."""
        before = {name: tensor.detach().clone() for name, tensor in _tensors(self.model)}
        try:
            yield
        finally:
            for name, tensor in _tensors(self.model):
                if not is_sharded(tensor):  # a model that was sharded stays so
                    tensor.data = before[name]

    def _compute(
        self,
        trainer: L.Trainer,
        data: AttributionData,
        training: TrainingSet,
        part: Work,
        advance: Callable[[int], None],
        stop: StopRequest,
    ) -> int:
        """Compute the missing blocks that no other process works on; returns the rows that all ranks computed."""
        part.checkpoint.load_into(self.model)
        featurizer = self._module(Featurizer, data, part.feature_set, training, stop, part.blocks)
        writer = BlockWriter(advance, trainer.world_size)
        try:
            with lost_ranks():
                _predict(trainer, featurizer, [writer])
                # A rank that died early is not noticed by predict, and has to be met.
                computed = torch.tensor(writer.computed, device=trainer.strategy.root_device)
                return int(trainer.strategy.reduce(computed, reduce_op="sum"))
        except Exception:
            stop.check()  # signals also end the worker processes of a loader, and other ranks
            raise
        finally:
            if featurizer.plan is not None:
                featurizer.plan.release()


def _predict(trainer: L.Trainer, featurizer: Featurizer, callbacks: list[L.Callback]) -> None:
    own_callbacks = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [*own_callbacks, *callbacks]  # type: ignore[attr-defined]
    try:
        with interruptible(), from_the_weights_there_are(trainer):
            trainer.predict(featurizer, return_predictions=False)
    finally:
        trainer.callbacks = own_callbacks  # type: ignore[attr-defined]
        featurizer.trainer = None


def _missing(work: Sequence[Work], *, free: bool = False) -> dict[int, int] | None:
    """Which parts of the work have how many blocks missing. With `free`: None while others compute all of these."""
    blocks = {number: part.missing() for number, part in enumerate(work)}
    missing = {number: len(found) for number, found in blocks.items() if found}
    if not missing or not free:
        return missing
    for number in missing:
        for block in blocks[number]:
            if work[number].feature_set.claim(block):
                work[number].feature_set.release(block)
                return missing
    return None


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def default_trainer() -> L.Trainer:
    """One device, no logging, no files: what featurizing needs."""
    return L.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
