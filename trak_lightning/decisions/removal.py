"""How outputs of targets would change if a set of training samples had not been there, and how people are told. No torch.

Shapes: m targets, s removed samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trak_lightning.errors import docs_page, needed_for
from trak_lightning.run.formatting import format_number, format_with_error
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.display import (
    RENDER,
    RENDER_IN_PYTHON,
    ShowsLines,
    print_table,
    print_to_read,
    sample_columns,
)

LARGEST = 0.2
"""Share of the training set up to which answers were compared with retraining (docs/benchmarks.md)."""

FAR = 2.5
"""How many times the summed scores the step may be before measured changes were clearly larger than predicted ones, or smaller."""

ALONE = 0.95
"""The leverage from which on the sign of measured changes was another than predicted, in a regression without all but one sample of a category."""


@dataclass(frozen=True)
class Removal:
    """How outputs of targets would change if a set of training samples had not been there: f(θ₋S) − f(θ)."""

    samples: Array
    """(s,) positions of the removed training samples, ascending."""
    change: Array
    """(m,) by one Newton step for the set, averaged over checkpoints; `summed` where f is minus the loss, since the step needs a curvature."""
    spread: Array
    """(m,) standard error of `change` over checkpoints; NaN with one."""
    summed: Array
    """(m,) minus the sum of scores of the set, with the weights of the step: what the samples would do one by one."""
    outputs: Array
    """(m,) f, averaged over checkpoints."""
    leverage: float
    """In 0 … 1: the largest share, over all directions and checkpoints, of the fit that comes from the set."""
    num_train: int
    has_curvature: bool = True
    """Whether the curvature of the loss as a function of f is known; the size of changes depends on it."""
    meaning: Meaning = field(default_factory=Meaning)
    """What f means."""
    num_checkpoints: int = 1
    """Of how many checkpoints the numbers are means."""
    targets: ShowsLines | None = field(default=None, compare=False)
    """Shows the targets, if the data is at hand; left behind by pickle."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "targets": None}

    def __repr__(self) -> str:
        return f"Removal of {len(self.samples)} of {self.num_train} training samples: {len(self.change)} outputs {self._range}; {self._caution}"

    @property
    def _range(self) -> str:
        if self.signs_only:
            return f"change, {int((self.change < 0).sum())} of them downwards"
        return f"change by {format_number(self.change.min(), 3, '+')} … {format_number(self.change.max(), 3, '+')}"

    def show(self, k: int = 10) -> None:
        """Print how to read the answer, what happens to all targets, and up to k targets each whose output falls and rises most, with labels and
        text if at hand: of those that `TRAK.score` scored in this process."""
        print(f"Without {len(self.samples)} of {self.num_train} training samples")
        print(f"Caution: {self.caution}")
        print(f"Changes: {self.describe()}")
        self.print_targets(self.sides(k), self.targets, render=RENDER_IN_PYTHON)

    @property
    def stretch(self) -> float:
        """How many times the summed scores the change is, in the mean over targets: 1 for samples that are not alike."""
        summed = float(np.abs(self.summed).sum())
        return float(np.abs(self.change).sum()) / summed if summed else 1.0

    @property
    def reliable(self) -> bool:
        """Whether sets of this size, and as replaceable, were compared with retraining; if not, not even signs are to be trusted."""
        return self._share <= LARGEST and (self.leverage <= ALONE or not self.has_curvature)

    @property
    def signs_only(self) -> bool:
        """Whether no number of the answer is shown to people, since the leverage of the set is near 1: changes are then of any size. `to_json`, `to_frame` and the
        attributes have them."""
        return not self.reliable and self.leverage > ALONE and self.has_curvature

    @property
    def caution(self) -> str:
        """Say how to read the changes: whether the set is too large, and what of order, signs and sizes was right in trials."""
        return f"{self._caution} ({docs_page('decisions', 'What if these had not been there?')})"

    @property
    def trust(self) -> str:
        """`caution`, by its name of earlier versions."""
        return self.caution

    @property
    def _share(self) -> float:
        return len(self.samples) / self.num_train

    @property
    def _caution(self) -> str:
        if self._share > LARGEST:
            return f"too large to be trusted: {100 * self._share:.1f} % of the training set, compared with retraining up to {100 * LARGEST:.0f} %"
        if not self.has_curvature:
            return "trust the order, not the size: f is minus the loss, changes are sums of scores, and measured ones were about half as large"
        if self.leverage > ALONE:
            return (
                f"not to be trusted for targets like these samples: hardly anything like them is left, and even signs were wrong in a trial "
                f"(leverage {self.leverage:.2f})"
            )
        if self.stretch > FAR and len(self.samples) == 1:
            return (
                f"trust the order, not the size: the models fit this sample by itself (leverage {self.leverage:.2f}), and measured changes were from "
                "a seventh of these to several times as large"
            )
        if self.stretch > FAR:
            return (
                "trust the order, not the size: these samples stand in for each other, and measured changes were from a seventh of these to several "
                "times as large"
            )
        return "trust the order more than the size: measured changes were 0.5 to 2 times as large in most trials"

    def probabilities(self, meaning: Meaning | None = None) -> tuple[Array, Array] | None:
        """Return the probability of the right answer of each target, (m,), before and after: that of the mean output f.

        None if it does not follow from f alone. `meaning`: what f means, if not what `Removal.meaning` says.
        """
        meaning = meaning or self.meaning
        if meaning.probability not in ("output", "exp"):
            return None
        unused = np.zeros_like(self.outputs)
        before, after = (meaning.probabilities(f, unused) for f in (self.outputs, self.outputs + self.change))
        return None if before is None or after is None else (before, after)

    def order(self) -> Array:
        """Return the targets (m,) in the order of their change, those that lose most first."""
        return np.argsort(self.change, kind="stable")

    def sides(self, k: int) -> tuple[list[int], list[int]]:
        """Return up to k targets whose output falls most, and up to k whose output rises most."""
        order = self.order()
        falls, rises = order[self.change[order] < 0], order[self.change[order] > 0][::-1]
        return falls[:k].tolist(), rises[:k].tolist()

    def describe(self) -> str:
        """Say what happens to all targets, and what the numbers are of several checkpoints."""
        change, meaning, several = self.change, self.meaning, self.num_checkpoints > 1
        falls, rises = int((change < 0).sum()), int((change > 0).sum())
        averaged = f" (mean over {self.num_checkpoints} checkpoints)" * several
        said = f"f, {meaning.output}{averaged}, falls for {falls} of {len(change)} targets and rises for {rises}"
        if self.signs_only:
            return said
        said += f", on average by {format_number(change.mean(), 2, '+')}"
        if (found := self.probabilities()) is None:
            return said
        said += f"; {meaning.probability_name}{' of the mean f' * several}"
        if meaning.probability != "output":
            return f"{said} is next to it"
        before, after = (each > 0.5 for each in found)
        below, above = int((before & ~after).sum()), int((after & ~before).sum())
        if not below + above:
            return f"{said} crosses 0.5 for none"
        return f"{said} falls below 0.5 for {below} and rises above it for {above}"

    def print_targets(
        self, sides: tuple[Sequence[int], Sequence[int]], samples: ShowsLines | None, *, render: str = RENDER
    ) -> None:
        """Print a table of each of the `sides`, with label and line where `samples` show them, and what makes these readable; `render` as for
        `to_read`."""
        for title, targets in zip(("f falls most for", "f rises most for"), sides, strict=True):
            if targets:
                self._print(title, targets, samples)
        print_to_read([target for targets in sides for target in targets], samples, render)

    def print_target(self, target: int, samples: ShowsLines | None, *, render: str = RENDER) -> None:
        """Print the row of one target, as `print_targets` does."""
        self._print("", [target], samples)
        print_to_read([target], samples, render)

    def _print(self, title: str, targets: Sequence[int], samples: ShowsLines | None) -> None:
        """Print a row for each target, with what is shown of its change."""
        columns = {"target": [str(target) for target in targets], **self._columns(targets)}
        numbers = range(len(columns))
        columns |= sample_columns(targets, samples)
        if title:
            print(title)
        print_table(tuple(columns), zip(*columns.values(), strict=True), numeric=numbers)

    def _columns(self, targets: Sequence[int]) -> dict[str, list[str]]:
        """The columns on outputs, with few digits where these would not be right, and none where not even the size would be."""
        if self.signs_only:
            words = {-1: "falls", 0: "none", 1: "rises"}
            return {"change": [words[int(np.sign(self.change[target]))] for target in targets]}
        digits = 3 if self.reliable else 2
        change = {
            "change": [
                format_with_error(self.change[target], self.spread[target])
                if self.reliable
                else format_number(self.change[target], 1, "+")
                for target in targets
            ]
        }
        if self.meaning.number:  # f is what is predicted
            columns = {"prediction": _before_and_after(self.outputs, self.outputs + self.change, targets, digits)}
            columns |= change
        else:
            columns = {"f now": [format_number(self.outputs[target], digits) for target in targets], **change}
        if (found := self.probabilities()) is not None:
            before, after = ([_probability(each[target]) for target in targets] for each in found)
            # Not the mean of p over checkpoints, which scores[i] and `trak top` show of the same target.
            name = self.meaning.probability_name + " of mean f" * (self.num_checkpoints > 1)
            columns[name] = [f"{low} → {high}" for low, high in zip(before, after, strict=True)]
        return columns

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each target, those that lose most first: target, output, change, spread, output_after, where they
        follow from f alone probability and probability_after, and label if the data is at hand.

        Raises:
            DataError: pandas is not installed.
        """
        with needed_for("to_frame", "pandas"):
            import pandas as pd
        columns: dict[str, Any] = {
            "target": np.arange(len(self.change)),
            "output": self.outputs,
            "change": self.change,
            "spread": self.spread,
            "output_after": self.outputs + self.change,
        }
        if (found := self.probabilities()) is not None:
            columns["probability"], columns["probability_after"] = found
        frame = pd.DataFrame(columns).iloc[self.order()].reset_index(drop=True)
        if self.targets is not None:
            frame["label"] = [self.targets.show(target).label for target in frame["target"].tolist()]
        return frame

    def target_to_json(self, target: int) -> dict[str, Any]:
        """Return what is known of one target as JSON values."""
        spread = float(self.spread[target])
        found: dict[str, Any] = {"index": target, "output": float(self.outputs[target])}
        found |= {"change": float(self.change[target]), "spread": None if np.isnan(spread) else spread}
        if (probabilities := self.probabilities()) is not None:
            found["probability"], found["probability_after"] = (float(each[target]) for each in probabilities)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "samples": self.samples.tolist(),
            "change": self.change.tolist(),
            "spread": [None if np.isnan(each) else float(each) for each in self.spread],
            "summed": self.summed.tolist(),
            "outputs": self.outputs.tolist(),
            "leverage": self.leverage,
            "stretch": self.stretch,
            "caution": self.caution,
        }


def _probability(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else format_number(p, 2)


def _before_and_after(before: Array, after: Array, places: Sequence[int], digits: int) -> list[str]:
    return [f"{format_number(before[each], digits)} → {format_number(after[each], digits)}" for each in places]
