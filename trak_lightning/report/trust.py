"""How far to trust the scores: evaluations, the choice of λ, and the spectrum of the Gram matrix."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trak_lightning.errors import IncompatibleRunError, docs_page
from trak_lightning.evaluation.drawing import SERIES, axes, inline_svg
from trak_lightning.evaluation.result import Result, lds_of, measured_lds, read_result
from trak_lightning.report.contents import Headline, Panel
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_number
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.lds_in_words import UNCERTAIN, UNKNOWN, in_words
from trak_lightning.scoring.linear_system import System
from trak_lightning.scoring.scores import Scores


def read_results(run: RunDirectory) -> tuple[list[tuple[str, Result]], list[str]]:
    """Read every stored result of `trak evaluate` by its name, the linear datamodeling score first, and say what is outdated.

    Raises:
        CorruptFileError: a file is damaged.
    """
    results, notes = [], []
    for path in sorted(run.evaluation.glob("*.json"), key=lambda path: (not path.name.startswith("lds-"), path.name)):
        try:
            results.append((path.stem, read_result(path)))
        except IncompatibleRunError as error:
            notes.append(f"An evaluation is not shown: {error}")
    return results, notes


def evaluated(name: str, result: Result) -> Panel:
    """Show the result of an evaluation, with the name of its targets."""
    title = f"{result.title} ({name.removeprefix(f'{result.kind}-')})"
    return Panel(title, result.text, result.svg(name), result.columns, result.rows)


class Trusted(NamedTuple):
    """How far to trust the scores: a card, and what the section says where nothing was evaluated."""

    headline: Headline
    text: str


def trusted(run: RunDirectory, scores: Scores) -> Trusted:
    """Say how far to trust the scores: as measured by retraining, or as the checkpoints predict."""
    result = measured_lds(run, scores)
    headline = _headline(result, scores)
    number = headline.number != "Trust"
    texts = [] if number and scores.trust is not None else [f"Trust {headline.text}"]
    if scores.trust is not None and (number or result is not None):
        texts.append(f"Predicted from the checkpoints, {scores.trust['sentence']}.")
    text = " ".join(texts)
    if scores.trust is None and scores.trust_unknown is not None:
        text += f" A prediction from the checkpoints is {scores.trust_unknown}."
    if run.config.exists():
        text += " trak evaluate measures it by retraining, where the model has a training_step."
    elif (page := docs_page("evaluation", "Models that you train yourself")) not in text:
        # `trak evaluate` has no model, data and Trainer of a run that was made in Python.
        text += f" Models that you train on other halves of the data measure it ({page})."
    return Trusted(headline, text)


def _headline(result: Result | None, scores: Scores) -> Headline:
    if result is None and scores.trust is not None:
        lds, low, high = (scores.trust[name] for name in ("lds", "low", "high"))
        word = in_words(lds, low, high)
        if word in (UNCERTAIN, UNKNOWN):  # the number would be read, and its interval would not
            return Headline("Trust", f"is {scores.trust['sentence']}.", "trust")
        return Headline(
            f"{lds:.2f}",
            f"is the rank correlation (at best 1) with retrained models that the checkpoints predict: {word} "
            f"(95 % interval {low:.2f} … {high:.2f}).",
            "trust",
        )
    if result is None:
        return Headline("Trust", "in the scores has not been measured: retrained models tell.", "trust")
    models, (lds, low, high) = result.values["num_models"], lds_of(result)
    if np.isnan([lds, low]).any():
        return Headline("Trust", f"cannot be measured with {models} retrained models: evaluate with more.", "trust")
    if (word := in_words(lds, low, high)) == UNKNOWN:
        return Headline(
            "Trust",
            f"is {word}: the rank correlation with {models} retrained models (LDS) is anywhere in [{low:.2f}, {high:.2f}]. Evaluate with more.",
            "trust",
        )
    return Headline(
        f"{lds:.2f}",
        f"is the rank correlation (at best 1) of what the scores predict with {models} retrained models: {word} "
        f"(95 % interval {low:.2f} … {high:.2f}).",
        "trust",
    )


def numerics(scoring: Mapping[str, Any], checkpoints: Sequence[CheckpointFeatures]) -> Iterator[Panel]:
    """Show how λ was chosen, if by calibration, and the spectrum that it cuts; `scoring` is from the score file."""
    values, traces = scoring.get("regularization", []), scoring.get("trace", [])
    if curve := scoring.get("curve"):
        chosen = values[0] / traces[0] if values and traces and traces[0] and values[0] else None
        yield Panel(
            "How was λ chosen?",
            "Scores made from the other checkpoints predict the output of each checkpoint on training examples, since the "
            "subset that it was trained on is known. The curve shows how well they do for each strength of the regularization λ.",
            _calibration_curve(curve["relative"], curve["lds"], chosen),
        )
    if scoring.get("weights") and values:
        yield _spectrum(System(checkpoints[0], scoring["weights"]).spectrum(), float(values[0]))


def _calibration_curve(relative: Sequence[float], curves: Mapping[str, Sequence[float]], chosen: float | None) -> str:
    """Linear datamodeling score at each λ/trace that was tried."""
    with axes("calibration") as (figure, axis):
        for name, values in curves.items():
            axis.plot(relative, values, "o-", label=f"weights: {name}")
        if chosen is not None:
            axis.axvline(chosen, color=SERIES[1], linestyle="--", label=f"chosen: trace/{1 / chosen:.0f}")
        axis.set_xscale("log")
        axis.set_xlabel("λ / trace(ΦᵀWΦ)")
        axis.set_ylabel("correlation")
        axis.legend()
        return inline_svg("calibration", figure, "Correlation of predicted and observed outputs, by λ")


def _spectrum(values: Array, regularization: float) -> Panel:
    positive = np.sort(values[values > 0])[::-1]
    dimension = float((positive / (positive + regularization)).sum())
    # A few hundred points of the line look the same as thousands.
    places = np.unique(np.geomspace(1, len(positive), 400).astype(int)) - 1
    with axes("spectrum") as (figure, axis):
        axis.plot(places + 1, positive[places], label="eigenvalues of ΦᵀWΦ")
        if regularization > 0:
            axis.axhline(
                regularization, color=SERIES[1], linestyle="--", label=f"λ = {format_number(regularization, 3)}"
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(positive[0] * 1e-10, positive[-1]) / 2)
        axis.set_xlabel("rank")
        axis.legend()
        svg = inline_svg("spectrum", figure, "Eigenvalues of the Gram matrix in descending order")
    return Panel(
        "How many directions matter?",
        "Eigenvalues of the Gram matrix ΦᵀWΦ of the first checkpoint. Directions above the dashed line are used, those below "
        f"are damped as noise. The effective dimension Σ s/(s + λ) is {dimension:.0f} of {len(values):,}. If it is close to k or to "
        "the number of training examples, a larger k or λ may give better scores.",
        svg,
    )
