"""The Python API: `TRAK`."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trak_lightning import registry
from trak_lightning.check import Checker, Finding
from trak_lightning.checkpoints import Checkpoint, CheckpointSource
from trak_lightning.compiled import original, uncompiled
from trak_lightning.data import AttributionData
from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError, SettingsError, TrakError
from trak_lightning.eval_mode import require_eval
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurizer import BlockWriter, Featurizer
from trak_lightning.fitting import FitFile
from trak_lightning.gradients import ParameterLayout
from trak_lightning.progress import progress
from trak_lightning.projectors.base import Projector
from trak_lightning.quiet import interruptible, quiet_lightning
from trak_lightning.rundir import CheckpointRecord, RunDirectory, read_subset
from trak_lightning.scoring.base import Scorer
from trak_lightning.scoring.compute import LOCAL
from trak_lightning.scoring.fabric import FabricCompute
from trak_lightning.scoring.groups import Reduction
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.self_influence import SelfInfluence, self_influence
from trak_lightning.scoring.stage import load_features, score_run
from trak_lightning.stores.base import FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.memory import MemorySet
from trak_lightning.tasks.base import Task

DataSource = Dataset | DataLoader | AttributionData
Choice = str | dict[str, Any]
"""A plug-in by name, or by name with options: ``{"name": "sparse_jl", "dim": 2048}``."""

FeaturizerType = TypeVar("FeaturizerType", bound=Featurizer)


POLL_SECONDS = 0.2
"""How often a job whose work is done looks whether other jobs have finished theirs."""


class TRAK:
    """Which training examples made the model predict this?

    Features of the training set are computed once; any number of target sets is scored against them. Everything is kept
    in `run_dir`: a second call with the same settings reads what is there, and an interrupted one goes on.

    >>> trak = TRAK(model.eval(), task="image_classification", run_dir="runs/x")
    >>> trak.featurize(train_dataset, checkpoints=["a.ckpt", "b.ckpt"])
    >>> scores = trak.score(test_dataset, name="test")
    >>> scores.top(10).indices  # (m, 10): the most helpful training examples of each target

    Args:
        model: any module, in eval mode; gradients are taken with respect to its parameters that require one.
        task: what is differentiated.
        run_dir: where features and scores are kept.
        parameters: which parameters to attribute to, of those that require a gradient: patterns of names
            (``"layer4.*"``, ``"*lora_*"``), of module types (``"type:LayerNorm"``), or the last layers (``"last:1"``); ``!``
            in front takes away. All if None. See `trak_lightning.selection.select`.
        extractor: how per-sample gradients are computed.
        projector: how they are projected to k dimensions.
        store: where features live.
        seed: of the projection.
        trainer: a Trainer whose accelerator, devices, strategy and precision are used; one device if None.
        weights_only: False unpickles checkpoint files, which executes code in them.

    Raises:
        PluginError: an unknown name; suggests the nearest.
        SettingsError: a pattern in `parameters` matches nothing; suggests the nearest.
        TrainModeError: dropout or batch normalisation is in train mode.
        UnsupportedModelError: the extractor cannot do some parameter of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Choice | Task,
        run_dir: str | Path,
        *,
        parameters: Sequence[str] | None = None,
        extractor: Choice | GradientExtractor = "auto",
        projector: Choice | Projector = "sparse_jl",
        store: Choice | FeatureStore = "hdf5",
        seed: int = 0,
        trainer: L.Trainer | None = None,
        weights_only: bool = True,
    ) -> None:
        self.model = original(model)
        self.task: Task = registry.create("tasks", task)
        self.extractor: GradientExtractor = registry.create("extractors", extractor)
        self.projector: Projector = registry.create("projectors", projector)
        self.store: FeatureStore = registry.create("stores", store)
        self.run = RunDirectory(run_dir)
        self.seed = seed
        require_eval(model)
        self._layout = ParameterLayout.of(model, parameters)
        self.store.bind(self.run.features)
        self._trainer = trainer
        self._weights_only = weights_only
        self._checkpoints: list[Checkpoint] = []
        self._fit_data: AttributionData | None = None

    def featurize(
        self,
        train_dataset: DataSource,
        checkpoints: Sequence[CheckpointSource] | None = None,
        *,
        batch_size: int | None = None,
        subsets: Sequence[npt.ArrayLike] | None = None,
        block_size: int = 1024,
        split: str = "train",
        grow: bool = False,
    ) -> int:
        """Compute the features of the training set under every checkpoint; what is already stored is not done again.

        Args:
            train_dataset: a map-style dataset, or a loader of one; read in the order of the dataset.
            checkpoints: state dicts or files; the model's present weights if None. A file ``x.ckpt`` is taken to have
                been trained on the samples in ``x.subset.npy`` if that lies beside it.
            batch_size: samples of one gradient batch; the loader's, or 64.
            subsets: the positions of the training samples that each checkpoint was trained on, where known.
            block_size: samples stored at a time, rounded up to whole batches.
            split: the name under which the features are stored.
            grow: the dataset may have more samples than those that are stored, after these: only the new ones are
                computed, and the last, incomplete batch of the old ones.

        Returns:
            How many rows were computed, by all processes of this job; 0 if all were there.

        Raises:
            CheckpointError: a checkpoint cannot be read or does not fit the model.
            IncompatibleRunError: the run directory was made with other settings, checkpoints or data.
            DataError, NonFiniteGradientError, SampleDependenceError, StorageError: as named.
        """
        with uncompiled(self.model):
            return self._featurize(
                AttributionData.of(train_dataset, batch_size),
                checkpoints,
                subsets=subsets,
                block_size=block_size,
                split=split,
                grow=grow,
            )

    def _featurize(
        self,
        data: AttributionData,
        checkpoints: Sequence[CheckpointSource] | None,
        *,
        subsets: Sequence[npt.ArrayLike] | None,
        block_size: int,
        split: str,
        grow: bool,
    ) -> int:
        sources = list(checkpoints) if checkpoints is not None else [copy.deepcopy(self.model.state_dict())]
        if not sources:
            raise DataError("checkpoints is an empty list; give at least one, or None for the model's present weights")
        if subsets is not None and len(subsets) != len(sources):
            raise DataError(f"there are {len(sources)} checkpoints and {len(subsets)} subsets; give one for each")
        loaded = [Checkpoint.of(source, self.model, weights_only=self._weights_only) for source in sources]
        known = list(subsets) if subsets is not None else [_subset_beside(source) for source in sources]
        for subset in known:
            _check_subset(subset, len(data))
        self.run.register([CheckpointRecord(checkpoint.id, str(checkpoint)) for checkpoint in loaded])
        for checkpoint, subset in zip(loaded, known, strict=True):
            if subset is not None:
                self.run.write_subset(checkpoint.id, subset)
        self._checkpoints, self._fit_data = loaded, data
        return self.featurize_split(data, split, block_size=block_size, grow=grow)

    def featurize_split(self, data: AttributionData, split: str, *, block_size: int = 1024, grow: bool = False) -> int:
        """Compute the features of `data` under the checkpoints of the last `featurize`, and store them as `split`."""
        if block_size < 1:
            raise SettingsError(f"block_size must be a positive number of samples, got {block_size}")
        if not self._checkpoints:
            raise IncompleteRunError("no checkpoints yet: call featurize(train_dataset, checkpoints=…) first")
        with uncompiled(self.model):
            return self._featurize_split(data, split, block_size, grow)

    def check(self, data: DataSource, *, batch_size: int | None = None, split: str = "train") -> list[Finding]:
        """Look at the first batch of `data` and say what would be attributed to and how, with the model's present weights;
        nothing is stored. See `trak_lightning.check`.

        Raises:
            TrainModeError, SampleDependenceError, UnsupportedModelError, NonFiniteGradientError: as `featurize` would.
        """
        require_eval(self.model)
        samples = AttributionData.of(data, batch_size)
        spec = self._spec(samples, split, "check", samples.batch_size)
        with uncompiled(self.model), self._restored(), quiet_lightning():
            checker = self._module(Checker, samples, MemorySet(spec), fit_data=samples)
            self._run(self._trainer or default_trainer(), checker, [])
            return checker.findings

    def _featurize_split(self, data: AttributionData, split: str, block_size: int, grow: bool) -> int:
        require_eval(self.model)
        sets = [self._create(spec, data, grow) for spec in self._specs(data, split, block_size)]
        missing = sum(len(s.spec.block_range(block)) for s in sets for block in s.missing_blocks())
        if not missing:
            return 0
        self._require_fits()
        with self._restored(), quiet_lightning():
            trainer = self._trainer or default_trainer()
            with progress(f"featurize {split}", missing, enabled=trainer.is_global_zero) as advance:
                return self._fill(trainer, data, list(zip(self._checkpoints, sets, strict=True)), advance)

    def score(
        self,
        target_dataset: DataSource,
        name: str = "targets",
        *,
        scorer: Choice | Scorer = "trak",
        regularization: float | str | None = None,
        weights: str | None = None,
        batch_size: int | None = None,
        top: int | None = None,
        groups: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        fabric: Fabric | None = None,
    ) -> Scores:
        """Attribute the model's outputs on `target_dataset` to the training examples.

        Args:
            target_dataset: a map-style dataset, or a loader of one.
            name: of the target split, and of the score file.
            scorer: how features become scores.
            regularization: λ as a number, ``"auto"`` or ``"calibrate"``; the scorer's default if None.
            weights: the weighting of the Gram matrix, ``auto``, ``none``, ``residual``, ``gauss_newton`` or ``fisher``; the
                scorer's default if None.
            batch_size: samples of one gradient batch; the loader's, or 64.
            top: keep only so many of the best and worst training examples of each target, and no (m, n) matrix.
            groups: (m,) integers: attribute one output a group of targets, in ascending order of these labels.
            reduction: a group's output is the ``mean`` or the ``sum`` of its targets'.
            fabric: a launched Fabric, all of whose processes call this and share the work; the first GPU if there is one,
                else this process, if None.

        Returns:
            Scores whose ``values`` is an (m, n) array: positive where having that training example raises the target's
            model output.
        """
        self.featurize_split(AttributionData.of(target_dataset, batch_size), name)
        options = {"regularization": regularization, "weights": weights}
        given = {key: value for key, value in options.items() if value is not None}
        if given and isinstance(scorer, Scorer):
            raise DataError(f"give {' and '.join(given)} to the scorer object itself, or name the scorer")
        if not isinstance(scorer, Scorer):
            scorer = {"name": scorer, **given} if isinstance(scorer, str) else {**scorer, **given}
        chosen = registry.create("scorers", scorer)
        if fabric is None and torch.cuda.is_available():
            fabric = Fabric(accelerator="cuda", devices=1)
        compute = LOCAL if fabric is None else FabricCompute(fabric)
        return score_run(
            self.run, self.store, chosen, targets=name, top=top, groups=groups, reduction=reduction, compute=compute
        )[0]

    def self_influence(
        self, *, regularization: float | str = "auto", weights: str = "auto", split: str = "train"
    ) -> SelfInfluence:
        """Self-influence and leverage of every training example; settings as for the ``trak`` scorer.

        Raises:
            IncompleteRunError: nothing was featurised.
        """
        checkpoints = load_features(self.run, self.store, targets=split, train=split)
        return self_influence(checkpoints, regularization, weights)

    def _specs(self, data: AttributionData, split: str, block_size: int) -> list[FeatureSpec]:
        return [self._spec(data, split, checkpoint.id, block_size) for checkpoint in self._checkpoints]

    def _spec(self, data: AttributionData, split: str, checkpoint: str, block_size: int) -> FeatureSpec:
        batch_size = min(data.batch_size, len(data))
        fingerprint = {
            "checkpoint": checkpoint,
            "parameters": self._layout.fingerprint,
            "task": self.task.state,
            "loss_function": self.task.loss_function,
            "projector": self.projector.state,
            "seed": self.seed,
            "precision": self._trainer.precision if self._trainer else "32-true",
            "data": data.fingerprint(),
        }
        return FeatureSpec(
            split=split,
            checkpoint=checkpoint,
            num_samples=len(data),
            dim=self.projector.output_dim(self._layout),
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
        sets: list[tuple[Checkpoint, FeatureSet]],
        advance: Callable[[int], None],
    ) -> int:
        """Compute until nothing is missing, with however many other jobs; returns the rows computed by this one."""
        computed, idle = 0, 0
        todo = [feature_set for _, feature_set in sets if not feature_set.complete]
        while todo:
            now = 0
            for checkpoint, feature_set in sets:
                if feature_set in todo:
                    checkpoint.load_into(self.model)
                    now += self._predict(trainer, data, feature_set, BlockWriter(advance))
            computed, idle = computed + now, 0 if now else idle + 1
            # Rank 0 decides for all: what it sees may change before another rank looks.
            left = trainer.strategy.broadcast(_await_others(todo) if trainer.is_global_zero else [])
            todo = [feature_set for feature_set in todo if feature_set.spec.checkpoint in left]
            if todo and idle > 1:
                missing = sum(len(feature_set.missing_blocks()) for feature_set in todo)
                raise IncompleteRunError(
                    f"{missing} blocks of {todo[0].spec.split} are missing after featurizing: it was interrupted, a process "
                    "died, or the Trainer limits the batches. What is stored is kept; run the same command again."
                )
        return computed

    def _require_fits(self) -> None:
        """Refuse to fit a projector anew where there are rows already that an earlier fit has projected."""
        if not self.projector.fit_samples:
            return
        for split, checkpoint in self.store.list():
            path = self.run.projection(checkpoint)
            spec = (found := self.store.open(split, checkpoint)).spec
            if not path.exists() and len(found.missing_blocks()) < spec.num_blocks:
                raise IncompleteRunError(
                    f"{path} is missing, and features of {split!r} that were projected with it are there. Restore the "
                    f"file, or delete all features of checkpoint {checkpoint}."
                )

    def _module(
        self, cls: type[FeaturizerType], data: AttributionData, feature_set: FeatureSet, fit_data: AttributionData
    ) -> FeaturizerType:
        spec = feature_set.spec
        # What a projector learns does not depend on the split that is projected.
        fit_file = FitFile(
            self.run.projection(spec.checkpoint),
            {key: value for key, value in spec.fingerprint.items() if key != "data"},
        )
        return cls(
            self.model,
            self.task,
            self.extractor,
            self.projector,
            self._layout,
            data,
            feature_set,
            seed=self.seed,
            fit_data=fit_data,
            fit_file=fit_file,
        )

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """The model's weights, and the dtype and device that a Trainer changes, as they were."""
        before = {name: tensor.detach().clone() for name, tensor in _tensors(self.model)}
        try:
            yield
        finally:
            for name, tensor in _tensors(self.model):
                tensor.data = before[name]

    def _run(self, trainer: L.Trainer, featurizer: Featurizer, callbacks: list[L.Callback]) -> None:
        own_callbacks = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [*own_callbacks, *callbacks]  # type: ignore[attr-defined]
        try:
            with interruptible():
                trainer.predict(featurizer, return_predictions=False)
        finally:
            trainer.callbacks = own_callbacks  # type: ignore[attr-defined]
            featurizer.trainer = None

    def _predict(self, trainer: L.Trainer, data: AttributionData, feature_set: FeatureSet, writer: BlockWriter) -> int:
        """Compute the missing blocks that no other process works on; returns the rows that all ranks computed."""
        assert self._fit_data is not None
        featurizer = self._module(Featurizer, data, feature_set, self._fit_data)
        try:
            self._run(trainer, featurizer, [writer])
            writer.finish()
        except BaseException:
            with suppress(TrakError):  # a whole block is worth waiting for; the first error is the one to tell
                writer.finish()
            raise
        finally:
            if featurizer.plan is not None:
                featurizer.plan.release()
        # A rank that died early is not noticed by predict: only the store knows whether every row is there.
        trainer.strategy.barrier()
        computed = torch.tensor(writer.computed, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(computed, reduce_op="sum"))


