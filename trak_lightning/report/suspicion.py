"""Training samples that may be mislabeled, in words."""

from dataclasses import dataclass

from scipy.special import softmax

from trak_lightning.decisions.suspects import Suspects
from trak_lightning.report.contents import Headline, ShownSuspect
from trak_lightning.report.samples import Samples
from trak_lightning.run.formatting import format_significant

SUSPECTS = 40


@dataclass(frozen=True)
class Suspicion:
    """Suspects, how they were found, and the sentence about them at the top of the page."""

    suspects: tuple[ShownSuspect, ...]
    text: str
    headline: Headline

    @classmethod
    def of(cls, found: Suspects, train: Samples) -> "Suspicion":
        """Show the first suspects, and which of them are before the cut."""
        n, predicted = len(found.ranking), found.predictions
        count = min(n, max(SUSPECTS, min(len(found), 2 * SUSPECTS)))
        suspects = []
        for place, each in enumerate(found.first(count)):
            shown, says = train.show(each.index), None
            if predicted is not None and each.says != each.label:
                says = f"{each.says} ({softmax(predicted.log_probabilities[each.index]).max():.0%})"
            label = shown.label if each.label is None else each.label
            if found.numbers is not None and label is not None:
                label, says = format_significant(label), None if each.says is None else format_significant(each.says)
            suspects.append(ShownSuspect(each.index, shown, label, says, each.why, place < len(found)))
        if found.size:
            headline = Headline(f"{found.size:,}", found.describe().removeprefix(f"{found.size:,} ") + ".", "suspects")
        elif found.has_cut:
            headline = Headline(
                "0",
                f"labels can be called wrong with {found.fdr:.0%} false alarms, which does not mean that the labels are right. {found.how_far or 'Review the ranking below from the top'}.",
                "suspects",
            )
        else:
            headline = Headline(f"{n:,}", f"training examples ranked by {found.basis}.", "suspects")
        return cls(tuple(suspects), f"most suspicious first, by {found.basis}", headline)
