"""LightningCLI with the settings of a run."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from trak_lightning.cli.arguments import add_settings, model_parser_settings
from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.help import tidy
from trak_lightning.cli.plugin_names import KINDS
from trak_lightning.runtime.lightning import WRITES_NOTHING, quiet_lightning

NEEDED_BY = {
    "logger": (LearningRateMonitor, DeviceStatsMonitor),
    "enable_checkpointing": (Checkpoint,),
    "enable_progress_bar": (ProgressBar,),
    "enable_model_summary": (ModelSummary,),
}
"""Setting of the Trainer → callbacks to leave out where it is off: the Trainer refuses them, or they have nothing to do."""


class TrakCLI(LightningCLI):
    """Parses a whole run: ``--model``, ``--data``, ``--trainer.*`` and our own settings.

    Raises:
        PluginError: an unknown plug-in name.
        UsageError: a mistake in the settings.
    """

    def __init__(self, command: str, argv: Sequence[str]) -> None:
        self._command = command
        self._argv = argv
        with quiet_lightning():
            super().__init__(
                run=False,
                save_config_callback=None,
                seed_everything_default=False,
                trainer_defaults=WRITES_NOTHING,
                parser_kwargs=model_parser_settings(command),
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_settings(parser, command=self._command)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI's own method warns that sys.argv is there too, which is so for every console script.
        tidy(parser)
        line = CommandLine.of(self._argv, parser).with_saved_configuration()
        self.config: Namespace = line.parse(uses=tuple(KINDS))
        if (
            self.config.get("seed_everything") is True
        ):  # versions of Lightning choose a seed differently, and some at random
            self.config.seed_everything = self.config.seed

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer without the callbacks that have nothing to do here."""
        trainer = self.config_init.trainer
        useless = tuple(kind for setting, kinds in NEEDED_BY.items() if trainer.get(setting) is False for kind in kinds)
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        kept = [callback for callback in callbacks if callback is not None and not isinstance(callback, useless)]
        return super().instantiate_trainer(**{"callbacks": kept, **kwargs})
