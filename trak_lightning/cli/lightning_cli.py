"""LightningCLI with the settings of a run."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from trak_lightning import registry
from trak_lightning.cli.arguments import add_settings
from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.help import HelpFormatter, tidy
from trak_lightning.cli.names import KINDS
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.projectors.base import Projector
from trak_lightning.runtime.lightning import WRITES_NOTHING, quiet_lightning
from trak_lightning.tasks.base import Task

NEEDED_BY = {
    "logger": (LearningRateMonitor, DeviceStatsMonitor),
    "enable_checkpointing": (Checkpoint,),
    "enable_progress_bar": (ProgressBar,),
    "enable_model_summary": (ModelSummary,),
}
"""The callbacks that a Trainer refuses, or that have nothing to do, where one of `WRITES_NOTHING` is left as it is."""

DESCRIPTIONS = {
    "run": "Train, featurize, score and evaluate: which training examples made the model predict this? Each stage keeps what "
    "it has made; the same command, run again, does what is missing.",
    "check": "Say from one batch what would be attributed and how, or why it cannot be. Nothing is stored.",
    "train": "Train an ensemble of checkpoints, each on its own random part of the training set.",
    "featurize": "Compute and store projected per-sample gradients of training and target samples.",
}
TRAINER_NOTE = (
    " Every argument of lightning.Trainer can be set too, as in --trainer.max_epochs 20. RUN_DIR holds everything that a run "
    "makes; it may stand in the configuration file, as run_dir."
)


class TrakCLI(LightningCLI):
    """Parses a whole run: ``--model``, ``--data``, ``--trainer.*`` and our own settings.

    Raises:
        PluginError: an unknown plug-in name.
        UsageError: a mistake in the settings.
    """

    def __init__(self, command: str, argv: Sequence[str]) -> None:
        self._command = command
        self._line = CommandLine.of(argv).with_saved_configuration()
        with quiet_lightning():
            super().__init__(
                args=self._line.argv(reads=tuple(KINDS)),
                run=False,
                save_config_callback=None,
                seed_everything_default=False,
                trainer_defaults=WRITES_NOTHING,
                parser_kwargs={
                    "prog": f"trak {command}",
                    "usage": f"trak {command} [RUN_DIR] --config FILE [options]",
                    "description": DESCRIPTIONS.get(command, "") + TRAINER_NOTE,
                    "exit_on_error": False,
                    "formatter_class": HelpFormatter,
                },
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_settings(parser)
        if self._command in ("check", "evaluate", "worker"):
            parser.add_argument("--json", action="store_true", help="print the result as JSON")
        for key, base, default, about in (
            ("task", Task, "image_classification", "what is differentiated"),
            ("extractor", GradientExtractor, "auto", "how per-sample gradients are computed"),
            ("projector", Projector, "auto", "how gradients are projected to k dimensions"),
        ):
            parser.add_subclass_arguments(base, key, help=about)
            parser.set_defaults({key: {"class_path": registry.find(KINDS[key], default).class_path}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI's own method warns that sys.argv is there too, which is so for every console script.
        tidy(parser)
        self.config: Namespace = self._line.parse(parser, reads=tuple(KINDS))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer without the callbacks that have nothing to do here."""
        trainer = self.config_init.trainer
        useless = tuple(kind for setting, kinds in NEEDED_BY.items() if trainer.get(setting) is False for kind in kinds)
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        kept = [callback for callback in callbacks if callback is not None and not isinstance(callback, useless)]
        return super().instantiate_trainer(**{"callbacks": kept, **kwargs})