def _await_others(sets: Sequence[FeatureSet]) -> list[str]:
    """The checkpoints with missing blocks, as soon as there are none or one of them is free to be computed."""
    while True:
        missing = {s.spec.checkpoint: s.missing_blocks() for s in sets}
        left = [checkpoint for checkpoint, blocks in missing.items() if blocks]
        for feature_set in sets:
            for block in missing[feature_set.spec.checkpoint]:
                if feature_set.claim(block):
                    feature_set.release(block)
                    return left
        if not left:
            return left
        time.sleep(POLL_SECONDS)


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


def _subset_beside(source: CheckpointSource) -> npt.NDArray[np.int64] | None:
    if isinstance(source, (str, Path)) and (path := Path(source).with_suffix(".subset.npy")).exists():
        return read_subset(path)
    return None


def _check_subset(subset: npt.ArrayLike | None, n: int) -> None:
    if subset is None:
        return
    positions = np.asarray(subset)
    if positions.ndim != 1 or positions.dtype.kind not in "iu" or len(np.unique(positions)) != len(positions):
        raise DataError(f"a subset must hold distinct integers, got {positions.dtype} of shape {positions.shape}")
    if len(positions) and not 0 <= positions.min() <= positions.max() < n:
        raise DataError(
            f"a subset holds position {int(positions.max())}, but the training set has {n} samples: it belongs to other data"
        )
