"""Are mislabeled training samples found? A transformer fine-tuned on glosses, or a CNN trained on digits, with some wrong labels.

    python benchmarks/mislabels.py
    python benchmarks/mislabels.py --problem digits

Model, data and training are those of configs/glosses.yaml and configs/digits.yaml. Prints, for several ways to rank training samples, the
probability that a mislabeled one is ranked above another (area under the ROC curve), and the share of mislabeled ones among the first k.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from demo_models import checkpoints, recipe
from jsonargparse import auto_cli

from trak_lightning import TRAK
from trak_lightning.evaluation.mislabeled import mislabeled
from trak_lightning.scoring.held_out import held_out_probabilities
from trak_lightning.scoring.score_run import load_features


def main(
    problem: Literal["glosses", "digits"] = "glosses", folder: Path = Path("runs/mislabels"), label_noise: float = 0.1
) -> None:
    """Print the table.

    Args:
        problem: which data and model.
        folder: folder for models and features.
        label_noise: share of the training samples that get a wrong label.
    """
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / f"{problem}.yaml").read_text())
    data, run, ensemble = make(config["data"], label_noise=label_noise), folder / problem, config["ensemble"]
    data.setup()
    fresh = recipe(lambda: make(config["model"]), config["trainer"]["max_epochs"])
    paths = checkpoints(fresh, data, ensemble["size"], ensemble["fraction"], run / f"{label_noise}" / "checkpoints")
    model = make(config["model"]).eval()
    trak = TRAK(model, config["task"], run / f"{label_noise}", projector=config["projector"])
    trak.featurize(data.train_dataloader(), [str(path) for path in paths])
    features = load_features(trak.run, trak.store, targets="train", train="train")
    influence, weight = trak.self_influence(), np.mean([each.train.column("loss_weight") for each in features], axis=0)
    suspicion = {
        "self-influence": influence.self_influence,
        "self-influence / (1 − leverage)": influence.self_influence / (1 - influence.leverage),
        "self-influence / loss weight": influence.self_influence / weight,
        "leverage": influence.leverage,
        "1 − p(label)": weight,
        "1 − p(label), models not trained on it": 1 - held_out_probabilities(features, trak.spec.task.meaning)[0],
        "random": np.random.default_rng(0).random(len(weight)),
    }
    mislabeled(suspicion, np.asarray(data.mislabeled)).print()


def make(part: dict[str, Any], **more: Any) -> Any:
    """Instantiate an object of a configuration file."""
    module, _, name = part["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**part.get("init_args", {}) | more)


if __name__ == "__main__":
    auto_cli(main)
