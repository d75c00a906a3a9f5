"""The Python API: `TRAK`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec, TypeVar, get_args

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trak_lightning import registry
from trak_lightning.check.checks import Findings, run_checks
from trak_lightning.data.dataset import AttributionData
from trak_lightning.decisions.columns import GIVES_WORDS, NAMES_CLASSES, OTHER_COLUMNS, Columns, answers_of, of_all
from trak_lightning.decisions.outcome import Outcome
from trak_lightning.decisions.predictions import held_out_predictions, mean_predictions
from trak_lightning.decisions.select import Selection, select_samples
from trak_lightning.decisions.suspects import Suspects, find_suspects
from trak_lightning.decisions.target_predictor import TargetPredictor
from trak_lightning.decisions.what_if import WhatIf
from trak_lightning.errors import (
    DataError,
    IncompleteRunError,
    SettingsError,
    docs_page,
    is_integer,
    require_integer,
    require_option,
)
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurize.job import FeaturizeJob
from trak_lightning.featurize.reuse import VerifyData, require_same_samples
from trak_lightning.featurize.spec import FeaturizeSpec
from trak_lightning.featurize.token_rows import token_rows
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.checkpoints import Checkpoints
from trak_lightning.model.compiled import original
from trak_lightning.model.eval_mode import require_eval
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.projectors.base import Projector
from trak_lightning.report.known import class_names_of, feature_names_of, samples_of, samples_of_both
from trak_lightning.report.write import write_report
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import counted
from trak_lightning.runtime.tracebacks import shows_users_frames
from trak_lightning.scoring.backend import LOCAL
from trak_lightning.scoring.base import Array, Scorer
from trak_lightning.scoring.display import ShowsLines
from trak_lightning.scoring.fabric import FabricBackend
from trak_lightning.scoring.held_out import numbers_of
from trak_lightning.scoring.score_run import load_features, score_run
from trak_lightning.scoring.scores import Scores, open_scores
from trak_lightning.scoring.self_influence import SelfInfluence, self_influence
from trak_lightning.scoring.token_scores import TokenScores, token_values
from trak_lightning.scoring.views import Reduction
from trak_lightning.stores.base import FeatureStore, any_fingerprint, draw_of, drawn_split
from trak_lightning.stores.feature_array import FeatureArray
from trak_lightning.stores.job_shards import Shard
from trak_lightning.tasks.base import Task

log = logging.getLogger(__name__)

DataSource = Dataset | DataLoader | AttributionData
PluginChoice = str | dict[str, Any]
"""A plug-in by name, or by name with options: ``{"name": "sparse_jl", "dim": 2048}``."""

TRAKER_METHODS = ("load_checkpoint", "finalize_features", "start_scoring_checkpoint", "finalize_scores")
"""Methods of the class of traker, the library of the TRAK paper, by which `TRAK` is used out of habit."""

TRAKER_ARGUMENTS = {
    **dict.fromkeys(("train_set_size", "num_samples"), "is read from the dataset"),
    "batch": "is the whole dataset or loader, given once: featurize(train_dataset, checkpoints=[…]), score(target_dataset, name=…)",
    "device": 'is chosen by trainer=Trainer(accelerator="gpu")',
    "grad_wrt": "is parameters, patterns of names",
    "gradient_computer": "is extractor",
    "inds": "is not needed: a dataset is read in its order",
    "lambda_reg": "is regularization, an argument of score",
    "load_from_save_dir": "is not needed: what run_dir holds is used",
    "proj_dim": 'is dim in projector={"name": "sparse_jl", "dim": 2048}',
    "projector_seed": "is seed",
    "save_dir": "is run_dir",
    "use_half_precision": 'is store={"name": "hdf5", "dtype": "float16"}',
}
"""Arguments of its calls, and what they are here."""

P = ParamSpec("P")
R = TypeVar("R")


def _from_traker() -> str:
    return f"Coming from traker, its calls next to ours: {docs_page('coming-from')}"


def _answers_traker(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method name its own arguments where it is given those of traker."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        theirs = [f"{name} {TRAKER_ARGUMENTS[name]}" for name in kwargs if name in TRAKER_ARGUMENTS]
        if theirs:
            raise TypeError(f"{method.__qualname__} has other arguments: {'; '.join(theirs)}. {_from_traker()}")
        return method(*args, **kwargs)

    return call


_LOCK = RLock()
"""Held by calls that run a model: its weights, its hooks and settings of torch are those of all threads."""


def _one_at_a_time(method: Callable[P, R]) -> Callable[P, R]:
    """Let threads that call such methods wait for each other; see also `shows_users_frames`."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK:
            return method(*args, **kwargs)

    return shows_users_frames(call)


