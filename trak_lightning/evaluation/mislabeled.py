"""How early does self-influence find samples that are known to be mislabelled? No torch."""

from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.result import Result, Series
from trak_lightning.scoring.base import Array


def read_positions(source: str, datamodule: Any, num_samples: int) -> Array:
    """Positions of mislabelled training samples, from a ``.npy`` file (integers, or a mask) or the DataModule's ``mislabeled``.

    Raises:
        DataError: there are none, or they belong to other data.
    """
    if source == "data":
        found = getattr(datamodule, "mislabeled", None)
        if found is None:
            raise DataError(
                f"{type(datamodule).__name__} has no attribute 'mislabeled' with the positions of mislabelled training samples; give it "
                "one, or name a .npy file under evaluation.mislabeled"
            )
        positions = np.asarray(found)
    else:
        try:
            positions = np.load(Path(source), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"evaluation.mislabeled must be a .npy file of positions or 'data'; {source}: {error}"
            ) from error
    if positions.dtype == bool and positions.shape == (num_samples,):
        positions = np.flatnonzero(positions)
    if positions.ndim != 1 or positions.dtype.kind not in "iu" or not 0 < len(positions) < num_samples:
        raise DataError(
            f"mislabelled samples must be some, not all, of {num_samples} positions, got {positions.dtype} of shape {positions.shape}"
        )
    if not 0 <= positions.min() <= positions.max() < num_samples:
        raise DataError(
            f"mislabelled sample {int(positions.max())} is out of range: the training set has samples 0 … {num_samples - 1}"
        )
    return np.unique(positions)


def auc(suspicion: Array, positives: Array) -> float:
    """Probability that a sample of `positives` (mask) has the larger value than another; ties count half."""
    from scipy.stats import rankdata

    ranks, count = rankdata(suspicion), int(positives.sum())
    return float((ranks[positives].sum() - count * (count + 1) / 2) / (count * (len(suspicion) - count)))


def mislabeled(suspicion: dict[str, Array], positions: Array, request: dict[str, Any]) -> Result:
    """AUC and precision among the first k, for every kind of suspicion: name → (n,), larger for more suspicious samples."""
    n = len(next(iter(suspicion.values())))
    known = np.zeros(n, dtype=bool)
    known[positions] = True
    at = sorted({min(k, n) for k in (10, 50, len(positions))})
    rows, series, values = [], [], {}
    for name, of_sample in suspicion.items():
        hits = known[np.argsort(-of_sample, kind="stable")]
        area = auc(of_sample, known)
        precision = [float(hits[:k].mean()) for k in at]
        rows.append((name, f"{area:.3f}", *(f"{each:.2f}" for each in precision)))
        places = np.unique(np.linspace(0, n, 101).astype(int))
        series.append(
            Series(
                name,
                tuple(float(place / n) for place in places),
                tuple(float(hits[:place].sum() / known.sum()) for place in places),
            )
        )
        values[name] = {"auc": area, "precision": dict(zip(map(str, at), precision, strict=True))}
    return Result(
        "mislabeled",
        f"Mislabelled samples: {len(positions)} of {n} are known",
        "Training examples were inspected in the order of each measure, most suspicious first. AUC is the probability that a "
        "mislabelled example comes before a correct one; precision at k is the share of mislabelled ones among the first k. The curve "
        "shows the share that was found after inspecting part of the training set.",
        f"AUC {rows[0][1]} by self-influence, precision {rows[0][-1]} at {len(positions)}",
        request,
        ("by", "AUC", *(f"precision at {k}" for k in at)),
        tuple(rows),
        values,
        tuple(series),
        "share of the training set inspected",
        "share of mislabelled examples found",
    )
