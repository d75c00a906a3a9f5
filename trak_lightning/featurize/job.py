"""Filling feature sets: which there are to be, whose part of them this job does, and the model as it was afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

import lightning as L
from torch import nn

from trak_lightning.check.checks import Checker, Finding, outlook
from trak_lightning.check.estimates import Workload
from trak_lightning.check.trial import Rehearsal
from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import IncompatibleRunError, IncompleteRunError, SettingsError, TerminatedError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurize.fitting import FitFile, Reference, TrainingSet
from trak_lightning.featurize.module import Featurizer
from trak_lightning.featurize.work import Work, Worker, predict
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.model.compiled import uncompiled
from trak_lightning.model.dtensor import shards
from trak_lightning.model.eval_mode import require_eval
from trak_lightning.model.restore import restored
from trak_lightning.projectors.base import Projector
from trak_lightning.run.directory import RunDirectory
from trak_lightning.runtime.lightning import quiet_lightning
from trak_lightning.runtime.progress import progress
from trak_lightning.runtime.ranks import follow_rank_zero, outlast_rank_zero, takes_part
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.stores.base import FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.memory import MemorySet
from trak_lightning.stores.shards import Shard
from trak_lightning.tasks.base import Task

FeaturizerType = TypeVar("FeaturizerType", bound=Featurizer)


@dataclass(frozen=True)
class PlannedSet:
    """A feature set that is to be there."""

    spec: FeatureSpec
    data: AttributionData
    grow: bool
    """Whether the set that is there may have fewer samples."""


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
        ids = [checkpoint.id for checkpoint in checkpoints]
        sets = self.make(self.plan({split: data}, ids, training, block_size=block_size, grow=grow))
        shard.record(self.run)
        work = list(map(Work, checkpoints, sets, shard.blocks(sets)))
        missing = sum(len(part.feature_set.spec.block_range(block)) for part in work for block in part.missing())
        trainer, stop = self.trainer or default_trainer(), StopRequest()
        shards(trainer, self.model)
        if not takes_part(trainer, split, bool(missing)):
            return 0
        self._require_fits()
        if trainer.world_size > 1:
            follow_rank_zero(stop)

        def featurizer(part: Work) -> Featurizer:
            return self._module(Featurizer, data, part.feature_set, training, stop, part.blocks)

        bar = progress(f"featurize {split}", missing, enabled=trainer.is_global_zero)
        with uncompiled(self.model), quiet_lightning(), stop.watching(trainer), bar as advance:
            try:
                return Worker(trainer, work, featurizer, advance, stop).run()
            except TerminatedError:
                outlast_rank_zero()
                raise

    def plan(
        self,
        splits: Mapping[str, AttributionData],
        checkpoints: Sequence[str],
        training: TrainingSet,
        *,
        block_size: int,
        grow: bool,
    ) -> list[PlannedSet]:
        """The feature set of every split under every checkpoint, of these ids, for `make`; changes nothing.

        Raises:
            IncompatibleRunError: one is there that was made with other settings, or of other data.
            SettingsError: `block_size` is not positive.
        """
        if block_size < 1:
            raise SettingsError(f"block_size must be a positive number of samples, got {block_size}")
        plans = []
        for split, data in splits.items():
            any_spec = self._spec(data, split, "", block_size, training)  # which reads some of the data
            for checkpoint in checkpoints:
                fingerprint = {**any_spec.fingerprint, "checkpoint": checkpoint}
                plans.append(PlannedSet(replace(any_spec, checkpoint=checkpoint, fingerprint=fingerprint), data, grow))
        for plan in plans:
            self._require_compatible(plan)
        return plans

    def make(self, plans: Sequence[PlannedSet]) -> list[FeatureSet]:
        """The sets of a plan: those that are there, grown if need be, and new ones."""
        return [self._make(plan) for plan in plans]

    def check(self, data: AttributionData, split: str, work: Workload) -> list[Finding]:
        """What `trak_lightning.check.checks` finds in the first batch of `data`, and what `work` will take; nothing is stored."""
        require_eval(self.model)
        training = TrainingSet(data, Reference.of(self.task, data))
        spec = self._spec(data, split, "check", data.batch_size, training)
        trainer = self.trainer or default_trainer()
        with uncompiled(self.model), restored(self.model), quiet_lightning():
            checker = self._module(Checker, data, MemorySet(spec), training, StopRequest())
            predict(trainer, checker, [])
            rehearsed = self._module(Rehearsal, data, MemorySet(spec), training, StopRequest())
            started = perf_counter()
            Checkpoint.of(self.model, self.model).load_into(self.model)
            loaded = perf_counter()
            predict(trainer, rehearsed, [])
            took = rehearsed.took(loaded - started, perf_counter() - loaded, checker.first_seconds)
            work = replace(work, processes=trainer.world_size)
            device = trainer.strategy.root_device
            return checker.findings + list(outlook(work, took, checker, self.store, self.run.path, device))

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

    def _before(self, plan: PlannedSet) -> FeatureSpec | None:
        """What is planned, with as many samples as there are in the set that is there; None if there is none."""
        spec = plan.spec
        try:
            before = self.store.open(spec.split, spec.checkpoint).spec.num_samples
        except IncompleteRunError:
            return None
        if before >= spec.num_samples:
            return spec
        data = plan.data.fingerprint(before)
        return replace(spec, num_samples=before, fingerprint={**spec.fingerprint, "data": data})

    def _make(self, plan: PlannedSet) -> FeatureSet:
        before = self._before(plan) if plan.grow else None
        if before is None or before == plan.spec:
            return self.store.create(plan.spec)
        return self.store.grow(before, plan.spec)

    def _require_compatible(self, plan: PlannedSet) -> None:
        before = self._before(plan)
        if before is None:
            return
        try:
            self.store.create(before if plan.grow else plan.spec)  # which changes nothing, since it is there
        except IncompatibleRunError as error:
            if plan.grow or before == plan.spec:
                raise
            raise IncompatibleRunError(
                f"{error} If the {before.num_samples} samples of before come first and are unchanged, featurize with grow=True "
                "(--grow true): only the new ones are computed then."
            ) from error

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
