"""Training samples that may be mislabeled, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trak_lightning.report.accuracy import Predict
from trak_lightning.report.contents import Finding, Suspect
from trak_lightning.report.samples import Samples
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.self_influence import columns, held_out, held_out_mean, self_influence

SUSPECTS = 40


@dataclass(frozen=True)
class Suspicion:
    """Suspects, how they were found, and the sentence about them at the top of the page."""

    suspects: tuple[Suspect, ...]
    text: str
    finding: Finding


def suspicion(
    checkpoints: Sequence[CheckpointFeatures], train: Samples, meaning: Meaning, predict: Predict
) -> Suspicion:
    """Rank training samples by the errors of checkpoints that were not trained on them; by self-influence if there are none."""
    stored = [columns(features.train) for features in checkpoints]
    unseen = held_out(checkpoints)
    errors = held_out_mean(np.stack([meaning.errors(*each) for each in stored]), unseen)
    blind = bool(unseen.any())
    order = np.argsort(-(errors if blind else self_influence(checkpoints).self_influence), kind="stable")[:SUSPECTS]
    found = predict(order.tolist()) if meaning.probability == "output" else None
    mean = None if found is None else held_out_mean(found, unseen[:, order])
    who = "models not trained on it" if blind else "models trained on it"
    suspects = []
    for place, index in enumerate(order):
        shown = train.show(int(index))
        says, why = None, f"error of {who}: {errors[index]:.3g}"
        if mean is not None:
            best = int(mean[place].argmax())
            says, why = train.class_name(best), f"{who}: {train.class_name(best)} {mean[place, best]:.0%}"
        suspects.append(Suspect(int(index), shown, shown.label, says if says != shown.label else None, why, False))
    text = (
        f"ranked by the errors of {who}" if blind else "ranked by self-influence: fitted mainly because of themselves"
    )
    return Suspicion(
        tuple(suspects), text, Finding(f"{len(suspects)}", "training examples deserve a second look.", "suspects")
    )
