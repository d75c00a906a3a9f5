"""The settings of a run as command-line arguments. No torch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from trak_lightning import registry
from trak_lightning.cli.command_line import CommandLine, load_config
from trak_lightning.cli.error_messages import UsageError, missing
from trak_lightning.cli.help import command_parser, parser_settings, tidy
from trak_lightning.cli.plugin_names import KINDS
from trak_lightning.cli.store_arguments import add_json
from trak_lightning.cli.usage import COMMANDS
from trak_lightning.errors import DataError
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.featurize.reuse import VerifyData
from trak_lightning.retraining.ensemble_settings import EnsembleSettings
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.scores import open_scores
from trak_lightning.stores.base import FeatureStore

# Not Any: jsonargparse would import the class that an Any value names.
Unread = dict[str, Any] | str | int | bool | None
"""A setting whose value a command looks at without making anything of it."""

Listed = list[str] | str | None
"""A list, or one string in place of a list of one."""

PLAIN: dict[str, dict[str, Any]] = {
    "run_dir": {"type": str, "required": True, "help": "folder that holds everything this run makes; also by position"},
    "parameters": {
        "type": Listed,
        "default": None,
        "help": "parameters to attribute to: patterns of names (layer4.*, '!*.bias'), types (type:Linear), or last:1; several as "
        "'[layer3.*, layer4.*]' (default: all)",
    },
    "seed": {"type": int, "default": 0, "help": "seed of subsets, training and projections"},
    "checkpoints": {
        "type": Listed,
        "default": None,
        "help": "checkpoint files or folders to attribute with, also patterns ('seed*.ckpt'); if given, nothing is trained "
        "unless evaluation.models is",
    },
    "weights_only": {
        "type": bool,
        "default": True,
        "help": "false unpickles checkpoint files, which runs code in them: only for files that you trust",
    },
    "train_split": {"type": str, "default": "train", "help": "training data: the DataModule's NAME_dataloader"},
    "target_split": {"type": str, "default": "test", "help": "targets: the DataModule's NAME_dataloader"},
    "batch_size": {"type": int | None, "default": None, "help": "samples per gradient batch; default: the loader's"},
    "block_size": {"type": int, "default": 1024, "help": "samples stored at a time, whole or not at all"},
    "grow": {
        "type": bool,
        "default": False,
        "help": "true: the data may have more samples than those featurized, after these; only the new ones are computed",
    },
    "curvature_draws": {
        "type": int,
        "default": 0,
        "help": "how many times labels are drawn from the model for each training sample, for further rows of the Gram matrix",
    },
    "verify_data": {
        "type": VerifyData,
        "default": "sampled",
        "help": "samples to read again before their stored rows are reused. full: all; sampled: what a second allows; off: none, and "
        "no retrained model that is stored is checked by training it once more",
    },
    "repair": {
        "type": bool,
        "default": False,
        "help": "true: compute stored rows again whose sample, model or code was changed since, instead of refusing them",
    },
    "shard": {
        "type": str,
        "default": "1/1",
        "help": "3/16: featurize the third of sixteen parts; the parts need not know of each other",
    },
}
"""Settings with one value, as arguments of ``add_argument``."""

UNNAMED = ".trak-check"
"""The run directory of a check that names none, which is not made."""

GROUPS = {"ensemble": EnsembleSettings, "evaluation": EvaluationSettings}
PLUGINS = {
    "store": ("hdf5", "where features live"),
    "scorer": ("trak", "how features become scores"),
    "task": ("image_classification", "which output of the model is attributed"),
    "extractor": ("auto", "how per-sample gradients are computed"),
    "projector": ("auto", "how gradients are projected to k dimensions"),
}
"""Settings whose value is a plug-in: the default, and what they are for."""

RECIPE = ("model", "data", "trainer", "optimizer", "lr_scheduler")
"""Settings that determine a trained model."""

BELONGS_TO = {
    **dict.fromkeys((*RECIPE, "ensemble", "seed", "seed_everything"), "train"),
    **{"target_split": "score", "scorer": "score", "evaluation": "evaluate"},
}
"""The command that a setting is first for; of those not here, ``trak featurize``."""

TORCH = ("task", "extractor", "projector")
"""Settings whose plug-ins need torch."""

PRINT_JSON = ("check", "evaluate", "worker")
"""Commands that make a model and may print JSON; a worker has the options of its ``trak evaluate``."""

SETTINGS = (*PLAIN, *GROUPS, *PLUGINS)
"""All settings but those of LightningCLI."""

_TRAINER_NOTE = (
    "Every argument of lightning.Trainer can be set too, as in --trainer.max_epochs 20. RUN_DIR holds everything that a run "
    "makes; it may stand in the configuration file, as run_dir."
)


def model_parser_settings(command: str) -> dict[str, Any]:
    """Arguments of the parser of a command that needs a model."""
    about = COMMANDS.get(command, "")
    return parser_settings(
        command, "[RUN_DIR] --config FILE [options]", f"{about[:1].upper()}{about[1:]}. {_TRAINER_NOTE}"
    )


def refuse_early(command: str, argv: Sequence[str]) -> None:
    """Find mistakes in the settings of one of `NEED_A_MODEL` that need no torch to be seen.

    Raises:
        UsageError: one in a setting of ours, there is no model or no data, or a configuration file cannot be read.
    """
    line = CommandLine.of(argv, _parser_without_torch(command)).with_saved_configuration()
    line.parse(drops={*RECIPE, *TORCH, "print_config", "seed_everything"})
    given = {option.setting.removesuffix("_class") for option in line.options}
    given.update(*map(load_config, line.configs))
    for setting in ("model", "data"):
        if setting not in given:
            raise UsageError(missing(setting))


def model_help(command: str) -> str:
    """What the parser of one of `NEED_A_MODEL` prints as its help, without torch, which that parser needs to read values."""
    return str(_parser_without_torch(command).format_help())


def _parser_without_torch(command: str) -> ArgumentParser:
    parser = ArgumentParser(**model_parser_settings(command))
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    parser.add_argument("--seed_everything", type=int)

    def add_unread(*names: str) -> None:
        for name in names:
            default, about = PLUGINS.get(name, (None, None))
            path = default and {"class_path": registry.find(KINDS[name], default).class_path}
            parser.add_argument_group(name).add_argument(f"--{name}", type=Unread, default=path, help=about)

    add_unread("model", "data")
    add_settings(parser, [name for name in SETTINGS if name not in TORCH], command)
    add_unread(*TORCH, "optimizer", "lr_scheduler")
    tidy(parser)
    return parser


def add_settings(parser: ArgumentParser, names: Collection[str] = SETTINGS, command: str = "") -> None:
    """Add some of `SETTINGS` to a parser."""
    for name in names:
        if name == "run_dir" and command == "check":
            parser.add_argument(
                "--run_dir", type=str, default=UNNAMED, help="run directory that is checked; nothing is stored"
            )
        elif name in PLAIN:
            parser.add_argument(f"--{name}", **PLAIN[name])
        elif name in GROUPS:
            parser.add_class_arguments(GROUPS[name], name)
        else:
            default, about = PLUGINS[name]
            parser.add_subclass_arguments(registry.base(KINDS[name]), name, help=about)
            parser.set_defaults({name: {"class_path": registry.find(KINDS[name], default).class_path}})
    if command in PRINT_JSON:
        add_json(parser)


def light_parser(
    command: str, description: str, *, reads: Collection[str], usage: str = "RUN_DIR [options]"
) -> ArgumentParser:
    """A parser of a command that imports no torch and reads these settings of a run; read with `light_settings`."""
    parser = command_parser(command, usage, description)
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    add_json(parser)
    add_settings(parser, reads)
    tidy(parser, kept=reads)
    return parser


def light_settings(
    parser: ArgumentParser,
    argv: Sequence[str],
    *,
    reads: Collection[str],
    also: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
    one_of: Collection[str] = (),
) -> tuple[Namespace, Namespace]:
    """Return the settings and the objects that they describe.

    One configuration file serves all commands: settings that are neither in `reads` nor, unread, in `also` are taken out of it. As options,
    they would have no effect.

    Raises:
        UsageError: such an option, two of the options `one_of`, or a mistake in the settings.
    """
    line = CommandLine.of(argv, parser, renamed=renamed)
    chosen = {option.name: option.token for option in line.options if option.name in one_of}
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen.values())} both say which targets; give one of them")
    drops = {*SETTINGS, "seed_everything", *RECIPE} - {*reads, *also}
    for option in line.options:
        if (setting := option.setting.removesuffix("_class")) in drops:
            command = BELONGS_TO.get(setting, "featurize")
            raise UsageError(f"{option.name} has no effect on {parser.prog}: it belongs to trak {command}")
    config = line.with_saved_configuration().parse(uses=reads, drops=drops)
    return config, parser.instantiate(config)


NAMES_TARGETS = ("--name", "--target_split")


def add_scored(parser: ArgumentParser) -> None:
    """Add ``--name``, in place of ``--target_split``, to a parser of a command on targets; read with `scored_split`. Of `NAMES_TARGETS`, one
    may be given."""
    parser.add_argument("--name", type=str | None, help="score file: its targets, in place of those of --target_split")


def scored_split(config: Namespace, run: RunDirectory) -> str:
    """The split of the targets that ``--name`` or ``--target_split`` chooses.

    Raises:
        DataError: the scores are of groups of targets, or were not made from features.
    """
    if config.name is None:
        return str(config.target_split)
    scores = open_scores(run, config.name)
    if scores.grouped:
        raise DataError(
            f"{config.name!r} holds scores of groups or differences of targets, and this command is about single targets: --name "
            f"{scores.target_split}. The change of a mean or a difference is that of the changes of its targets."
        )
    if "repeated_by" in scores.settings and not run.read().checkpoints:
        raise DataError(
            f"{config.name!r} holds scores of a recorded training, and this command computes with features, of which {run.path} has none. "
            "The sum of the scores of samples is what the output would fall by without them, and Replay.outputs(targets, task, weights) "
            "trains without them. For features, call TRAK(…).featurize and score with this run directory."
        )
    return scores.target_split or str(config.name)


def open_run(config: Namespace, instances: Namespace) -> tuple[RunDirectory, FeatureStore]:
    """The run directory of a parsed configuration, and its store."""
    run = RunDirectory(config.run_dir)
    store: FeatureStore = instances.store
    store.bind(run.features)
    return run, store
