"""Are mislabelled training samples found? A transformer fine-tuned on glosses of which some have got another category.

    python benchmarks/mislabels.py --mislabelled 0.1

Model, data and training are those of configs/glosses.yaml. Prints, for several ways to rank training samples, how likely a
mislabelled one is ranked above another (area under the ROC curve), and what part of the first ones are mislabelled, looking at as
many as there are.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from trak_lightning import TRAK
from trak_lightning.demos import TextClassifier, TextDataModule
from trak_lightning.ensemble import train_ensemble
from trak_lightning.quiet import quiet_lightning
from trak_lightning.scoring.stage import load_features
from trak_lightning.subsets import SubsetPlan

CONFIG = Path(__file__).parents[1] / "configs" / "glosses.yaml"


def main(folder: Path = Path("runs/mislabels"), mislabelled: float = 0.1) -> None:
    """Print the table.

    Args:
        folder: where models and features are kept.
        mislabelled: part of the training samples that get another category.
    """
    config = yaml.safe_load(CONFIG.read_text())
    data = TextDataModule(**config["data"]["init_args"] | {"mislabelled": mislabelled})
    data.setup()
    run = folder / f"{mislabelled}"
    plan = SubsetPlan(
        "ensemble", len(data.train_set), config["ensemble"]["fraction"], 0, config | {"part": mislabelled}
    )

    def fresh(seed: int) -> tuple[L.LightningModule, L.Trainer]:
        with quiet_lightning():
            L.seed_everything(seed, verbose=False)
            quiet: dict[str, Any] = dict.fromkeys(
                ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
            )
            return TextClassifier(**config["model"]["init_args"]), L.Trainer(**config["trainer"], **quiet)

    checkpoints, _ = train_ensemble(fresh, data, plan, config["ensemble"]["size"], run / "checkpoints")
    model = TextClassifier(**config["model"]["init_args"]).eval()
    trak = TRAK(model, config["task"], run, projector=config["projector"])
    trak.featurize(data.train_dataloader(), [str(path) for path in checkpoints])
    rows = [
        [features.train.column(name) for name in ("loss_weight", "output")]
        for features in load_features(trak.run, trak.store, targets="train", train="train")
    ]
    weight, output = (np.mean([part[place] for part in rows], axis=0) for place in (0, 1))
    influence = trak.self_influence()
    ranked = {
        "self-influence": influence.self_influence,
        "leverage": influence.leverage,
        "1 − p of the label (loss)": weight,
        "margin, lowest first": -output,
        "random": np.random.default_rng(0).random(len(weight)),
    }
    table = Table(
        title=f"{data.planted.sum()} of {len(data.planted)} glosses mislabelled, {len(checkpoints)} checkpoints"
    )
    for column in ("ranked by", "AUC", "precision"):
        table.add_column(column)
    for name, values in ranked.items():
        first = np.argsort(-values)[: data.planted.sum()]
        table.add_row(name, f"{roc_auc_score(data.planted, values):.3f}", f"{data.planted[first].mean():.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    auto_cli(main)
