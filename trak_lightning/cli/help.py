"""What ``trak COMMAND --help`` shows: what a person chooses, with its default, and nothing of the machinery."""

from argparse import SUPPRESS, Action
from collections.abc import Collection
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from trak_lightning import registry
from trak_lightning.cli.plugin_names import KINDS

TITLES = {
    "model": "Your model and data",
    "data": "Your model and data",
    "optimizer": "Optimizer and schedule, where the model does not configure its own",
    "lr_scheduler": "Optimizer and schedule, where the model does not configure its own",
    "ensemble": "The checkpoints that trak train makes",
    "evaluation": "What trak evaluate does",
    **dict.fromkeys(KINDS, "Plug-ins, with options of their own, --NAME.OPTION VALUE (trak plugins NAME)"),
}
"""Headings, by the first part of an option's name."""

HELP = {
    "seed_everything": "seed that Lightning sets before it makes model and data; true for that of --seed",
    "config": "YAML file; several are merged, later ones win; default: RUN_DIR/config.yaml",
    "model": "LightningModule: a class such as mine.Net, with options --model.NAME VALUE",
    "data": "LightningDataModule: a class such as mine.Digits, with options --data.NAME VALUE",
    "optimizer": "a class such as torch.optim.SGD, with options --optimizer.lr 0.1",
    "lr_scheduler": "a class such as torch.optim.lr_scheduler.StepLR",
    "print_config": "print the whole configuration and exit",
}
"""Help for options that are not ours."""

KEPT = "that of the run, or "
"""What comes before the default of a setting that a command reads from the configuration of the run."""

GROUPS = ("ensemble", "evaluation")
CLASSES = ("model", "data", "optimizer", "lr_scheduler")


class HelpFormatter(DefaultHelpFormatter):
    """Help with defaults, without types, and without what nobody types."""

    def add_argument(self, action: Action) -> None:
        # Not help=SUPPRESS: jsonargparse leaves such options out of the configuration that it saves.
        if not (action.dest.endswith(".help") or action.dest.partition(".")[0] == "trainer" or action.dest in GROUPS):
            super().add_argument(action)

    def _format_action_invocation(self, action: Action) -> str:
        written = action.option_strings
        action.option_strings = [each for each in written if not each.endswith("+")]  # jsonargparse appends by --NAME+
        try:
            return str(super()._format_action_invocation(action))
        finally:
            action.option_strings = written

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(HelpFormatter, self)._fill_text(line, width, indent) for line in text.splitlines())

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").rstrip(".").replace("``", "'")
        if (
            action.dest in KINDS
            or action.dest in HELP
            or any(action.default is each for each in (None, SUPPRESS, False))
        ):
            return text
        default = "true" if action.default is True else "%(default)s"
        return f"{text} (default: {KEPT if getattr(action, 'kept', False) else ''}{default})"


def parser_settings(command: str, usage: str, description: str) -> dict[str, Any]:
    """Arguments of the parser of one command; its mistakes are raised, for `trak_lightning.cli.error_messages`."""
    return {
        "prog": f"trak {command}",
        "usage": f"trak {command} {usage}",
        "description": description,
        "exit_on_error": False,
        "allow_abbrev": False,
        "formatter_class": HelpFormatter,
    }


def command_parser(command: str, usage: str, description: str) -> ArgumentParser:
    """The parser of one command."""
    return ArgumentParser(**parser_settings(command, usage, description))


def tidy(parser: ArgumentParser, kept: Collection[str] = ()) -> None:
    """Say what options that are not ours are for, and group them. Defaults of the settings in `kept` are those of the run."""
    for action in parser._actions:
        action.kept = action.dest.partition(".")[0] in kept  # type: ignore[attr-defined]
        if action.dest in KINDS:
            action.metavar = "NAME"
            action.help = (
                f"{action.help}: {', '.join(registry.names(KINDS[action.dest]))} "
                f"(default: {KEPT if action.dest in kept else ''}{_default(action)})"
            )
        elif action.dest in HELP:
            action.help = HELP[action.dest]
            action.metavar = "CLASS" if action.dest in CLASSES else action.metavar
    _regroup(parser)


def _default(action: Action) -> str:
    kind, path = KINDS[action.dest], action.default["class_path"]
    return next(name for name in registry.names(kind) if registry.find(kind, name).class_path == path)


def _regroup(parser: ArgumentParser) -> None:
    groups = {}
    for group in parser._action_groups:
        for action in group._group_actions:
            title = TITLES.get(action.dest.partition(".")[0])
            if title is not None and title not in groups:
                groups[title] = group
                group.title, group.description = title, None
    for group in parser._action_groups:
        for action in list(group._group_actions):
            title = TITLES.get(action.dest.partition(".")[0])
            if title is not None and groups[title] is not group:
                group._group_actions.remove(action)
                groups[title]._group_actions.append(action)
