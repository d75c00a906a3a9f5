"""A featurizing job: create feature sets, compute this job's blocks, and restore the model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import (
    DataError,
    IncompatibleRunError,
    IncompleteRunError,
    StaleRowsError,
    TerminatedError,
    require_integer,
)
from trak_lightning.featurize.compute import Assignment, BlockComputer
from trak_lightning.featurize.fitting import FitSamples, Fitting, TrainingSet
from trak_lightning.featurize.module import Featurizer
from trak_lightning.featurize.reuse import SECONDS, ContentSample, VerifyData, changed_samples, knows_content
from trak_lightning.featurize.spec import FeaturizeSpec
from trak_lightning.model.autocast import as_called
from trak_lightning.model.checkpoints import Checkpoint, Checkpoints, CheckpointSource, distinct, expand, subset_path
from trak_lightning.model.compiled import uncompiled
from trak_lightning.model.dtensor import uses_sharding
from trak_lightning.model.eval_mode import require_eval
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, read_subset
from trak_lightning.run.positions import positions
from trak_lightning.runtime.lightning import default_trainer, quiet_lightning
from trak_lightning.runtime.progress import progress
from trak_lightning.runtime.ranks import follow_rank_zero, outlast_rank_zero, takes_part
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.scoring.held_out import output_and_loss_weight
from trak_lightning.stores.base import FeatureSet, FeatureSpec, FeatureStore, draw_of
from trak_lightning.stores.job_shards import Shard
from trak_lightning.tasks.base import unstated_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeaturizeJob:
    """Featurize splits of the data under checkpoints.

    Args:
        model: the user's module.
        spec: the settings.
        run: the run directory.
        store: where features are stored.
        trainer: the user's, whose devices, strategy and precision are used; one device if None.
        splits: the data by name.
        checkpoints: in the order of the run; empty until they are known.
        subsets: the positions of the training samples that each checkpoint was trained on, None where unknown.
        training: the samples that a projector or task is fitted to, if it needs a fit; None to use the split `train`.
        train: the split that is the training set.
        block_size: samples stored at a time; rounded up to whole batches.
        grow: allow data with more samples than are stored, appended after the stored ones.
        shard: the part of the blocks that this job computes.
        verify_data: which samples are read again before their stored rows are reused.
        repair: compute rows again whose samples have changed, instead of raising an error.
    """

    model: nn.Module
    spec: FeaturizeSpec
    run: RunDirectory
    store: FeatureStore
    trainer: L.Trainer | None
    splits: Mapping[str, AttributionData]
    checkpoints: Sequence[Checkpoint] = ()
    subsets: Sequence[npt.ArrayLike | None] = ()
    training: TrainingSet | None = None
    train: str = "train"
    block_size: int = 1024
    grow: bool = False
    shard: Shard = Shard()  # noqa: RUF009  frozen
    verify_data: VerifyData = "sampled"
    repair: bool = False

    def with_checkpoints(
        self, sources: Checkpoints | None, subsets: Sequence[npt.ArrayLike] | None = None, *, weights_only: bool = True
    ) -> "FeaturizeJob":
        """Return this job with these checkpoints, after reading them and comparing them with the model.

        Args:
            sources: as for `trak_lightning.TRAK.featurize`.
            subsets: the training subset of every checkpoint; if None, read from the subset file next to each, if there is one.
            weights_only: False to unpickle checkpoint files.

        Raises:
            CheckpointError: a checkpoint cannot be read or does not fit the model.
            DataError: there is no checkpoint, or a subset does not fit the training set.
        """
        with uncompiled(self.model):
            found = expand(self.model if sources is None else sources)
            if not found:
                raise DataError(
                    "checkpoints is an empty list; give at least one, or None for the model's current weights"
                )
            if subsets is not None and len(subsets) != len(found):
                raise DataError(f"there are {len(found)} checkpoints and {len(subsets)} subsets; give one for each")
            loaded = [Checkpoint.of(source, self.model, weights_only=weights_only) for source in found]
        known: list[npt.ArrayLike | None] = (
            list(subsets) if subsets is not None else [_subset_next_to(source) for source in found]
        )
        kept = distinct(loaded)
        loaded, known = [loaded[position] for position in kept], [known[position] for position in kept]
        n = len(self.splits[self.train])
        known = [
            None if subset is None else positions(subset, n, f"the training subset of {each}: sample")
            for each, subset in zip(loaded, known, strict=True)
        ]
        for each, subset in zip(loaded, known, strict=True):
            if subset is not None and not np.size(subset):
                raise DataError(f"the training subset of {each} holds no sample; give None where it is not known")
        return replace(self, checkpoints=loaded, subsets=known)

    def require_compatible(self) -> None:
        """Refuse settings that contradict stored features; change nothing. If this job has no checkpoints yet, use those
        of the run directory.

        Raises:
            IncompatibleRunError: features were made with other settings, or from other data.
        """
        ids = [checkpoint.id for checkpoint in self.checkpoints]
        for plan in self._plans(ids or [record.id for record in self.run.read().checkpoints]):
            self._existing(plan)

    def require_same_rows(self, *splits: str) -> None:
        """Refuse stored rows of these splits that are not those of the model, the task and the data as they are now; rows must not
        be missing. Read what may have changed in memory anew.

        Raises:
            IncompatibleRunError: settings or checkpoints are others.
            StaleRowsError: samples, or rows that were computed again, are others.
        """
        data = {split: self.splits[split] for split in splits}
        job = replace(self, splits=data, training=self._training, shard=Shard(), grow=False, repair=False)
        for split in splits:
            job.compute(split)

    def prepare(self) -> None:
        """Open or create the feature sets of all splits; refuse settings that contradict stored features before changing
        anything. `compute` calls this if needed.

        Raises:
            IncompatibleRunError, DataError, SettingsError: as `feature_sets`.
        """
        _ = self.feature_sets

    @cached_property
    def feature_sets(self) -> dict[str, list[FeatureSet]]:
        """The feature sets of every split, one per checkpoint: existing ones, grown if needed, and new ones. Changes
        nothing unless all of them are compatible.

        Raises:
            IncompatibleRunError: features were made with other settings, checkpoints or data.
            StaleRowsError: samples have changed since their rows were stored.
            DataError: a checkpoint is given twice.
            SettingsError: `block_size` is not positive.
        """
        records = [CheckpointRecord(checkpoint.id, str(checkpoint)) for checkpoint in self.checkpoints]
        self.run.require_registrable(records)
        plans = self._plans([record.id for record in records])
        existing = [self._existing(plan) for plan in plans]
        if any(found is None or not found.complete for found in existing):
            self._say_how()
        for found in filter(None, existing):
            self._verify_samples(found)
        featurized = {found.spec.checkpoint for found in filter(None, existing)}
        for checkpoint, subset in zip(self.checkpoints, self.subsets, strict=False):
            if subset is not None and checkpoint.id in featurized:
                self.run.require_same_subset(checkpoint.id, subset, str(checkpoint))
        sets = [self._completed(plan, found) for plan, found in zip(plans, existing, strict=True)]
        self.run.register(records, self.spec.task.meaning)
        for checkpoint, subset in zip(self.checkpoints, self.subsets, strict=False):  # targets come without subsets
            if subset is not None:
                self.run.write_subset(checkpoint.id, subset)
        by_split: dict[str, list[FeatureSet]] = {split: [] for split in self.splits}
        for plan, found in zip(plans, sets, strict=True):
            by_split[plan.split].append(found)
        return by_split

    def _say_how(self) -> None:
        """Say what the settings left open, before rows are computed."""
        if self.train in self.splits:
            if self.spec.projector.reason:
                log.info("projector  %s", self.spec.projector.reason)
            if unstated := unstated_loss(self.spec.task):
                log.warning("task  %s", unstated)

    def compute(self, split: str) -> int:
        """Compute the missing blocks of this job's shard of a split; return the rows computed by all its processes.

        Raises:
            IncompleteRunError: not every row of the shard is stored afterwards.
            StaleRowsError: another process stored rows of other samples meanwhile.
            TerminatedError: the process was asked to end.
        """
        require_eval(self.model)
        sets = self.feature_sets[split]
        self.shard.record(self.run)
        assignments = list(map(Assignment, self.checkpoints, sets, self.shard.blocks(sets)))
        missing = sum(len(part.feature_set.spec.block_range(block)) for part in assignments for block in part.missing())
        trainer, stop = self.trainer or default_trainer(), StopRequest()
        uses_sharding(trainer, self.model)
        stored = any(assignment.stored() for assignment in assignments)
        if not takes_part(trainer, split, bool(missing) or stored):
            return 0
        self._require_fits()
        if trainer.world_size > 1:
            follow_rank_zero(stop)

        def featurizer(part: Assignment, verify: bool) -> Featurizer:
            # Rows with drawn labels are not computed again: a label changes with the rounding of a probability. The rows with
            # the true labels are, under the same checkpoint.
            seconds = SECONDS / len(assignments) if verify and draw_of(split) is None else None
            return self.module(Featurizer, split, part.feature_set, part.blocks, stop, verify=seconds)

        bar = progress(f"featurize {split}", missing, enabled=trainer.is_global_zero)
        with as_called(), uncompiled(self.model), quiet_lightning(), stop.watching(trainer), bar as advance:
            try:
                computed = BlockComputer(trainer, assignments, featurizer, advance, stop).run()
                stop.check()  # the signal may have come after the last block
            except TerminatedError:
                outlast_rank_zero()
                raise
            except Exception:
                # A first attempt that fails may have the wrong settings, which should not bind the next one.
                for plan in self._created:
                    self.store.forget(plan.split, plan.checkpoint)
                raise
        if computed < missing:  # another process stored the others, perhaps from data of its own
            for feature_set in sets:
                if (error := self._compared(feature_set)[1]) is not None:
                    raise error
        if computed:
            self._warn_of_scale(split, sets[-1])
        return computed

    def _warn_of_scale(self, split: str, features: FeatureSet) -> None:
        """Say where predictions of numbers are of another scale than the labels."""
        meaning = self.spec.task.meaning
        if split != self.train or not meaning.number or not features.complete:
            return
        if scaled := meaning.other_scale(*output_and_loss_weight(features)):
            log.warning("task  %s", scaled)

    def module(
        self,
        cls: type[Featurizer],
        split: str,
        feature_set: FeatureSet,
        blocks: range,
        stop: StopRequest,
        *,
        verify: float | None = None,
    ) -> Featurizer:
        """Create a `Featurizer`, or a subclass of it, for some blocks of a feature set."""
        made_with = feature_set.spec.fingerprint
        if draw_of(split) is not None:  # P is fitted to the gradients of the true labels, which are featurized first
            made_with = {**made_with, **self.spec.fingerprint}
        return cls(
            self.model,
            self.spec.of_split(split),
            self.splits[split],
            feature_set,
            fitting=Fitting.of(self._training, self.run, made_with),
            blocks=blocks,
            stop=stop,
            verify=verify,
            repair=self.repair,
            training=self._training_rows(feature_set.spec.checkpoint),
        )

    def plan(self, split: str, checkpoint: str) -> FeatureSpec:
        """The feature set of a split under the checkpoint of this id."""
        return replace(self._plan_of(split), checkpoint=checkpoint, fingerprint=self._fingerprint(split, checkpoint))

    def for_targets(self, name: str, data: AttributionData, *, repair: bool = False) -> "FeaturizeJob":
        """The job of a target split under the same checkpoints, with the same fits.

        Raises:
            IncompatibleRunError: `name` is that of the training set, and the data is other data.
        """
        repair = repair and name not in self.splits  # which would put rows of targets in place of training rows
        job = replace(
            self, splits={name: data}, subsets=(), training=self._training, grow=False, shard=Shard(), repair=repair
        )
        if name in self.splits:
            try:
                job.prepare()
            except IncompatibleRunError as error:
                raise IncompatibleRunError(
                    f"{name!r} is the name of the training set in {self.run.path}, and these targets are other data. Choose another name "
                    "for them."
                ) from error
        return job

    # -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def _training(self) -> TrainingSet:
        if self.training is not None:
            return self.training
        data = self.splits[self.train]
        ids = [checkpoint.id for checkpoint in self.checkpoints] or [each.id for each in self.run.read().checkpoints]
        drawn_from = self._drawn_from(ids[0]) if self.grow and ids else None
        return TrainingSet(data, FitSamples.of(self.spec.task, data, drawn_from))

    def _training_rows(self, checkpoint: str) -> FeatureSet | None:
        """The stored training rows that scores of these splits use; None where the training set is one of the splits."""
        if self.train in self.splits or (self.train, checkpoint) not in self._stored:
            return None
        return self.store.open(self.train, checkpoint)

    def _drawn_from(self, checkpoint: str) -> int | None:
        """The number of training samples when the task was first fitted, from which its samples were drawn and still are."""
        try:
            found = self.store.open(self.train, checkpoint).spec.fingerprint
        except IncompleteRunError:
            return None
        drawn_from: int | None = found.get("reference", {}).get("drawn_from")
        return drawn_from

    def _plans(self, checkpoints: Sequence[str]) -> list[FeatureSpec]:
        return [self.plan(split, checkpoint) for split in self.splits for checkpoint in checkpoints]

    def _plan_of(self, split: str) -> FeatureSpec:
        data = self.splits[split]
        batch_size = min(data.batch_size, len(data))
        block_size = require_integer("block_size", self.block_size, 1, "a number of samples")
        block_size = -(-block_size // batch_size) * batch_size
        return FeatureSpec(split, "", len(data), self.spec.dim, batch_size, block_size)

    def _fingerprint(self, split: str, checkpoint: str, num_samples: int | None = None) -> dict[str, Any]:
        found = {
            "checkpoint": checkpoint,
            **self.spec.of_split(split).fingerprint,
            "data": self._data_fingerprint(split, num_samples),
        }
        if self._training.reference is not None:
            found["reference"] = self._training.reference.fingerprint
        return found

    def _data_fingerprint(self, split: str, num_samples: int | None) -> str:
        key = split, num_samples or len(self.splits[split])
        if key not in self._data_fingerprints:
            self._data_fingerprints[key] = self.splits[split].fingerprint(num_samples)
        return self._data_fingerprints[key]

    @cached_property
    def _data_fingerprints(self) -> dict[tuple[str, int], str]:
        return {}

    @cached_property
    def _stored(self) -> set[tuple[str, str]]:
        return set(self.store.list())

    def _existing(self, plan: FeatureSpec) -> FeatureSet | None:
        """The existing feature set of a plan, before it is grown; None if there is none yet.

        Raises:
            IncompatibleRunError: it was made with other settings.
        """
        if (plan.split, plan.checkpoint) not in self._stored:
            return None
        if self.grow and (before := self._before(plan)) != plan:
            return self.store.create(self._of_known_content(before))  # which changes nothing, since it exists
        try:
            return self.store.create(plan)
        except IncompatibleRunError as error:
            stored = self.store.open(plan.split, plan.checkpoint).spec.num_samples
            if plan.split != self.train and stored != plan.num_samples:
                added = f", or, if the first {stored} are these, compute the new ones with trak featurize --grow true"
                raise IncompatibleRunError(
                    f"{plan.split!r} holds {stored} targets, and {plan.num_samples} are given: these are others. Give them a name of their "
                    "own: TRAK.score(…, name='again'), trak sft --name again, another target_split"
                    f"{added if plan.num_samples > stored else ''}; or use another run directory."
                ) from error
            if (before := self._before(plan)) == plan:
                return self.store.create(self._of_known_content(plan))
            raise IncompatibleRunError(
                f"{error} If the {before.num_samples} stored samples come first and are unchanged, "
                "featurize with grow=True (--grow true) to compute only the new ones."
            ) from error

    def _of_known_content(self, plan: FeatureSpec) -> FeatureSpec:
        """Ignore the data fingerprint of a plan if the content hash of every stored sample is known, which is compared instead."""
        found = self.store.open(plan.split, plan.checkpoint)
        data = found.spec.fingerprint.get("data")
        return replace(plan, fingerprint={**plan.fingerprint, "data": data}) if knows_content(found) else plan

    def _verify_samples(self, found: FeatureSet) -> None:
        """Compare the content of samples with that of their stored rows.

        Raises:
            StaleRowsError: some differ, and `repair` is False.
        """
        changed, error = self._compared(found)
        if not self.repair and error is not None:
            raise error
        if len(changed):
            self.run.discard_results()
        for block in sorted({int(position) // found.spec.block_size for position in changed}):
            found.discard(block)

    def _compared(self, found: FeatureSet) -> tuple[npt.NDArray[np.int64], StaleRowsError | None]:
        """The positions of samples whose content is not that of their stored rows, and the error that names them."""
        data = self.splits[found.spec.split]
        if id(data) not in self._content:  # splits of drawn labels have the samples of the training set
            self._content[id(data)] = ContentSample.read(data, self.verify_data)
        sample = self._content[id(data)]
        changed, count = sample.changed(found), len(sample.positions)
        return changed, changed_samples(found.spec.split, changed, count, read_all=count == len(data))

    @cached_property
    def _content(self) -> dict[int, ContentSample]:
        return {}

    @cached_property
    def _created(self) -> list[FeatureSpec]:
        """The feature sets that this job has created."""
        return []

    def _completed(self, plan: FeatureSpec, existing: FeatureSet | None) -> FeatureSet:
        """The feature set of a plan: create it, return the existing one, or grow that."""
        if existing is None:
            self._created.append(plan)
            return self.store.create(plan)
        if existing.spec.num_samples == plan.num_samples:
            return existing
        return self.store.grow(existing.spec, plan)

    def _before(self, plan: FeatureSpec) -> FeatureSpec:
        """The plan, with the number of samples of the existing set."""
        before = self.store.open(plan.split, plan.checkpoint).spec.num_samples
        if before >= plan.num_samples:
            return plan
        return replace(plan, num_samples=before, fingerprint=self._fingerprint(plan.split, plan.checkpoint, before))

    def _require_fits(self) -> None:
        """Refuse to fit a projector or a task again where rows exist that were made with an earlier fit."""
        needed = [self.run.projection] if self.spec.projector.fit_samples else []
        needed += [self.run.reference] if self.spec.task.fit_samples else []
        for split, checkpoint in self.store.list() if needed else ():
            spec = (found := self.store.open(split, checkpoint)).spec
            path = next((path for path in (file(checkpoint) for file in needed) if not path.exists()), None)
            if path and len(found.missing_blocks()) < spec.num_blocks:
                raise IncompleteRunError(
                    f"{path} is missing, but stored features of {split!r} were made with it. Restore the file, or "
                    f"delete all features of checkpoint {checkpoint}."
                )


def _subset_next_to(source: CheckpointSource) -> npt.NDArray[np.int64] | None:
    if isinstance(source, (str, Path)) and (path := subset_path(source)).exists():
        return read_subset(path)
    return None
