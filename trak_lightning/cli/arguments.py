"""The settings of a run as command-line arguments: those that need no torch, shared by all commands."""

from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from trak_lightning import registry
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.retraining.settings import EnsembleSettings
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Scorer
from trak_lightning.stores.base import FeatureStore

# Not Any: jsonargparse would import the class that an Any value names.
Unread = dict[str, Any] | list[Any] | str | int | bool | None

TRAINING_KEYS = (
    "seed_everything",
    "model",
    "data",
    "trainer",
    "optimizer",
    "lr_scheduler",
    "task",
    "extractor",
    "projector",
    "block_size",
    "grow",
    "shard",
)
"""Settings that only commands with a Trainer look at. They are accepted, unread, by the others: one file serves all."""


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add what every stage of a run may need to know."""
    parser.add_argument("--run_dir", type=str, required=True, help="folder that holds everything this run makes")
    parser.add_argument(
        "--parameters",
        type=list[str] | None,
        default=None,
        help="which parameters to attribute to: patterns of names (layer4.*, '!*.bias'), types (type:Linear), last:1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of subsets, training and projections")
    parser.add_argument(
        "--checkpoints",
        type=list[str] | None,
        default=None,
        help="checkpoint files or folders to attribute with, also with wildcards; if given, nothing is trained",
    )
    parser.add_argument(
        "--weights_only",
        type=bool,
        default=True,
        help="false unpickles checkpoint files, which runs code in them: only for files you trust",
    )
    parser.add_argument(
        "--train_split", type=str, default="train", help="training data: the DataModule's NAME_dataloader"
    )
    parser.add_argument("--target_split", type=str, default="test", help="targets: the DataModule's NAME_dataloader")
    parser.add_argument(
        "--batch_size", type=int | None, default=None, help="of gradient batches; default: the loader's"
    )
    parser.add_class_arguments(EnsembleSettings, "ensemble")
    parser.add_class_arguments(EvaluationSettings, "evaluation")
    parser.add_subclass_arguments(FeatureStore, "store", help="where features live")
    parser.add_subclass_arguments(Scorer, "scorer", help="how features become scores")
    parser.set_defaults(
        {
            "store": {"class_path": registry.find("stores", "hdf5").class_path},
            "scorer": {"class_path": registry.find("scorers", "trak").class_path},
        }
    )


def light_parser(command: str, description: str) -> ArgumentParser:
    """A parser that accepts every configuration file of a run and imports no torch."""
    parser = ArgumentParser(prog=f"trak {command}", description=description)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; several are merged, later ones win")
    add_run_arguments(parser)
    for key in TRAINING_KEYS:
        parser.add_argument(f"--{key}", type=Unread, default=None, help="not used here")
    return parser


def open_run(config: Namespace, instances: Namespace) -> tuple[RunDirectory, FeatureStore]:
    """The run directory of a parsed configuration, and its store."""
    run = RunDirectory(config.run_dir)
    store: FeatureStore = instances.store
    store.bind(run.features)
    return run, store
