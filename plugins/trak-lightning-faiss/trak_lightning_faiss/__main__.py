"""``python -m trak_lightning_faiss RUN_DIR --target 3``."""

import json
import logging
import sys

from jsonargparse import ArgumentParser

from trak_lightning.cli.store_arguments import chosen
from trak_lightning.errors import TrakError
from trak_lightning.scoring.ranking import Ranking, signed
from trak_lightning_faiss.search import Search


def main() -> int:
    """Print the best and worst training samples of a target as ``trak top --json`` does; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m trak_lightning_faiss",
        description="The most helpful and most harmful training samples of a target, without scoring all of them. Prints JSON.",
    )
    parser.add_argument("run_dir", type=str, help="a run directory with features of both splits (trak featurize)")
    parser.add_argument("--target", type=int, required=True, help="position of the target in its dataset")
    parser.add_argument("-k", type=int, default=10, help="number of samples on either side")
    parser.add_argument("--targets", type=str, default="test", help="the split of the target")
    parser.add_argument("--train", type=str, default="train", help="the split of the training samples")
    parser.add_argument("--scorer", type=str, default="trak", help="a scorer's name, or {name: …, options}")
    parser.add_argument("--store", type=str | None, default=None, help="default: that of RUN_DIR/config.yaml")
    config = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("trak_lightning_faiss").setLevel(logging.INFO)
    try:
        search = Search(config.run_dir, scorer=chosen(config.scorer), train=config.train, store=chosen(config.store))
        helpful = signed(search.top(config.k, target=config.target, targets=config.targets), "top")
        harmful = signed(search.bottom(config.k, target=config.target, targets=config.targets), "bottom")
    except TrakError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"helpful": _entries(helpful), "harmful": _entries(harmful)}, indent=1))
    return 0


def _entries(ranking: Ranking) -> list[dict[str, float]]:
    return [{"index": int(i), "score": float(value)} for i, value in zip(ranking.indices, ranking.values, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
