"""Are mislabelled training samples found? A transformer fine-tuned on glosses of which some have got another category.

    python benchmarks/mislabels.py --label_noise 0.1

Model, data and training are those of configs/glosses.yaml. Prints, for several ways to rank training samples, how likely a
mislabelled one is ranked above another (area under the ROC curve), and what part of the first ones are mislabelled.
"""

from pathlib import Path

import numpy as np
import yaml
from demo_models import checkpoints, recipe
from jsonargparse import auto_cli

from trak_lightning import TRAK
from trak_lightning.demos import TextClassifier, TextDataModule
from trak_lightning.evaluation.mislabeled import mislabeled
from trak_lightning.scoring.self_influence import held_out_probabilities
from trak_lightning.scoring.stage import load_features

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "configs" / "glosses.yaml").read_text())


def main(folder: Path = Path("runs/mislabels"), label_noise: float = 0.1) -> None:
    """Print the table.

    Args:
        folder: where models and features are kept.
        label_noise: share of the training samples that get another category.
    """
    data = TextDataModule(**CONFIG["data"]["init_args"] | {"label_noise": label_noise})
    data.setup()
    run, ensemble = folder / f"{label_noise}", CONFIG["ensemble"]
    fresh = recipe(lambda: TextClassifier(**CONFIG["model"]["init_args"]), CONFIG["trainer"]["max_epochs"])
    paths = checkpoints(fresh, data, ensemble["size"], ensemble["fraction"], run / "checkpoints")
    model = TextClassifier(**CONFIG["model"]["init_args"]).eval()
    trak = TRAK(model, CONFIG["task"], run, projector=CONFIG["projector"])
    trak.featurize(data.train_dataloader(), [str(path) for path in paths])
    features = load_features(trak.run, trak.store, targets="train", train="train")
    influence, weight = trak.self_influence(), np.mean([each.train.column("loss_weight") for each in features], axis=0)
    suspicion = {
        "self-influence": influence.self_influence,
        "self-influence / (1 − leverage)": influence.self_influence / (1 - influence.leverage),
        "self-influence / loss weight": influence.self_influence / weight,
        "leverage": influence.leverage,
        "1 − p(label)": weight,
        "1 − p(label), models not trained on it": 1 - held_out_probabilities(features)[0],
        "random": np.random.default_rng(0).random(len(weight)),
    }
    mislabeled(suspicion, data.mislabeled, {}).print()


if __name__ == "__main__":
    auto_cli(main)
