"""Remove the most helpful samples and retrain: how far does the output fall, and when does the prediction flip?

Counterfactual curves and brittleness (Park et al. 2023, section 4; Ilyas et al. 2022). No torch.
"""

from collections.abc import Mapping

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.figures import Curves, Series
from trak_lightning.evaluation.lds import bootstrap_mean
from trak_lightning.evaluation.result import Result
from trak_lightning.retraining.outputs import Retrained
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, evenly
from trak_lightning.seeds import derive_seed

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the training set that counterfactual curves remove."""

MOST = 0.5
"""Largest share of the training set to remove to flip a prediction."""

Rankings = Mapping[str, Array]
"""Name → (t, n): for each target the training samples in the order of removal."""


def choose_targets(kind: str, outputs: Array, meaning: Meaning, count: int) -> Array:
    """Choose at most `count` targets, spread evenly; returns their positions.

    Where f > 0 says that the models get a target right, those are chosen that they do. Other outputs (numbers, sums of log-odds,
    losses) can fall, but no prediction flips at 0.

    Raises:
        DataError: the models get no target right, or the evaluation is not defined for this output.
    """
    if meaning != Meaning() and meaning.probability != "output":
        if kind == "brittleness":
            raise DataError(
                f"brittleness needs an output that is negative where the model is wrong, such as the log-odds of a label; that of this "
                f"run is the {meaning.output}. Use counterfactual."
            )
        return evenly(len(outputs), count)
    right = np.flatnonzero(outputs > 0)
    if not len(right):
        raise DataError(
            f"the models get the label of none of {len(outputs)} targets right (mean output f > 0), so there is no prediction to "
            "undo by removing samples. Train longer, or choose other targets."
        )
    return right[evenly(len(right), count)]


def rankings(scores: Array, similarity: Array, seed: int) -> dict[str, Array]:
    """Order training samples for removal, (t, n) each: by scores (t, n), by similarity (t, n), largest first, and at random."""
    generators = [np.random.default_rng(derive_seed(seed, "removal", row)) for row in range(len(scores))]
    return {
        "scores": np.argsort(-scores, axis=1, kind="stable"),
        "gradient similarity": np.argsort(-similarity, axis=1, kind="stable"),
        "random": np.stack([generator.permutation(scores.shape[1]) for generator in generators]),
    }


def counterfactual(ordered: Rankings, targets: Array, retrained: Retrained, *, seed: int) -> Result:
    """Measure the mean fall of f after removing the first k samples of each ranking, for several k."""
    n = retrained.num_samples
    sizes = sorted({max(1, round(fraction * n)) for fraction in FRACTIONS})
    whole = retrained.without([[]])[0, targets]
    removed = [order[row, :k] for order in ordered.values() for k in sizes for row in range(len(targets))]
    outputs = retrained.without(removed).reshape(len(ordered), len(sizes), len(targets), -1)
    own = np.arange(len(targets))
    falls = whole - outputs[:, :, own, targets]  # (rankings, sizes, t)
    series, rows = [], []
    for name, fall in zip(ordered, falls, strict=True):
        found = np.array([bootstrap_mean(values, seed=seed) for values in fall])
        mean, low, high = ((0.0, *(float(value) for value in column)) for column in found.T)
        series.append(Series(name, (0.0, *map(float, sizes)), mean, low, high))
        rows.append((name, *(f"{value:.2f}" for value in found[:, 0])))
    best, chance = series[0].y[-1], series[-1].y[-1]
    return Result(
        "counterfactual",
        f"Counterfactuals: fall of the output f of {len(targets)} targets without their first k samples",
        f"For each of {len(targets)} targets, the first k training examples of each ranking were removed and the model retrained "
        f"without them ({retrained.repeats} × with different seeds). The faster the output falls, the more these examples mattered. Bands "
        "are 95 % intervals over targets.",
        f"f falls by {best:.2f} without the first {sizes[-1]}, by {chance:.2f} without as many random ones",
        ("removed by", *(f"k = {k}" for k in sizes)),
        tuple(rows),
        {
            "sizes": sizes,
            "targets": targets.tolist(),
            "falls": {name: fall.tolist() for name, fall in zip(ordered, falls, strict=True)},
        },
        Curves(tuple(series), "training examples removed", "fall of the output f"),
    )


def brittleness(ordered: Rankings, targets: Array, retrained: Retrained) -> Result:
    """Find the fewest removals that make a target's label less likely than not (mean f < 0), by doubling and bisection."""
    most = max(1, int(MOST * retrained.num_samples))
    fewest = {name: _fewest(order, targets, retrained, most) for name, order in ordered.items()}
    grid = np.unique(np.geomspace(1, most, 40).astype(int))
    rows, series = [], []
    for name, found in fewest.items():
        flipped = found <= most
        median = float(np.median(np.where(flipped, found, np.inf)))
        rows.append(
            (name, f"{flipped.sum()} of {len(targets)}", f"{median:.0f}" if np.isfinite(median) else f"> {most}")
        )
        series.append(Series(name, tuple(map(float, grid)), tuple(float((found <= k).mean()) for k in grid)))
    return Result(
        "brittleness",
        f"Brittleness: fewest removals that flip one of {len(targets)} predictions",
        "For targets that the models get right: how many training examples must be removed, in the order of each ranking, until "
        f"the output of the retrained model (mean of {retrained.repeats}) falls below 0? Found by doubling and bisection, up to {most} "
        "removals. The curve shows the share of targets flipped by then.",
        f"median of {rows[0][2]} removals by scores, {rows[-1][2]} at random",
        ("removed by", "flipped", "median removals"),
        tuple(rows),
        {
            "targets": targets.tolist(),
            "most": most,
            "fewest": {name: [int(k) if k <= most else None for k in found] for name, found in fewest.items()},
        },
        Curves(tuple(series), "training examples removed", "share of targets flipped", x_log=True),
    )


def _fewest(order: Array, targets: Array, retrained: Retrained, most: int) -> Array:
    """Smallest k, up to one part in eight, whose removal flips each target, (t,); ``most + 1`` where none was found."""
    low, high = np.zeros(len(targets), dtype=int), np.full(len(targets), most + 1)
    size = np.minimum(8, most) * np.ones(len(targets), dtype=int)
    active = np.arange(len(targets))
    while len(active):
        outputs = retrained.without([order[row, : size[row]] for row in active])
        flips = outputs[np.arange(len(active)), targets[active]] < 0
        high[active[flips]] = size[active[flips]]
        low[active[~flips]] = size[active[~flips]]
        doubled = np.where(high > most, np.minimum(2 * np.maximum(low, 1), most), (low + high) // 2)
        size = doubled
        done = np.where(high > most, low >= most, (high - low) <= np.maximum(1, high // 8))
        active = active[~done[active]]
    return high
