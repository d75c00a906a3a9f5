"""How right are the models about the targets? In one sentence."""

import numpy as np

from trak_lightning.decisions.outcome import Outcome
from trak_lightning.report.contents import Headline
from trak_lightning.run.formatting import format_number, format_percent, format_significant


def headline(outcome: Outcome) -> Headline:
    """Say in one sentence how right the models are."""
    m, name = len(outcome.output), outcome.meaning.probability_name
    if outcome.meaning.number:
        label = outcome.output + outcome.residual
        return Headline(
            f"± {format_significant(float(np.sqrt(np.mean(outcome.residual**2))), 3)}",
            f"is the error of the predictions of {m:,} targets (root mean square), which themselves vary by "
            f"± {format_significant(float(label.std()), 3)}.",
            "targets",
        )
    if outcome.probability is None:
        return Headline(
            format_number(float(outcome.output[outcome.counted].mean()), 3),
            f"is the mean over {int(outcome.counted.sum()):,} targets of {outcome.meaning.output}.",
            "targets",
        )
    doubtful = [outcome.correct(position) for position in outcome.doubtful.tolist()]
    if outcome.predicted and None not in doubtful:
        return _share(outcome, doubtful.count(False))
    if outcome.meaning.probability == "output":
        below = int((outcome.probability <= 0.5).sum())
        return Headline(f"{below:,}", f"of {m:,} targets have {name} below 50 %, and may be mistakes.", "targets")
    m, mean = int(outcome.counted.sum()), float(outcome.probability[outcome.counted].mean())
    return Headline(
        f"{mean:.2g}" if mean < 0.01 else format_percent(mean), f"is the mean over {m:,} targets of {name}.", "targets"
    )


def _share(outcome: Outcome, mistakes: int) -> Headline:
    """Say how many predictions are right, of which `mistakes` targets have a wrong one."""
    m, any_of = len(outcome.output), next(iter(outcome.predicted.values()))
    if not any_of.several:
        wrong = "1 is a mistake" if mistakes == 1 else f"{mistakes:,} are mistakes"
        return Headline(
            format_percent((m - mistakes) / m, 1), f"of {m:,} targets are predicted correctly; {wrong}.", "targets"
        )
    count = sum(len(each.known) for each in outcome.predicted.values())
    slips = sum(len(each.wrong) for each in outcome.predicted.values())
    return Headline(
        format_percent((count - slips) / count, 1),
        f"of {count:,} {any_of.term or 'label'}s are predicted correctly; {mistakes:,} of {m:,} targets have a mistake.",
        "targets",
    )
