"""``trak evaluate``: do the scores predict retrained models?"""

import time
from collections.abc import Sequence

from trak_lightning.cli.arguments import LIGHTNING, light_parser, open_run, unread
from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.output import print_json, summary
from trak_lightning.errors import IncompleteRunError
from trak_lightning.evaluation.lds_run import evaluate_run

READS = ("run_dir", "seed", "train_split", "target_split", "evaluation", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Retrain the models that are missing, and print each result."""
    started = time.perf_counter()
    parser = light_parser(
        "evaluate",
        "Linear datamodeling score: do the scores predict models retrained on random subsets of the training set? Models "
        "that are missing are retrained, with the model, data and trainer of the configuration.",
        reads=READS,
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    line = CommandLine.of(argv).with_saved_configuration()
    if any(option.setting in LIGHTNING for option in line.options):
        return _retrain_and_evaluate(argv)
    config = line.parse(parser, reads=READS, drops=unread(READS))
    instances = parser.instantiate(config)
    if instances.evaluation.needs_data:
        return _retrain_and_evaluate(argv)
    run, store = open_run(config, instances)
    try:
        evaluation, fresh = evaluate_run(
            run,
            store,
            instances.scorer,
            instances.evaluation,
            seed=config.seed,
            train=config.train_split,
            targets=config.target_split,
        )
    except IncompleteRunError:
        return _retrain_and_evaluate(argv)
    if config.json:
        print_json([evaluation])
    else:
        evaluation.print()
        summary("evaluate", evaluation.headline(), int(fresh), "computed", started)
    return 0


def _retrain_and_evaluate(argv: Sequence[str]) -> int:
    from trak_lightning.cli.job import Job

    Job("evaluate", argv).evaluate()
    return 0
