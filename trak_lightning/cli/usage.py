"""What ``trak --help`` shows: the commands."""

from textwrap import fill

COMMANDS = {
    "run": "train, featurize, score and evaluate, from one configuration file; run again, it does what is missing",
    "sft": "attribute answers of a fine-tuned language model to its training conversations",
    "check": "report from a few batches what would be attributed and how, or why it cannot be; nothing is stored",
    "train": "train an ensemble of checkpoints, each on its own random part of the training set",
    "featurize": "compute and store projected per-sample gradients of training and target samples",
    "score": "attribute the targets to the training samples",
    "evaluate": "retrain models on random subsets and test whether the scores predict them",
    "top": "print the most helpful and most harmful training samples of a target; without one, the targets that models get wrong",
    "tokens": "say which tokens of a training sample moved which tokens of a target",
    "self-influence": "compute the self-influence and leverage of each training sample",
    "suspects": "list training samples whose label is likely wrong, with a stated share of false alarms",
    "whatif": "predict how the outputs of targets would change if a set of training samples had not been there",
    "select": "choose the training samples to keep for the targets, given a budget",
    "report": "write one page, RUN_DIR/report/NAME.html, that shows targets with their examples",
    "info": "print what a run directory holds, and what is missing",
    "verify": "check that every stored row and score is present and intact",
    "merge": "copy the features of one or more run directories into one file or another store",
    "import-traker": "make a run directory of the features that traker, the library of the TRAK paper, has saved",
    "plugins": "list the installed extractors, projectors, stores, tasks and scorers",
    "completion": "print a script by which bash, zsh or fish completes these commands and their options",
}


def usage() -> str:
    """What ``trak --help`` shows."""
    indent = " " * 17
    commands = "\n".join(
        fill(description, 80, initial_indent=f"  {name:<15}", subsequent_indent=indent, break_on_hyphens=False)
        for name, description in COMMANDS.items()
    )
    return (
        "usage: trak COMMAND [RUN_DIR] [options]\n\nWhich training examples made the model predict this?\n\n"
        f"commands:\n{commands}\n\n"
        "A run directory holds everything that a run makes, its configuration included: after\n"
        "`trak run --config mine.yaml`, `trak score RUN_DIR` and the others need nothing else.\n"
        "trak COMMAND --help shows the options of a command."
    )
