"""Training samples that may be mislabeled, in words."""

from dataclasses import dataclass

from scipy.special import softmax

from trak_lightning.decisions.suspects import Suspects
from trak_lightning.report.contents import Headline, ShownSuspect
from trak_lightning.report.samples import Samples
from trak_lightning.run.formatting import format_percent, format_significant

SUSPECTS = 40


@dataclass(frozen=True)
class Suspicion:
    """Suspects, how they were found, and the sentence about them at the top of the page."""

    suspects: tuple[ShownSuspect, ...]
    text: tuple[str, str]
    """What was found, in sentences, and what the order is by."""
    headline: Headline

    @classmethod
    def of(cls, found: Suspects, train: Samples) -> "Suspicion":
        """Show the first suspects, and which of them are before the cut."""
        n, predicted = len(found.ranking), found.predictions
        finding = found.finding[:1].upper() + found.finding[1:]
        count = min(n, max(SUSPECTS, min(len(found), 2 * SUSPECTS)))
        suspects = []
        for place, each in enumerate(found.first(count)):
            shown, says = train.show(each.index), None
            if predicted is not None and each.says != each.label:
                says = f"{each.says} ({format_percent(softmax(predicted.log_probabilities[each.index]).max())})"
            label = shown.label if each.label is None else each.label
            if found.numbers is not None and label is not None:
                label, says = format_significant(label), None if each.says is None else format_significant(each.says)
            why = each.why
            if each.error is not None and found.numbers is None:
                why = ", ".join(filter(None, [f"error {format_significant(each.error)}", why]))
            suspects.append(ShownSuspect(each.index, shown, label, says, why, place < len(found)))
        return cls(tuple(suspects), (finding, f"most suspicious first, by {found.basis}"), _headline(found))


def _headline(found: Suspects) -> Headline:
    """The finding in a few words. The number of samples is none: without a cut, it is which sample is the most suspicious."""
    n, several = len(found.ranking), found.has_several
    if not found.has_cut:
        worst = int(found.ranking[0])
        return Headline(
            f"#{worst}",
            f"is the training example with the largest error, {format_significant(float(found.suspicion[worst]))}. The ranking has the next ones.",
            "suspects",
        )
    if not found.size:
        return Headline(
            "0",
            f"labels are listed as wrong: none is certain enough for {format_percent(found.fdr)} false alarms. Others may be wrong too.",
            "suspects",
        )
    of = f"of {n:,} {'training examples' if several else 'labels'}"
    if found.expected is None:
        return Headline(f"{found.size:,}", f"{of} to review first; no share of false alarms is promised.", "suspects")
    which = "have a label that is likely wrong" if several else "are likely wrong"
    return Headline(
        f"{found.size:,}", f"{of} {which}, about {format_percent(found.expected)} of them false alarms.", "suspects"
    )
