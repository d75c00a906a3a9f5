"""The stages of a run over one parsed configuration: what the commands that need a model share."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace

from trak_lightning.api import TRAK
from trak_lightning.chat.module import LanguageModel
from trak_lightning.cli.arguments import RECIPE, open_run
from trak_lightning.cli.lightning_cli import TrakCLI
from trak_lightning.cli.output import narrated, print_results, print_trust_or_why_not, short_path, summary
from trak_lightning.cli.retrain_processes import retrain_in_processes
from trak_lightning.cli.splits import loader_method, read_split, setup_stage
from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.repeatable_setup import repeat_setup
from trak_lightning.decisions.outcome import Outcome
from trak_lightning.decisions.predictions import (
    Prediction,
    fits_before_training,
    held_out_predictions,
    mean_predictions,
)
from trak_lightning.decisions.suspects import Suspects, find_suspects
from trak_lightning.decisions.target_predictor import TargetPredictor
from trak_lightning.errors import DataError, IncompleteRunError, TrakError
from trak_lightning.evaluation.experiments import evaluate as evaluate_scores
from trak_lightning.evaluation.experiments import require_possible
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.evaluation.settings import MODELS, EvaluationSettings
from trak_lightning.featurize.job import FeaturizeJob
from trak_lightning.featurize.reuse import require_same_samples
from trak_lightning.model.checkpoints import expand, read_checkpoints
from trak_lightning.report.known import class_names_of, samples_of
from trak_lightning.retraining.outputs import Retraining, missing, one_stored
from trak_lightning.retraining.retrainer import Retrainer
from trak_lightning.retraining.same_order import record_order, require_recorded_order, require_same_order
from trak_lightning.retraining.subsets import ENSEMBLE, SINGLE, SubsetPlan, recorded_plan
from trak_lightning.retraining.train import checkpoint_paths, train_ensemble
from trak_lightning.retraining.trainable import require_trainable
from trak_lightning.run.atomic import atomic_create, atomic_write
from trak_lightning.run.formatting import counted
from trak_lightning.runtime.lightning import quiet_lightning
from trak_lightning.scoring.score_run import load_features, score_run
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.token_scores import TokenScores
from trak_lightning.stores.job_shards import Shard, unfinished

log = logging.getLogger(__name__)

_DRAWN_SPLIT = (
    "data       setup of %s draws random numbers, and the checkpoints were trained elsewhere, perhaps on another split: targets may be "
    "samples that they were trained on. Give random_split the generator of the training, or seed_everything its seed."
)

_SKIPPED = f"skipped: the checkpoints are named, so nothing is trained; --evaluation.models {MODELS} retrains models on random halves"


class Job:
    """The stages of a run, over one parsed configuration."""

    def __init__(self, command: str, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._cli = TrakCLI(command, argv)
        self.settings: Namespace = self._cli.config
        self.json = bool(self.settings.pop("json", False))
        self.settings.parameters = _listed(self.settings.parameters)
        self.settings.checkpoints = _listed(self.settings.checkpoints)
        self.shard = Shard.parse(self.settings.shard)
        self._verified: set[str] = set()
        """Splits whose stored rows were compared with the model and the data of today."""
        self._trainable = False
        """Whether the model was looked at before training."""
        self._same_order = False
        """Whether the samples of ``train_split`` were compared with those that models are trained on."""
        self._repeatable: set[Path] = set()
        """Folders of retrained models whose training was compared with that of today."""
        self.run, self.store = open_run(self.settings, self._cli.config_init)
        if self._cli.datamodule is None:
            raise DataError("no data: name a LightningDataModule with --data, or under data in the configuration file")
        self.datamodule: L.LightningDataModule = self._cli.datamodule
        unseeded = self.settings.get("seed_everything") in (None, False)
        if unseeded:
            L.seed_everything(self.settings.seed, verbose=False)
        if self.datamodule.trainer is None:  # as in training, for its hooks
            self.datamodule.trainer = self._cli.trainer
        repeat_setup(self.datamodule)
        self.datamodule.prepare_data()
        drawn: Any = self.datamodule.setup("fit")  # see repeat_setup
        if drawn and unseeded and self.settings.checkpoints is not None and not self.run.config.exists():
            log.warning(_DRAWN_SPLIT, type(self.datamodule).__name__)
        self.train_data = self._data(self.settings.train_split)
        if command == "check":  # setting up targets may take long: a language model answers prompts
            loader_method(self.datamodule, self.settings.target_split)
        else:
            self.datamodule.setup(setup_stage(self.settings.target_split))
            self.target_data = self._data(self.settings.target_split)

    def keep_configuration(self, write: Callable[[Path], AbstractContextManager[Path]] = atomic_write) -> None:
        """Leave the configuration in the run directory, once nothing there contradicts it."""
        if self.speaks:
            config = self.settings.clone()
            config.shard, config.grow, config.repair = "1/1", False, False  # these are for one call
            if config.verify_data == "off":  # and so is this, so that later calls verify
                config.verify_data = "sampled"
            with tempfile.TemporaryDirectory() as folder:
                self._cli.parser.save(config, Path(folder) / "config.yaml")
                content = (Path(folder) / "config.yaml").read_bytes()
            if self.run.config.exists() and (write is atomic_create or self.run.config.read_bytes() == content):
                return  # a finished run may be read-only
            with write(self.run.config) as part:
                part.write_bytes(content)

    @property
    def parts(self) -> Namespace:
        """The objects that the configuration describes: task, extractor, projector, store, scorer."""
        return self._cli.config_init

    @property
    def model(self) -> L.LightningModule:
        """The user's model, with fresh weights."""
        return self._cli.model

    @property
    def speaks(self) -> bool:
        """Whether this is the rank that says what is done."""
        return bool(self._cli.trainer.is_global_zero)

    @property
    def num_processes(self) -> int:
        """How many processes share the work."""
        return int(self._cli.trainer.world_size)

    def train(self) -> list[str]:
        """Make the checkpoints that are missing; returns the files of all."""
        if self.settings.checkpoints is not None:
            named = self._named()
            if self.speaks:
                summary("train", f"nothing to train: {counted(len(named), 'checkpoint file')} named")
            return named
        self._require_same_order()
        started = time.perf_counter()
        ensemble = self.settings.ensemble
        if not all(path.exists() for path in checkpoint_paths(self.run.checkpoints, ensemble.size)):
            self._require_trainable()
            self.train_data.fingerprint()  # refuses samples that augmentation changes before hours of training, not after
        plan = self._ensemble
        plan.record(self.run.checkpoints)
        self._require_recorded_order()
        if self.settings.verify_data != "off" and not any(self.run.checkpoints.glob("*.ckpt")):
            record_order(self.train_data, self._order)
        self.keep_configuration(atomic_create)  # until the features have been found to be made with the same
        paths, trained = train_ensemble(
            self._fresh,
            self.datamodule,
            plan,
            ensemble.size,
            self.run.checkpoints,
            verify=self.settings.verify_data != "off",
            weights_only=self.settings.weights_only,
        )
        if self.speaks:
            summary(
                "train",
                f"{counted(len(paths), 'checkpoint')} in {short_path(self.run.checkpoints)}",
                trained,
                "trained",
                started,
            )
        return [str(path) for path in paths]

    def featurize(self, checkpoints: list[str]) -> None:
        """Compute the features that are missing."""
        started = time.perf_counter()
        job = self._featurize_job().with_checkpoints(checkpoints, weights_only=self.settings.weights_only)
        with narrated() if self.speaks else nullcontext():
            job.prepare()
            self.keep_configuration()
            computed = sum(map(job.compute, job.splits))
        self._verified.update(job.splits)
        rows = len(job.checkpoints) * sum(map(len, job.splits.values()))  # files with the same weights count once
        if self.speaks:
            what = f"{rows} rows in {self.store.elsewhere or short_path(self.run.features)}"
            if self.shard.count > 1:
                unfinished = self._unfinished()
                what = f"shard {self.shard} of {what}; " + (
                    f"unfinished: {unfinished}" if unfinished else "all are there"
                )
            summary("featurize", what, computed, "computed", started)

    def require_compatible(self) -> None:
        """Refuse to begin, let alone to train, if the checkpoints or features that are there were made with other settings."""
        if self.settings.checkpoints is None and recorded_plan(self.run.checkpoints) is not None:
            self._ensemble.record(self.run.checkpoints)
        self._featurize_job().require_compatible()

    def require_same_data(self, *splits: str) -> None:
        """Refuse data that is not what the stored rows of these splits were computed from, before it is shown or predicted.

        Raises:
            StaleRowsError: some samples have changed.
        """
        settings = self.settings
        data = {settings.target_split: self.target_data, settings.train_split: self.train_data}
        checkpoint = self.run.require_checkpoints()[0].id
        for split in splits if settings.verify_data != "off" else ():
            require_same_samples(data[split], self.store.open(split, checkpoint))

    def require_same_rows(self, *splits: str) -> None:
        """Refuse a model, a task or data that are not those of the stored rows of these splits, before the model is used.

        Raises:
            StaleRowsError: a row that is computed again is another one, or samples have changed.
            CheckpointError: a checkpoint cannot be read any more.
        """
        todo = [split for split in splits if split not in self._verified]
        if todo:
            job = self._featurize_job()
            known = read_checkpoints(self.run, job.model, weights_only=self.settings.weights_only)
            replace(job, checkpoints=known).require_same_rows(*todo)
            self._verified.update(todo)

    def require_evaluable(self) -> None:
        """Refuse to begin if an evaluation is asked for that is impossible with this data or this model."""
        counts = {"num_train": len(self.train_data), "num_checkpoints": self.num_checkpoints}
        require_possible(self._evaluation, self.datamodule, **counts)
        if self._evaluation.retrains and not self.run.evaluation.exists():
            self._require_trainable()
            self._require_same_order()

    def _featurize_job(self) -> FeaturizeJob:
        """The featurizing job of training and target samples, without checkpoints."""
        settings = self.settings
        return self.trak().job(
            {settings.train_split: self.train_data, settings.target_split: self.target_data},
            train=settings.train_split,
            block_size=settings.block_size,
            grow=bool(settings.grow),
            verify_data=settings.verify_data,
            repair=bool(settings.repair),
            shard=self.shard,
        )

    def _unfinished(self) -> str:
        """The shards that have rows missing, in words."""
        return "; ".join(
            f"{words} ({split})"
            for split in (self.settings.train_split, self.settings.target_split)
            if (words := unfinished(self.run, self.store, split))
        )

    def check(self) -> list[tuple[str, str]]:
        """What one batch tells of the whole run: (topic, text) of each finding."""
        trak = self.trak()
        checkpoints: list[str] | int
        try:
            checkpoints = self.checkpoints()
            several = f", the first of {len(checkpoints)} named files" if len(checkpoints) > 1 else ""
            found = [("weights", f"{checkpoints[0]}{several}")]
        except IncompleteRunError:
            checkpoints = self.num_checkpoints
            found = [("weights", "as the model was made: there is no checkpoint yet")]
        with nullcontext() if self.json else narrated():
            findings = trak.check(self.train_data, checkpoints=checkpoints)
        found += [(finding.topic, finding.text) for finding in findings]
        if isinstance(checkpoints, int) or self._evaluation.retrains:
            try:
                self._require_trainable()
            except TrakError as error:
                found.append(("training", f"impossible: {error}"))
            else:
                found.append(("training", self._to_train()))
        return found

    def _to_train(self) -> str:
        """How many models `trak run` trains."""
        ensemble = [f"{counted(self.num_checkpoints, 'model')} to attribute"] * (self.settings.checkpoints is None)
        models = self._evaluation.models
        evaluation = [f"{counted(models, 'model')} for the evaluation{self._none_retrained}"] * (models > 0)
        return ", and ".join([*ensemble, *evaluation]) or "models for the evaluation"

    @property
    def _none_retrained(self) -> str:
        """How to leave out retraining that is done by default."""
        return " (--evaluation.models 0 leaves it out)" if self.settings.evaluation.models is None else ""

    def trak(self) -> TRAK:
        """The attribution that the configuration describes."""
        return TRAK(
            self.model.eval(),
            task=self.parts.task,
            run_dir=self.run.path,
            parameters=self.settings.parameters,
            extractor=self.parts.extractor,
            projector=self.parts.projector,
            store=self.store,
            seed=self.settings.seed,
            trainer=self._cli.trainer,
            weights_only=self.settings.weights_only,
            curvature_draws=self.settings.curvature_draws,
        )

    def checkpoints(self) -> list[str]:
        """The checkpoint files named in the configuration, or those that `train` made.

        Raises:
            IncompleteRunError: there are none, or not all.
        """
        if self.settings.checkpoints is not None:
            return self._named()
        paths = checkpoint_paths(self.run.checkpoints, self.settings.ensemble.size)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise IncompleteRunError(
                f"{len(missing)} of {len(paths)} checkpoints are missing, such as {missing[0]}. Run trak train first, or "
                "name your own files under checkpoints."
            )
        self._require_recorded_order()
        return [str(path) for path in paths]

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the classes 0, 1, …, if they are known: to the training samples, or to the targets."""
        of_each = (
            class_names_of(data, task=self.parts.task, model=self.model) for data in (self.train_data, self.target_data)
        )
        return next(filter(None, of_each), None)

    @property
    def num_checkpoints(self) -> int:
        """How many there are, or will be."""
        return int(self.settings.ensemble.size) if self.settings.checkpoints is None else len(self._named())

    def _named(self) -> list[str]:
        return [str(path) for path in expand(self.settings.checkpoints)]

    def score(self) -> Scores:
        """Score the targets, and the groups of them that the DataModule has under ``combination``."""
        scores = self._score()
        if self.speaks:
            print_trust_or_why_not(self.run, scores)
        if (combined := getattr(self.datamodule, "combination", None)) is not None:
            names, groups, coefficients = combined
            self._score(
                groups=groups, coefficients=coefficients, reduction="sum", name=self.groups_name, group_names=names
            )
        return scores

    @property
    def groups_name(self) -> str:
        """The score file of groups of the targets."""
        split = self.settings.target_split
        return "groups" if split == "test" else f"{split}-groups"

    def token_scores(self, pairs: Sequence[tuple[int, int]]) -> list[TokenScores]:
        """Split the scores of (target, training sample) by tokens."""
        trak, settings = self.trak(), self.settings
        trak.featurize(self.train_data, self.checkpoints(), split=settings.train_split, block_size=settings.block_size)
        return trak.token_scores(self.target_data, pairs, settings.target_split, scorer=self.parts.scorer)

    def _score(self, **options: Any) -> Scores:
        started = time.perf_counter()
        config = self.settings
        scores, fresh = score_run(
            self.run, self.store, self.parts.scorer, train=config.train_split, targets=config.target_split, **options
        )
        if self.speaks:
            summary("score", f"{scores.describe()} in {short_path(scores.path)}", fresh, "computed", started)
        return scores

    def suspects(self, fdr: float) -> Suspects:
        """Find the training samples whose label is likely wrong."""
        split, trak = self.settings.train_split, self.trak()
        self.require_same_rows(split)
        checkpoints = read_checkpoints(self.run, trak.model, weights_only=self.settings.weights_only)
        features = load_features(self.run, self.store, targets=split, train=split)
        predictions = held_out_predictions(trak.model, trak.spec.task, self.train_data, checkpoints, features)
        return find_suspects(features, predictions, trak.spec.task.meaning, fdr=fdr, class_names=self.class_names)

    def target_predictor(self) -> TargetPredictor:
        """What predicts the targets with the checkpoints of the run."""
        settings, task = self.settings, self.parts.task
        train, split = settings.train_split, settings.target_split

        def outcome() -> Outcome:
            return Outcome.of(load_features(self.run, self.store, targets=split, train=train), task.meaning)

        def predict(positions: Sequence[int]) -> dict[int, Prediction] | None:
            checkpoints = read_checkpoints(self.run, self.model, weights_only=settings.weights_only)
            return mean_predictions(self.model, task, self.target_data, checkpoints, positions)

        shown = samples_of(self.target_data, task=task, class_names=self.class_names)
        return TargetPredictor(outcome, predict, partial(self.require_same_rows, split), shown)

    def evaluate(self) -> None:
        """Retrain the models that are missing and compute what the configuration asks for."""
        config, settings = self.settings, self._evaluation
        scorer = self.parts.scorer
        scored = ScoredRun(self.run, self.store, scorer, config.target_split, config.train_split, config.seed)
        results = evaluate_scores(scored, settings, self.retrain, lambda: self.datamodule)
        print_results(
            results, lambda: self.speaks, skipped=_SKIPPED if settings.models < self.parts.evaluation.models else ""
        )

    @property
    def _evaluation(self) -> EvaluationSettings:
        """What is evaluated after scoring: no retrained models for the LDS where checkpoints are named, unless models are asked for."""
        asked = self.settings.evaluation
        default = self.settings.checkpoints is not None and asked.models is None and not asked.ceiling
        found: EvaluationSettings = self.parts.evaluation
        return replace(found, models=0) if default else found

    def retrain(self, plan: SubsetPlan, folder: Path, retrainings: Sequence[Retraining]) -> None:
        """See `trak_lightning.retraining.outputs.Retrain`."""
        self._require_same_order()
        todo = missing(retrainings)
        if todo or recorded_plan(folder) is None:
            self._require_trainable()
        replace(plan, num_samples=len(self.train_data), recipe=self._recipe).record(folder)
        self.keep_configuration(atomic_create)  # options of one evaluation are not settings of the run
        if todo:
            self.require_same_rows(self.settings.train_split, self.settings.target_split)
            if folder not in self._repeatable and self.settings.verify_data != "off":
                if (known := one_stored(folder, retrainings)) is not None:
                    self._retrainer.require_repeatable(known, folder)
                self._repeatable.add(folder)
        if todo and self.speaks:
            leave_out = "" if plan.purpose == SINGLE else self._none_retrained
            summary("retrain", f"{counted(len(todo), 'model')} to train{leave_out}")
        workers = min(self.parts.evaluation.workers, len(todo))
        if workers > 1:
            retrain_in_processes(self._argv, todo, workers, self.run.evaluation)
        elif todo:
            self.retrain_here(todo)

    def retrain_here(self, retrainings: Sequence[Retraining]) -> None:
        """Retrain these models in this process."""
        self._retrainer.retrain(retrainings)

    @property
    def _order(self) -> Path:
        return self.run.checkpoints / "samples.npz"

    def _require_recorded_order(self) -> None:
        if self.settings.verify_data != "off":
            require_recorded_order(self.train_data, self._order)

    def _require_trainable(self) -> None:
        """Refuse, before anything is recorded, a model that cannot be trained, and a Trainer that does not say how long; warn of a model that
        seems to be trained already."""
        if self._trainable:  # and other models were trained since
            return
        if isinstance(self.model, LanguageModel):
            self.model.training_step(None)
        require_trainable(self.model, self._cli.trainer, self.settings.trainer.max_epochs)
        if (fits := fits_before_training(self.model, self.parts.task, self.train_data)) and self.speaks:
            log.warning("train      %s", fits)
        self._trainable = True

    def _require_same_order(self) -> None:
        """Refuse to train on subsets of a split by its positions in another one: Lightning trains on ``train_dataloader``."""
        split, name = self.settings.train_split, type(self.datamodule).__name__
        if split == "train" or self._same_order:
            return
        trained = self._data("train")
        try:
            if len(trained) != len(self.train_data):
                raise DataError(
                    f"train_split {split!r} has {len(self.train_data)} samples, and models are trained on the {len(trained)} of "
                    f"train_dataloader of {name}."
                )
            if self.settings.verify_data != "off":
                names = (f"{split}_dataloader", f"train_dataloader of {name}, which models are trained on,")
                require_same_order(self.train_data, trained, names=names)
        except DataError as error:
            raise DataError(
                f"{error} {split}_dataloader must return the same samples in the same order, perhaps prepared "
                "otherwise; or name your own checkpoints under checkpoints, and ask for no evaluation that retrains models."
            ) from None
        self._same_order = True

    @property
    def _retrainer(self) -> Retrainer:
        return Retrainer(self._fresh, self.datamodule, self.parts.task, self.train_data, self.target_data)

    def _data(self, split: str) -> AttributionData:
        option = "train_split" if split == self.settings.train_split else "target_split"
        return read_split(self.datamodule, split, self.settings.batch_size, option=option)

    @property
    def _recipe(self) -> dict[str, Any]:
        """All settings that determine a trained model, defaults included."""
        recipe = {key: self.settings.get(key) for key in RECIPE}
        return {key: value.as_dict() if isinstance(value, Namespace) else value for key, value in recipe.items()}

    @property
    def _ensemble(self) -> SubsetPlan:
        """The plan of the checkpoints that `train` makes."""
        settings = self.settings
        return SubsetPlan(ENSEMBLE, len(self.train_data), settings.ensemble.fraction, settings.seed, self._recipe)

    def _fresh(self, seed: int) -> tuple[L.LightningModule, L.Trainer]:
        with quiet_lightning():
            L.seed_everything(seed, verbose=False)
            self._cli.instantiate_classes()
        return self._cli.model, self._cli.trainer


def _listed(value: list[str] | str | None) -> list[str] | None:
    return [value] if isinstance(value, str) else value
