"""``trak self-influence``: self-influence and leverage of each training sample."""

import time
from collections.abc import Sequence

import numpy as np

from trak_lightning.cli.arguments import light_parser, light_settings, open_run
from trak_lightning.cli.output import print_json, short_path, summary
from trak_lightning.cli.shown_samples import shown_train
from trak_lightning.cli.store_arguments import add_numbers
from trak_lightning.run.atomic import require_writable
from trak_lightning.run.formatting import format_number
from trak_lightning.run.numpy_files import write_npz
from trak_lightning.scoring.display import ShowsLines, print_table, print_to_read, sample_columns
from trak_lightning.scoring.regularization import settings_of
from trak_lightning.scoring.score_run import load_features
from trak_lightning.scoring.self_influence import self_influence

READS = ("run_dir", "train_split", "store", "scorer")
COLUMNS = ("index", "self_influence", "leverage")


def main(argv: Sequence[str]) -> int:
    """Compute and store both, and print the largest."""
    started = time.perf_counter()
    parser = light_parser(
        "self-influence",
        "Self-influence (how far a training sample moves its own output, up or down: large for mislabeled and rare samples) "
        "and leverage of each training sample, written to RUN_DIR/scores/self_influence.npz.",
        reads=READS,
    )
    parser.add_argument("-k", type=int, default=10, help="number of samples to print")
    add_numbers(parser)
    config, instances = light_settings(parser, argv, reads=READS)
    run, store = open_run(config, instances)
    path = run.path / "scores" / "self_influence.npz"
    require_writable(path)
    checkpoints = load_features(run, store, targets=config.train_split, train=config.train_split)
    found = self_influence(checkpoints, *settings_of(instances.scorer))
    write_npz(path, found._asdict())
    largest = np.argsort(-found.self_influence, kind="stable")[: config.k]
    values = [(int(i), float(found.self_influence[i]), float(found.leverage[i])) for i in largest]
    if config.json:
        print_json({"path": path, "largest": [dict(zip(COLUMNS, each, strict=True)) for each in values]})
        return 0
    samples = (
        None if config.numbers else shown_train("self-influence", run, largest, len(found.leverage), config.train_split)
    )
    summary("self", f"{short_path(path)}", len(found.leverage), "samples", started)
    _print(values, samples)
    return 0


def _print(values: Sequence[tuple[int, float, float]], samples: ShowsLines | None) -> None:
    told = sample_columns((index for index, *_ in values), samples)
    headings = [heading.replace("_", "-") for heading in (*COLUMNS, *told)]
    numbers = [(str(index), *map(format_number, others)) for index, *others in values]
    rows = [(*cells, *(column[place] for column in told.values())) for place, cells in enumerate(numbers)]
    print("Largest self-influence")
    print_table(headings, rows, numeric=(0, 1, 2))
    print_to_read((index for index, *_ in values), samples)
