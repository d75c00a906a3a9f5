"""``trak evaluate``: do the scores predict retrained models?"""

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from trak_lightning.cli.arguments import RECIPE, Unread, light_parser, light_settings, open_run
from trak_lightning.cli.output import print_results
from trak_lightning.errors import IncompleteRunError
from trak_lightning.evaluation.experiments import evaluate as evaluate_scores
from trak_lightning.evaluation.repetitions import RecordedRun
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.retraining.outputs import Retrain, Retraining, missing
from trak_lightning.retraining.subsets import SubsetPlan, recorded_plan
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.scores import Scores

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job

TRAINING = (*RECIPE, "seed_everything", "batch_size", "verify_data", "weights_only")
"""Settings of retraining, which are read only where models are missing."""

READS = ("run_dir", "seed", "train_split", "target_split", "evaluation", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Retrain the models that are missing, and print each result."""
    parser = light_parser(
        "evaluate",
        "Linear datamodeling score: do the scores predict models retrained on random subsets of the training set? Missing "
        "models are retrained, with the model, data and trainer of the configuration.",
        reads=READS,
    )
    for key in TRAINING:
        parser.add_argument(f"--{key}", type=Unread, help=SUPPRESS)
    parser.add_argument(
        "--name",
        type=str | None,
        help="score file of a recorded training, in place of --scorer on the targets of --target_split",
    )
    config, instances = light_settings(parser, argv, reads=READS, also=TRAINING)
    training = LazyTraining(argv, config)
    retrain: Retrain = training.retrain
    run, store = open_run(config, instances)
    scored = ScoredRun(run, store, instances.scorer, config.target_split, config.train_split, config.seed)
    if config.name is None:
        offer_recorded(run)
    else:
        scored = RecordedRun(
            run, store, instances.scorer, config.name, config.train_split, config.seed, config.target_split
        )
        scored.require(instances.evaluation)
        retrain = scored.retrain
    results = evaluate_scores(scored, instances.evaluation, retrain, lambda: training.job.datamodule)
    print_results(results, lambda: training.speaks, as_json=config.json)
    return 0


def offer_recorded(run: RunDirectory) -> None:
    """Ask for ``--name`` where nothing was featurized and all scores are of a recorded training.

    Raises:
        IncompleteRunError: this is so, or nothing was featurized.
    """
    try:
        run.require_checkpoints()
    except IncompleteRunError:
        recorded = [path.stem for path in run.score_files if "repeated_by" in Scores(path).settings]
        if not recorded:
            raise
        raise IncompleteRunError(
            f"{run.path} has no features, and scores of a recorded training, {', '.join(recorded)}. Evaluate these: --name {recorded[0]} "
            "--evaluation.protocol fixed_seed."
        ) from None


class LazyTraining:
    """The user's model, data and Trainer, which are built, and torch imported, only when a model must be retrained."""

    def __init__(self, argv: Sequence[str], config: Namespace) -> None:
        self._argv = argv
        self._recipe = {key: config[key] for key in RECIPE if config.get(key) is not None}

    @cached_property
    def job(self) -> "Job":
        """The job, built when first asked for."""
        from trak_lightning.cli.job import Job

        return Job("evaluate", self._argv)

    @property
    def speaks(self) -> bool:
        """Whether this process prints results. Without a job there is only one."""
        return "job" not in vars(self) or self.job.speaks

    def retrain(self, plan: SubsetPlan, folder: Path, retrainings: Sequence[Retraining]) -> None:
        """See `trak_lightning.retraining.outputs.Retrain`."""
        recorded = recorded_plan(folder)
        # The settings given leave out defaults, which only the job knows: it has the last word where they differ.
        if missing(retrainings) or (recorded is not None and not agrees(self._recipe, recorded["recipe"])):
            self.job.retrain(plan, folder, retrainings)


def agrees(given: Any, recorded: Any) -> bool:
    """Whether all settings in `given`, which may leave out defaults, are equal in `recorded`, which has all of them.

    Arguments of a class may be under ``init_args`` or next to its ``class_path``.
    """
    if not isinstance(given, Mapping) or not isinstance(recorded, Mapping):
        return bool(given == recorded)
    if "class_path" not in recorded:
        return all(name in recorded and agrees(value, recorded[name]) for name, value in given.items())
    direct = {name: value for name, value in given.items() if name not in ("class_path", "init_args")}
    arguments = {**(given.get("init_args") or {}), **direct}
    return given.get("class_path", recorded["class_path"]) == recorded["class_path"] and agrees(
        arguments, recorded.get("init_args") or {}
    )