class TRAK:
    """Which training examples made the model predict this?

    Features of the training set are computed once; any number of target sets is scored against them. Everything is kept
    in `run_dir`: a second call with the same settings reads what is there, and an interrupted one is resumed.

    >>> trak = TRAK(model.eval(), task="image_classification", run_dir="runs/x")
    >>> trak.featurize(train_dataset, checkpoints=["a.ckpt", "b.ckpt"])
    >>> scores = trak.score(test_dataset, name="test")
    >>> scores.top(10).indices  # (m, 10): the most helpful training examples of each target

    Args:
        model: any module, in eval mode; gradients are taken with respect to its parameters that require one. It keeps its weights: those of
            checkpoints are in it only while they are used, so predict with a model that has loaded one.
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
        verify_data: which samples are read again before their stored rows are reused: ``full`` reads all, ``sampled`` as many
            as can be read in a second, evenly spread, ``off`` none.
        curvature_draws: how many times labels are drawn from the model for each training sample, for further rows of the Gram
            matrix: see page choosing of the documentation.

    Raises:
        PluginError: an unknown name; suggests the nearest.
        SettingsError: a pattern in `parameters` matches nothing; suggests the nearest.
        TrainModeError: dropout or batch normalisation is in train mode.
        UnsupportedModelError: the extractor cannot do some parameter of the model.
    """

    @_answers_traker
    def __init__(
        self,
        model: nn.Module,
        task: PluginChoice | Task,
        run_dir: str | Path,
        *,
        parameters: Sequence[str] | None = None,
        extractor: PluginChoice | GradientExtractor = "auto",
        projector: PluginChoice | Projector = "auto",
        store: PluginChoice | FeatureStore = "hdf5",
        seed: int = 0,
        trainer: L.Trainer | None = None,
        weights_only: bool = True,
        verify_data: VerifyData = "sampled",
        curvature_draws: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SettingsError(
                f"model must be a torch.nn.Module, got {model!r}, of type {type(model).__name__}. Make the module first, as in "
                "torchvision.models.resnet18(); files of weights are given to featurize(…, checkpoints=…)."
            )
        if trainer is not None and not isinstance(trainer, L.Trainer):
            raise SettingsError(
                f"trainer must be a lightning Trainer, such as Trainer(accelerator='gpu'), got {trainer!r}"
            )
        self.model = original(model)
        self.run = RunDirectory(run_dir)
        self.store: FeatureStore = registry.create("stores", store)
        self.trainer = trainer
        self.spec = FeaturizeSpec(
            task=registry.create("tasks", task),
            extractor=registry.create("extractors", extractor),
            projector=registry.create("projectors", projector),
            layout=ParameterLayout.of(model, parameters),
            seed=require_integer("seed", seed, 0),
            precision=str(trainer.precision) if trainer else "32-true",
            curvature_draws=require_integer("curvature_draws", curvature_draws, 0, "a number of draws"),
        )
        require_eval(model)
        self.store.bind(self.run.features)
        require_option("verify_data", verify_data, get_args(VerifyData))
        self._weights_only = weights_only
        self._verify_data = verify_data
        self._job: FeaturizeJob | None = None
        self._shown_targets: dict[str, ShowsLines] = {}
        """Shows the targets of each name that was scored, for `what_if`."""

    @_one_at_a_time
    @_answers_traker
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
        repair: bool = False,
    ) -> int:
        """Compute the features of the training set under every checkpoint; what is already stored is not done again.

        Args:
            train_dataset: a map-style dataset, or a loader of one; read in the order of the dataset.
            checkpoints: one or several of: files and folders of any format in `trak_lightning.model.weight_files`, also with
                wildcards; folders of checkpoint files; state dicts; modules. The model's current weights if None. ``x.ckpt`` is taken to have been trained on the samples in ``x.subset.npy``
                if that lies next to it.
            batch_size: samples of one gradient batch; the loader's, or 64.
            subsets: the positions of the training samples that each checkpoint was trained on, or masks of bools, where known.
            block_size: samples stored at a time, rounded up to whole batches.
            split: the name under which the features are stored.
            grow: the dataset may have more samples than those that are stored, after these: only the new ones are
                computed, and the last, incomplete batch of the old ones.
            repair: compute rows again that are no longer those of their samples, their model or their code, rather than refuse
                them; scores made from them are deleted.
            shard: ``3/16`` computes the third of sixteen parts, for machines that cannot talk to each other.

        Returns:
            How many rows were computed, by all processes of this job; 0 if all were there.

        Raises:
            CheckpointError: a checkpoint cannot be read or does not fit the model.
            IncompatibleRunError: the run directory was made with other settings, checkpoints or data.
            DataError, NonFiniteGradientError, SampleDependenceError, StorageError: as named.
        """
        parsed = Shard.parse(shard)
        if checkpoints is None:
            log.warning(
                "checkpoints  none are given: the weights that the model has now are used (checkpoints=[model] says so without this line)"
            )
        data = AttributionData.of(train_dataset, batch_size)
        job = self.job({split: data}, train=split, block_size=block_size, grow=grow, shard=parsed, repair=repair)
        self._job = job.with_checkpoints(checkpoints, subsets, weights_only=self._weights_only)
        return sum(map(self._job.compute, self._job.splits))

    @_one_at_a_time
    def featurize_targets(
        self, target_dataset: DataSource, name: str = "targets", *, batch_size: int | None = None, repair: bool = False
    ) -> int:
        """Compute the features of targets, and no scores; `score` begins with this.

        Args:
            target_dataset: a map-style dataset, or a loader of one.
            name: of the target split.
            batch_size: samples of one gradient batch; the loader's, or 64.
            repair: as for `featurize`.

        Returns:
            How many rows were computed; 0 if all were there.
        """
        data = AttributionData.of(target_dataset, batch_size)
        return self._require_job().for_targets(name, data, repair=repair).compute(name)

    def features(self, split: str = "train", checkpoint: int = 0) -> FeatureArray:
        """Return the stored features of a split under one checkpoint, read only where they are indexed.

        >>> features = trak.features("train")
        >>> features[:10].shape, features.output[:10]  # (10, k), (10,)

        Args:
            split: ``train``, or the name given to `score`.
            checkpoint: its number, in the order in which checkpoints were given to `featurize`.

        Raises:
            DataError: there is no checkpoint of that number.
            IncompleteRunError: nothing was featurized.
        """
        records = self.run.require_checkpoints()
        if not (is_integer(checkpoint) and -len(records) <= checkpoint < len(records)):
            raise DataError(
                f"there is no checkpoint {checkpoint!r}: {self.run.path} has {len(records)}, 0 … {len(records) - 1}"
            )
        return FeatureArray(self.store.open(split, records[checkpoint].id))

    @_one_at_a_time
    def check(
        self,
        data: DataSource,
        *,
        batch_size: int | None = None,
        split: str = "train",
        checkpoints: int | Checkpoints = 1,
    ) -> Findings:
        """Report from a few batches what would be attributed and how, the seconds per batch, the peak memory and the disk space.
        Nothing is stored. See `trak_lightning.check.checks`.

        Args:
            data: the training samples.
            batch_size: as for `featurize`.
            split: as for `featurize`.
            checkpoints: as for `featurize`, of which the weights of the first are used; or how many there will be, and the weights that
                the model has now are used.

        Raises:
            CheckpointError: a checkpoint cannot be read or does not fit the model.
            TrainModeError, SampleDependenceError, UnsupportedModelError, NonFiniteGradientError: as `featurize` would.
            StorageError: the run directory cannot be written to.
        """
        job = self.job({split: AttributionData.of(data, batch_size)}, train=split)
        if isinstance(checkpoints, int):
            return run_checks(job, checkpoints)
        found = job.with_checkpoints(checkpoints, weights_only=self._weights_only).checkpoints
        with leave_unchanged(self.model):
            found[0].load_into(self.model)
            return run_checks(job, len(found))

    @_one_at_a_time
    @_answers_traker
    def score(
        self,
        target_dataset: DataSource,
        name: str = "targets",
        *,
        scorer: PluginChoice | Scorer = "trak",
        regularization: float | str | None = None,
        weights: str | None = None,
        batch_size: int | None = None,
        top: int | None = None,
        groups: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        coefficients: npt.ArrayLike | None = None,
        fabric: Fabric | None = None,
        repair: bool = False,
        render: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Scores:
        """Attribute the model's outputs on `target_dataset` to the training examples.

        Args:
            target_dataset: a map-style dataset, or a loader of one.
            name: of the target split, and of the score file, which holds the scores of one scorer: those of another replace them.
            scorer: how features become scores.
            regularization: λ as a number, ``"auto"`` or ``"calibrate"``; the scorer's default if None.
            weights: the weighting of the Gram matrix, ``auto``, ``none``, ``residual``, ``gauss_newton`` or ``fisher``; the
                scorer's default if None.
            batch_size: samples of one gradient batch; the loader's, or 64.
            top: keep only so many of the best and worst training examples of each target, and no (m, n) matrix.
            groups: (m,) integers: attribute one output a group of targets, in ascending order of these labels.
            reduction: a group's output is the ``mean`` or the ``sum`` of its targets'.
            coefficients: (m,) numbers that the outputs are multiplied by first: with ``groups=[0, 0]``, ``reduction="sum"`` and
                ``coefficients=[1, -1]``, the difference of two targets.
            fabric: a launched Fabric, all of whose processes call this and share the work; the first GPU if there is one,
                else this process, if None.
            repair: as for `featurize`, for the features of the targets.
            render: converts a sample to what ``scores[i].show()`` shows of it, see `trak_lightning.report.Samples`.
            class_names: names of the classes 0, 1, …, for what the scores show; None uses those of the dataset or the model, if any.

        Returns:
            Scores whose ``values`` is an (m, n) array: positive where having that training example raises the target's
            model output.
        """
        options = {"regularization": regularization, "weights": weights}
        given = {key: value for key, value in options.items() if value is not None}
        if given and isinstance(scorer, Scorer):
            raise DataError(f"give {' and '.join(given)} to the scorer object itself, or name the scorer")
        if not isinstance(scorer, Scorer):
            scorer = {"name": scorer, **given} if isinstance(scorer, str) else {**scorer, **given}
        chosen = registry.create("scorers", scorer)
        job = self._require_job()
        if job.verify_data != "off":  # the training samples are shown with the scores
            require_same_samples(job.splits[job.train], self.store.open(job.train, job.checkpoints[0].id))
        self.featurize_targets(target_dataset, name, batch_size=batch_size, repair=repair)
        if fabric is None and torch.cuda.is_available():
            fabric = Fabric(accelerator="cuda", devices=1)
        backend = LOCAL if fabric is None else FabricBackend(fabric)
        scores, _ = score_run(
            self.run,
            self.store,
            chosen,
            targets=name,
            train=job.train,
            top=top,
            groups=groups,
            reduction=reduction,
            coefficients=coefficients,
            backend=backend,
        )
        if groups is None:
            target_data = AttributionData.of(target_dataset)
            scores.samples = samples_of_both(
                job.splits[job.train],
                target_data,
                task=self.spec.task,
                model=self.model,
                numbers=(self._numbers(job.train), self._numbers(name)),
                class_names=class_names,
                render=render,
            )
            targets = self._shown_targets[name] = scores.samples[1]
            outcome = partial(self._outcome, name, job.train)
            predict = partial(mean_predictions, self.model, self.spec.task, target_data, job.checkpoints)
            verify = partial(self._require_same_targets, name, target_data)
            scores.predictor = TargetPredictor(outcome, _one_at_a_time(predict), verify, targets)
        return scores

    @_one_at_a_time
    def token_scores(
        self,
        target_dataset: DataSource,
        pairs: Sequence[tuple[int, int]],
        name: str = "targets",
        *,
        scorer: PluginChoice | Scorer = "trak",
        batch_size: int | None = None,
    ) -> list[TokenScores]:
        """Say which tokens of a training sample moved which tokens of a target, for a few pairs that were scored.

        The values of a pair sum to its score, up to rounding. They take one backward pass per token of each sample.

        >>> tokens = trak.token_scores(test, [(0, 17)], scorer="trak")[0]
        >>> tokens.values.sum(0)  # how much each token of training sample 17 moved target 0

        Args:
            target_dataset: the targets, as given to `score`.
            pairs: (target, training sample), by position.
            name: the name that the targets were scored under.
            scorer: the scorer that they were scored with.
            batch_size: as for `score`.

        Raises:
            SettingsError: the task is no sum over tokens, or the scorer is not linear in features.
            StaleRowsError: stored rows are not those of the samples.
            IncompleteRunError: the targets were not scored.
        """
        job = self._require_job()
        targets = job.for_targets(name, AttributionData.of(target_dataset, batch_size))
        checkpoints = load_features(self.run, self.store, targets=name, train=job.train)
        scoring = registry.create("scorers", scorer).fit(checkpoints)
        of_target = token_rows(targets, name, sorted({target for target, _ in pairs}))
        of_example = token_rows(job, job.train, sorted({example for _, example in pairs}))
        found = {}
        for target in dict.fromkeys(target for target, _ in pairs):
            examples = [example for other, example in pairs if other == target]
            left, right = [each[target] for each in of_target], [[each[i] for each in of_example] for i in examples]
            features = [each.features for each in left], [[each.features for each in rows] for rows in right]
            for example, rows, values in zip(
                examples, right, token_values(scoring, target, examples, *features), strict=True
            ):
                found[target, example] = TokenScores(target, example, values, left[0].positions, rows[0].positions)
        return [found[target, example] for target, example in pairs]

    def self_influence(
        self, *, regularization: float | str = "auto", weights: str = "auto", split: str | None = None
    ) -> SelfInfluence:
        """Self-influence, which is never negative, and leverage of every training example; settings as for the ``trak`` scorer, `split`
        as for `what_if`.

        Raises:
            IncompleteRunError: nothing was featurized.
            SettingsError: there is no such rule for λ, or no such weighting.
        """
        split = self._train_split(split)
        checkpoints = load_features(self.run, self.store, targets=split, train=split)
        return self_influence(checkpoints, regularization, weights)

    @_one_at_a_time
    def suspects(
        self,
        *,
        fdr: float = 0.1,
        class_names: Sequence[str] | None = None,
        render: Callable[[Any], Any] | None = None,
    ) -> Suspects:
        """Find training samples whose label is likely wrong, from the predictions of checkpoints that were not trained on
        them; see `trak_lightning.decisions.suspects.find_suspects`.

        >>> suspects = trak.suspects(fdr=0.1)
        >>> suspects.indices  # positions to drop or review, most suspicious first; empty for a task without classes
        >>> suspects.first(10)[0].why  # whether before the cut or not

        Args:
            fdr: the largest expected share of false alarms among the samples that are returned.
            class_names: names of the classes 0, 1, …; None uses those of the dataset or the model, if any.
            render: converts a sample to what is shown of it, as for `score`.

        Raises:
            IncompleteRunError: nothing was featurized.
            StaleRowsError: the stored rows are not those of the model, the task and the data as they are now.
            CheckpointError: a checkpoint cannot be read any more.
        """
        job = self._require_job()
        features = load_features(self.run, self.store, targets=job.train, train=job.train)
        job.require_same_rows(job.train)
        data, task = job.splits[job.train], self.spec.task
        predictions = held_out_predictions(self.model, task, data, job.checkpoints, features)
        if class_names is None:
            class_names = class_names_of(data, task=task, model=self.model)
        found = find_suspects(features, predictions, task.meaning, fdr=fdr, class_names=class_names)
        samples = samples_of(data, task=task, model=self.model, render=render, number_of=self._numbers(job.train))
        return replace(found, samples=samples)

    @shows_users_frames
    def what_if(
        self,
        name: str | None = None,
        *,
        regularization: float | str = "auto",
        weights: str = "auto",
        split: str | None = None,
    ) -> WhatIf:
        """Return what answers how the outputs of scored targets would change if a set of training samples had not been there;
        see `trak_lightning.decisions.what_if.WhatIf`.

        >>> removal = trak.what_if("test").remove([3, 17])  # or trak.suspects().indices, if there are any
        >>> removal.show(5)  # how to read the answer, and the targets that lose and gain most; to_frame() has all
        >>> removal.change, removal.caution  # (m,), and whether the set is too large to be trusted

        Args:
            name: of the target split, as given to `score`; None for ``targets``, the default there, or else the only one.
            regularization: λ, as for the ``trak`` scorer.
            weights: the Gram weighting W, as for the ``trak`` scorer; ``gauss_newton`` for the exact refit of a ridge regression.
            split: of the training samples; that of the last `featurize` if None, or ``train``.

        Raises:
            IncompleteRunError: these were not featurized.
            SettingsError: there is no such rule for λ, or no such weighting.
        """
        name = self._target_split(name)
        checkpoints = load_features(self.run, self.store, targets=name, train=self._train_split(split))
        meaning, samples = self.run.read().meaning, self._shown_targets.get(name)
        return WhatIf(checkpoints, regularization, weights, meaning=meaning, samples=samples)

    @shows_users_frames
    def where(
        self,
        condition: str,
        *,
        render: Callable[[Any], Any] | None = None,
        feature_names: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
    ) -> Array:
        """Return the positions of the training samples that fulfill a condition on their columns, (r,).

        >>> trak.what_if("test").remove(trak.where("age>60 and sex=female"))

        Args:
            condition: a column, one of ``= != < <= > >=`` and a value; ``and`` joins several. For columns of a table of your own, give its mask, such as
                ``frame.branch == "agent7"``, to `WhatIf.remove` directly. Columns are the names that tables show: entries of a
                mapping, ``numeric[0]`` of a vector, ``x0`` and ``y`` of a tuple; see `trak_lightning.decisions.columns.value_of`.
            render: converts a sample to what is shown of it; if it returns a mapping, its entries are columns too.
            feature_names: names of the entries of a vector; those of the dataset, if it has this attribute, by default.
            class_names: of the classes 0, 1, …, or of several yes-or-no labels, whose names are columns too; None uses those of the dataset or the
                model, if any.

        Raises:
            IncompleteRunError: nothing was featurized.
            StaleRowsError: the training samples are not those of the stored rows.
            SettingsError: it is no condition.
            DataError: there is no such column, or no training sample fulfills the condition.
        """
        job = self._require_job()
        data, task = job.splits[job.train], self.spec.task
        if job.verify_data != "off":
            require_same_samples(data, self.store.open(job.train, self.run.require_checkpoints()[0].id))
        rendered = None if render is None else samples_of(data, render=render).rendered
        names = class_names or class_names_of(data, task=task, model=self.model) or ()
        names = list(map(str, names))
        columns = Columns(
            data.dataset,
            rendered,
            feature_names or feature_names_of(data) or (),
            answers_of(data, task, names) or {},
            self._numbers(job.train),
            lambda: of_all(data, task.class_labels),
            names,
            remedy=OTHER_COLUMNS,
            gives_words=GIVES_WORDS,
            names_classes=NAMES_CLASSES,
        )
        return np.flatnonzero(columns.where(condition))

    @shows_users_frames
    def select(
        self,
        budget: float,
        name: str | None = None,
        *,
        groups: npt.ArrayLike | None = None,
        regularization: float | str = "auto",
        split: str | None = None,
    ) -> Selection:
        """Choose the training samples to keep for scored targets, most useful first; see
        `trak_lightning.decisions.select.select_samples`.

        >>> selection = trak.select(0.1, "test")  # a tenth of the training set
        >>> Subset(train_dataset, selection.indices)

        Args:
            budget: number of samples to choose, or a share of the training set: 1 is one sample, and 1.0 all.
            name: of the target split, as given to `score`; None for ``targets``, the default there, or else the only one.
            groups: (n,) the group of every training sample, which keeps its share of the pool in what is chosen.
            regularization: λ, as for the ``trak`` scorer.
            split: of the training samples; that of the last `featurize` if None, or ``train``.

        Raises:
            IncompleteRunError: these were not featurized.
            SettingsError: there is no such budget, or no such rule for λ.
            DataError: the groups are not n labels.
        """
        if isinstance(budget, str):
            raise SettingsError(
                f"budget must be a number of samples or a share, got {budget!r}; the name of the targets comes second: select(0.1, {budget!r})"
            )
        checkpoints = load_features(
            self.run, self.store, targets=self._target_split(name), train=self._train_split(split)
        )
        return select_samples(
            checkpoints, self.run.read().meaning, budget, groups=groups, regularization=regularization
        )

    @_one_at_a_time
    def report(
        self,
        target_dataset: DataSource,
        name: str | None = None,
        *,
        render: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        tokenizer: Any = None,
        targets: Sequence[int] | None = None,
        num_targets: int = 24,
        title: str | None = None,
        path: str | Path | None = None,
        tokens: bool = False,
    ) -> Path:
        """Write one self-contained page about scored targets; returns its path, ``run_dir/report/NAME.html``.

        Args:
            target_dataset: what was scored.
            name: as given to `score`; None for ``targets``, the default there, or else the only one.
            render: converts a sample to what is shown of it, see `trak_lightning.report.Samples`.
            class_names: names of the classes 0, 1, …; None uses those of the dataset or the model, if any.
            tokenizer: converts token ids to text; None uses the data collator's, if any.
            targets: positions of the targets to show; None chooses `num_targets`, most of them mistakes.
            num_targets: number of targets to choose.
            title: title of the page; None uses the name of the run directory.
            path: file to write instead.
            tokens: mark the tokens of the first examples of each target that moved it, see `token_scores`; takes one backward
                pass per token.

        Raises:
            IncompleteRunError: nothing was featurized or scored.
            SettingsError: `tokens`, and the task is no sum over tokens.
            StaleRowsError: stored rows are not those of the model, the task and the data as they are now.
            DataError: the data is not what was scored, `render` fails, or matplotlib or jinja2 is missing.
        """
        job = self._require_job()
        default = "targets" if self.run.scores("targets").exists() else None
        name = open_scores(self.run, name or default).path.stem

        def verify() -> None:
            job.require_same_rows(job.train)
            job.for_targets(name, AttributionData.of(target_dataset)).require_same_rows(name)

        return write_report(
            self.run.path,
            job.splits[job.train],
            target_dataset,
            model=self.model,
            task=self.spec.task,
            checkpoints=job.checkpoints,
            verify=verify,
            render=render,
            class_names=class_names,
            tokenizer=tokenizer,
            targets=targets,
            num_targets=num_targets,
            title=title,
            name=name,
            train_split=job.train,
            store=self.store,
            path=path,
            token_scores=partial(self.token_scores, target_dataset, name=name) if tokens else None,
        )

    def _target_split(self, name: str | None) -> str:
        """The split of the targets, by default ``targets``, or else the only one."""
        others = {split for split, _ in self.store.list() if draw_of(split) is None} - {self._train_split(None)}
        return name or (next(iter(others)) if len(others) == 1 else "targets")

    def _train_split(self, split: str | None) -> str:
        """The split of the training samples, by default the one that is scored."""
        return split or ("train" if self._job is None else self._job.train)

    def _outcome(self, name: str, train: str) -> Outcome:
        return Outcome.of(load_features(self.run, self.store, targets=name, train=train), self.spec.task.meaning)

    @_one_at_a_time
    def _require_same_targets(self, name: str, targets: AttributionData) -> None:
        self._require_job().for_targets(name, targets).require_same_rows(name)

    def __getattr__(self, name: str) -> Any:
        hint = f". {_from_traker()}" if name in TRAKER_METHODS else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def __repr__(self) -> str:
        spec = self.spec if self._job is None else self._job.spec
        parameters = sum(each.numel() for each in self.model.parameters())
        try:
            dim = f" to k = {spec.dim:,}"
        except SettingsError:  # k is chosen from the training set
            dim = ""
        count = len(self.run.read().checkpoints)
        splits = ", ".join(sorted({split for split, _ in self.store.list()})) or "none yet"
        return (
            f"TRAK({type(self.model).__name__} of {parameters:,} parameters, {type(spec.task).__name__}, "
            f"{type(spec.projector).__name__}{dim}, run_dir={str(self.run.path)!r}; "
            f"{counted(count, 'checkpoint')}, features: {splits})"
        )

    def _numbers(self, split: str) -> Callable[[int], float] | None:
        """`numbers_of` a split, for a task that predicts numbers."""
        number = self.spec.task.meaning.number
        return numbers_of(self.store.open(split, self._require_job().checkpoints[0].id)) if number else None

    def _require_job(self) -> FeaturizeJob:
        if self._job is None:
            raise IncompleteRunError(
                "no training data yet: call featurize(train_dataset, checkpoints=…) first. What is stored in the run directory is "
                "verified and not computed again. Scores that are stored can be read without: Scores(run_dir / 'scores/NAME.h5')"
            )
        return self._job

    def job(self, splits: Mapping[str, AttributionData], *, train: str, **options: Any) -> FeaturizeJob:
        """Return the job that featurizes these splits, without checkpoints; settings that are chosen from the data are fixed.

        Args:
            splits: the data by name.
            train: which of them is the training set.
            options: of `FeaturizeJob`.
        """
        spec = self.spec.for_run(len(splits[train]), any_fingerprint(self.store))
        drawn = {drawn_split(train, number): splits[train] for number in range(1, spec.curvature_draws + 1)}
        splits = {**splits, **drawn}
        options = {"verify_data": self._verify_data, **options}
        return FeaturizeJob(self.model, spec, self.run, self.store, self.trainer, splits, train=train, **options)
