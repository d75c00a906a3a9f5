"""The Python API: `TRAK`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trak_lightning import registry
from trak_lightning.check.checks import Finding
from trak_lightning.check.estimates import Workload
from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError, IncompleteRunError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurize.fitting import Reference, TrainingSet
from trak_lightning.featurize.job import Filler
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.checkpoints import Checkpoint, Checkpoints, CheckpointSource, distinct, expand, subset_path
from trak_lightning.model.compiled import original, uncompiled
from trak_lightning.model.eval_mode import require_eval
from trak_lightning.projectors.base import Projector
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, read_subset
from trak_lightning.scoring.base import Scorer
from trak_lightning.scoring.compute import LOCAL
from trak_lightning.scoring.fabric import FabricCompute
from trak_lightning.scoring.groups import Reduction
from trak_lightning.scoring.score_run import load_features, score_run
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.self_influence import SelfInfluence, self_influence
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.base import FeatureStore
from trak_lightning.stores.shards import Shard
from trak_lightning.tasks.base import Task

DataSource = Dataset | DataLoader | AttributionData
Choice = str | dict[str, Any]
"""A plug-in by name, or by name with options: ``{"name": "sparse_jl", "dim": 2048}``."""


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
            in front takes away. All if None. See `trak_lightning.model.parameters.select`.
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
        self.store.bind(self.run.features)
        self._filler = Filler(
            self.model,
            self.task,
            self.extractor,
            self.projector,
            ParameterLayout.of(model, parameters),
            seed,
            self.store,
            self.run,
            trainer,
        )
        self._weights_only = weights_only
        self._checkpoints: list[Checkpoint] = []
        self._training: TrainingSet | None = None

    def featurize(
        self,
        train_dataset: DataSource,
        checkpoints: Checkpoints | None = None,
        *,
        batch_size: int | None = None,
        subsets: Sequence[npt.ArrayLike] | None = None,
        block_size: int = 1024,
        split: str = "train",
        grow: bool = False,
        shard: str = "1/1",
    ) -> int:
        """Compute the features of the training set under every checkpoint; what is already stored is not done again.

        Args:
            train_dataset: a map-style dataset, or a loader of one; read in the order of the dataset.
            checkpoints: one or several of: files and folders of any format in `trak_lightning.model.weight_files`, also with
                wildcards; folders of checkpoint files; state dicts; modules. The model's present weights if None. ``x.ckpt`` is taken to have been trained on the samples in ``x.subset.npy``
                if that lies beside it.
            batch_size: samples of one gradient batch; the loader's, or 64.
            subsets: the positions of the training samples that each checkpoint was trained on, where known.
            block_size: samples stored at a time, rounded up to whole batches.
            split: the name under which the features are stored.
            grow: the dataset may have more samples than those that are stored, after these: only the new ones are
                computed, and the last, incomplete batch of the old ones.
            shard: ``3/16`` computes the third of sixteen parts, for machines that cannot talk to each other.

        Returns:
            How many rows were computed, by all processes of this job; 0 if all were there.

        Raises:
            CheckpointError: a checkpoint cannot be read or does not fit the model.
            IncompatibleRunError: the run directory was made with other settings, checkpoints or data.
            DataError, NonFiniteGradientError, SampleDependenceError, StorageError: as named.
        """
        Shard.parse(shard)  # refused before anything is changed
        data = AttributionData.of(train_dataset, batch_size)
        self.prepare({split: data}, checkpoints, subsets=subsets, train=split, block_size=block_size, grow=grow)
        return self.featurize_split(data, split, block_size=block_size, grow=grow, shard=shard)

    def prepare(
        self,
        splits: Mapping[str, AttributionData],
        checkpoints: Checkpoints | None = None,
        *,
        subsets: Sequence[npt.ArrayLike] | None = None,
        train: str = "train",
        block_size: int = 1024,
        grow: bool = False,
    ) -> None:
        """What `featurize` does before it computes anything, for several splits at once: read the checkpoints, and find or
        make the feature sets. If one of these was made with other settings, nothing in the run directory is changed.

        Args:
            splits: name → data; `featurize_split` computes the features of each.
            checkpoints, subsets, block_size, grow: as for `featurize`.
            train: which of the splits is the training set.

        Raises:
            CheckpointError, IncompatibleRunError, DataError: as `featurize`.
        """
        data = splits[train]
        with uncompiled(self.model):
            sources = expand(self.model if checkpoints is None else checkpoints)
            if not sources:
                raise DataError(
                    "checkpoints is an empty list; give at least one, or None for the model's present weights"
                )
            if subsets is not None and len(subsets) != len(sources):
                raise DataError(f"there are {len(sources)} checkpoints and {len(subsets)} subsets; give one for each")
            loaded = [Checkpoint.of(source, self.model, weights_only=self._weights_only) for source in sources]
        known: list[npt.ArrayLike | None] = (
            list(subsets) if subsets is not None else [_subset_beside(source) for source in sources]
        )
        kept = distinct(loaded)
        loaded, known = [loaded[position] for position in kept], [known[position] for position in kept]
        for subset in known:
            _check_subset(subset, len(data))
        records = [CheckpointRecord(checkpoint.id, str(checkpoint)) for checkpoint in loaded]
        self.run.require_registrable(records)
        ids = [record.id for record in records]
        training = self._training_set(data, ids[0], train, grow)
        self._filler.make(self._filler.plan(splits, ids, training, block_size=block_size, grow=grow))
        self.run.register(records)
        for checkpoint, subset in zip(loaded, known, strict=True):
            if subset is not None:
                self.run.write_subset(checkpoint.id, subset)
        self._checkpoints, self._training = loaded, training

    def require_compatible(
        self,
        splits: Mapping[str, AttributionData],
        *,
        train: str = "train",
        block_size: int = 1024,
        grow: bool = False,
    ) -> None:
        """Refuse what `prepare` would refuse for the sake of features that are there; changes nothing.

        Raises:
            IncompatibleRunError: they were made with other settings.
        """
        ids = [record.id for record in self.run.read().checkpoints]
        if ids:
            training = self._training_set(splits[train], ids[0], train, grow)
            self._filler.plan(splits, ids, training, block_size=block_size, grow=grow)

    def featurize_split(
        self, data: AttributionData, split: str, *, block_size: int = 1024, grow: bool = False, shard: str = "1/1"
    ) -> int:
        """Compute the features of `data` under the checkpoints of the last `featurize`, and store them as `split`."""
        if self._training is None:
            raise IncompleteRunError("no checkpoints yet: call featurize(train_dataset, checkpoints=…) first")
        how: dict[str, Any] = {"block_size": block_size, "grow": grow, "shard": Shard.parse(shard)}
        return self._filler.fill(data, split, self._checkpoints, self._training, **how)

    def check(
        self,
        data: DataSource,
        *,
        batch_size: int | None = None,
        split: str = "train",
        targets: DataSource | None = None,
        checkpoints: int = 1,
        block_size: int = 1024,
        scorer: Choice | Scorer = "trak",
    ) -> list[Finding]:
        """Say from the first batch of `data` what would be attributed to and how, with the model's present weights, and from a
        few more what featurizing `data` and scoring `targets` will take: time, peak memory and disk. Nothing is stored.
        See `trak_lightning.check.checks`.

        Args:
            data: the training samples.
            batch_size: as for `featurize`.
            split: as for `featurize`.
            targets: those that will be scored; if None, scoring is not estimated.
            checkpoints: how many there will be.
            block_size: as for `featurize`.
            scorer: as for `score`.

        Raises:
            TrainModeError, SampleDependenceError, UnsupportedModelError, NonFiniteGradientError: as `featurize` would.
            StorageError: nothing can be written to the run directory.
        """
        train = AttributionData.of(data, batch_size)
        chosen = registry.create("scorers", scorer)
        work = Workload(
            train=len(train),
            targets=0 if targets is None else len(AttributionData.of(targets, batch_size)),
            checkpoints=checkpoints,
            dim=self.projector.output_dim(self._filler.layout),
            block_size=-(-block_size // train.batch_size) * train.batch_size,
            solves=isinstance(chosen, Trak),
        )
        return self._filler.check(train, split, work)

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

    def _training_set(self, data: AttributionData, checkpoint: str, split: str, grow: bool) -> TrainingSet:
        return TrainingSet(data, Reference.of(self.task, data, self._drawn_from(checkpoint, split) if grow else None))

    def _drawn_from(self, checkpoint: str, split: str) -> int | None:
        """How many training samples there were when the task was first fitted: what was drawn then is kept."""
        try:
            found = self.store.open(split, checkpoint).spec.fingerprint
        except IncompleteRunError:
            return None
        drawn_from: int | None = found.get("reference", {}).get("drawn_from")
        return drawn_from


def _subset_beside(source: CheckpointSource) -> npt.NDArray[np.int64] | None:
    if isinstance(source, (str, Path)) and (path := subset_path(source)).exists():
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
