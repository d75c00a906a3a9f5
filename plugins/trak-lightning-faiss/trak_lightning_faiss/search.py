"""The best training samples of a target: candidates from an index, then their exact scores."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning import registry
from trak_lightning.errors import DataError, SettingsError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import CheckpointFeatures, Scorer, Tile, evenly
from trak_lightning.scoring.inner_products import InnerProducts, Moments
from trak_lightning.scoring.ranking import Ranking, RunningRanking, rank
from trak_lightning.scoring.rows import as_computed
from trak_lightning.scoring.score_run import load_features
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureRows, FeatureStore
from trak_lightning.stores.configured import open_store
from trak_lightning_faiss.directions import Array, joint_directions
from trak_lightning_faiss.index_file import Contents, Index, open_index

log = logging.getLogger(__name__)

SHARE = 0.999
"""Share of the variance of scores that the directions of the index hold."""
SAMPLE = 2**14
SAMPLE_NUMBERS = 2**26
"""Training samples from which these directions are found, at most, and the numbers in their features."""
LANES = 16
"""The number of directions is rounded up to a multiple of this, without which FAISS takes five times as long."""
CANDIDATES = 4
"""Candidates, at first, for every sample that is asked for."""
MARGIN = 6.0
"""How many root mean square errors of the index the scores that were not computed must be away from those that are returned."""


class Search:
    """The training samples with the best scores for a target, in a fraction of the time of scoring all of them.

    Scores are ``Σ_m u_m·x_m,i``: the target's features, multiplied by the inverse Gram matrix, times those of training sample i,
    multiplied by its coefficient. The index holds the training samples in the few directions that decide about such sums. It
    proposes candidates, whose exact scores are computed from the stored features. Exact and approximate scores of the candidates
    show how far off the index is: there are more candidates until those left out, were they off by `MARGIN` times as much, could
    not be among the best; or, where it comes to that, every training sample is scored. So the result is that of
    `trak_lightning.TRAK.score`.

    The index is built when it is first needed, and kept in ``RUN_DIR/factors/TRAIN/search/``. It is built again when features,
    checkpoints, or the scorer's λ have changed. The inverse Gram matrix is that of the rows that are stored when a `Search` is
    made: make another after rows were computed again.

    >>> search = Search("runs/x")
    >>> search.top(10, target=3).indices  # (10,)

    Args:
        run_dir: of a run with features.
        scorer: a scorer whose scores are sums of inner products, by name or with options: ``trak``, ``influence``, ``tracin``,
            ``leave_one_out``, ….
        train: the split of the training samples.
        store: where the features are; that of ``config.yaml``, or HDF5 files in `run_dir`, if None.

    Raises:
        IncompleteRunError: rows are missing.
        IncompatibleRunError: the index in the run directory belongs to another run.
        SettingsError: the scorer's scores are no sums of inner products.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        scorer: str | dict[str, Any] | Scorer = "trak",
        train: str = "train",
        store: FeatureStore | str | dict[str, Any] | None = None,
    ) -> None:
        self._run = RunDirectory(run_dir)
        self._store = store if isinstance(store, FeatureStore) else open_store(self._run, store)
        self._scorer: Scorer = registry.create("scorers", scorer)
        self._sets = load_features(self._run, self._store, targets=train, train=train)
        self._fitted = self._fit(self._sets)
        self._checkpoints = self._fitted.checkpoints
        self._scorings: dict[str, InnerProducts] = {}
        self._folder = self._run.path / "factors" / train / "search"

    @property
    def num_train(self) -> int:
        """n, the number of training samples."""
        return self._fitted.num_train

    @cached_property
    def index(self) -> Index:
        """The index, read or built."""
        train = [features.train.spec for features in self._checkpoints]
        made_from = {
            "checkpoints": [spec.checkpoint for spec in train],
            "num_samples": self.num_train,
            "dim": train[0].dim,
            "features": [fingerprint(features.gram_identity) for features in self._checkpoints],
            "scorer": self._scorer.state,
            "rules": self._scorer.rules(self._checkpoints),
            "scoring": self._fitted.settings,
            "share": SHARE,
        }
        name = fingerprint([self._scorer.state, SHARE])
        return open_index(self._folder / f"{name}.h5", made_from, self._contents)

    def top(self, k: int = 10, *, target: int, targets: str = "test") -> Ranking:
        """Return the k training samples with the largest scores for a target, best first.

        Args:
            k: number of training samples.
            target: position of the target in its split.
            targets: the split, whose features must be there: that of ``trak featurize``, or the name given to
                `TRAK.featurize_targets`.

        Raises:
            DataError: there is no such target, or no such k.
            IncompatibleRunError: the split has features of another projection.
        """
        return self._search("top", k, target, targets)

    def bottom(self, k: int = 10, *, target: int, targets: str = "test") -> Ranking:
        """Return the k training samples with the smallest scores for a target, smallest first; as `top`."""
        return self._search("bottom", k, target, targets)

    def scores(self, positions: npt.ArrayLike, *, target: int, targets: str = "test") -> Array:
        """Return the exact scores of a target at some training samples: (c,). They may be candidates that were found elsewhere."""
        scoring = self._scoring(targets, target)
        return self._exact(scoring, self._left(scoring, target), np.asarray(positions)).scores[0]

    # -----------------------------------------------------------------------------------------------------------------

    def _search(self, which: str, k: int, target: int, targets: str) -> Ranking:
        scoring = self._scoring(targets, target)
        n = self.num_train
        if not 1 <= k <= n:
            raise DataError(f"k must lie in 1 … {n}, the number of training samples, got {k}")
        left = self._left(scoring, target)
        sign = 1.0 if which == "top" else -1.0
        wanted = sum(u @ towards for u, towards in zip(left, self.index.targets, strict=True))
        count = CANDIDATES * k
        while count < n // CANDIDATES:
            near, found = self.index.rows.search(np.float32(sign * wanted)[None], count)
            order = np.argsort(found[0])  # so that rows are read in order, and ties are ordered by index
            positions, approximate = found[0][order], sign * near[0][order]
            tile = self._exact(scoring, left, positions)
            error = MARGIN * float(np.sqrt(np.mean((tile.scores[0] - approximate) ** 2)))
            last = np.sort(sign * tile.scores[0])[-k]
            if near[0][-1] + error <= last:
                columns = np.arange(count)
                spread = None if tile.spread is None else tile.spread(np.zeros_like(columns), columns)[None]
                return _first(rank(tile.scores, which, k, positions[None], spread))
            count *= CANDIDATES
        log.info(
            "search     all training samples are scored for target %d: the index cannot tell the best %d", target, k
        )
        ranking = RunningRanking(which, k)
        for tile in scoring.columns(target, target + 1, range(n)):
            ranking.add(tile.scores, tile.spread)
        return _first(ranking.ranking)

    def _exact(self, scoring: InnerProducts, left: list[Array], positions: Array) -> Tile:
        """Return the scores of one target at some training samples, (1, c)."""
        moments, coefficients = Moments(), self.index.coefficients[:, positions]
        for m, features in enumerate(scoring.checkpoints):
            rows = as_computed(features.train.take(positions))
            products = left[m].astype(rows.dtype)[None] @ rows.T
            if scoring.average == "scores":
                products *= coefficients[m].astype(rows.dtype)
            moments.add(products)
        return scoring.tile(moments, coefficients)

    def _scoring(self, targets: str, target: int) -> InnerProducts:
        """The scoring of the split of a target; Gram matrices, λ and factors are those that are kept in the run directory."""
        if targets not in self._scorings:
            self._scorings[targets] = self._fit(
                [
                    replace(features, targets=self._store.open(targets, features.train.spec.checkpoint))
                    for features in self._sets
                ]
            )
        found = self._scorings[targets]
        if not 0 <= target < found.num_targets:
            raise DataError(f"target {target} is out of range: {targets} has targets 0 … {found.num_targets - 1}")
        return found

    def _fit(self, sets: Sequence[CheckpointFeatures]) -> InnerProducts:
        fitted = self._scorer.fit(sets)
        if not isinstance(fitted, InnerProducts):
            raise SettingsError(
                f"scores of {type(self._scorer).__name__} are {type(fitted).__name__}, and an index finds the largest inner products: "
                "use trak without a threshold, influence, tracin, or another scorer whose scores are sums of inner products"
            )
        return fitted

    def _left(self, scoring: InnerProducts, target: int) -> list[Array]:
        """What the features of training samples are multiplied by, (k,) for each checkpoint."""
        return [
            part.left(features.targets.rows(target, target + 1).features)[0]
            for part, features in zip(scoring.parts, scoring.checkpoints, strict=True)
        ]

    # --- Building ----------------------------------------------------------------------------------------------------

    def _contents(self) -> Contents:
        first = self._checkpoints[0].train.spec
        log.info("index      of %d training samples is built in %s", first.num_samples, self._folder)
        count = min(SAMPLE, SAMPLE_NUMBERS // first.dim) // first.block_size
        sampled = [first.block_range(int(block)) for block in evenly(first.num_blocks, max(1, count))]
        found = joint_directions(self._sample(sampled), SHARE)
        unused = -found[0].rows.shape[1] % LANES
        maps = [np.pad(each.rows.astype(np.float32), ((0, 0), (0, unused))) for each in found]
        targets = np.ascontiguousarray([np.pad(each.targets, ((0, 0), (0, unused))) for each in found])
        blocks = (self._reduced(first.block_range(block), maps) for block in range(first.num_blocks))
        return Contents(first.num_samples, targets, blocks)

    def _sample(self, samples: list[range]) -> Iterator[tuple[Array, Array]]:
        """Yield, for each checkpoint, what training samples are in a score, and what they would be as targets: (s, k) each."""
        weights = np.concatenate([self._weights(self._coefficients(self._read(each))) for each in samples], axis=1)
        for features, part, weight in zip(self._checkpoints, self._fitted.parts, weights, strict=True):
            rows = np.concatenate([features.train.rows(each.start, each.stop).features for each in samples])
            yield rows.astype(np.float64) * weight[:, None], part.left(rows).astype(np.float64)

    def _reduced(self, samples: range, maps: list[Array]) -> tuple[Array, Array]:
        """Return some training samples in the directions of the index, (b, r), and their coefficients, (M, b)."""
        read = self._read(samples)
        coefficients = self._coefficients(read)
        terms = zip(read, maps, self._weights(coefficients), strict=True)
        products = [(as_computed(rows.features) @ towards) * weight[:, None] for rows, towards, weight in terms]
        return np.sum(products, axis=0), coefficients

    def _read(self, samples: range) -> list[FeatureRows]:
        return [features.train.rows(samples.start, samples.stop) for features in self._checkpoints]

    def _coefficients(self, read: list[FeatureRows]) -> Array:
        return np.stack([part.coefficient(rows) for part, rows in zip(self._fitted.parts, read, strict=True)])

    def _weights(self, coefficients: Array) -> Array:
        """What the inner products of each checkpoint count in the score of a training sample, (M, b)."""
        if self._fitted.average == "factors":
            coefficients = np.broadcast_to(coefficients.mean(0), coefficients.shape)
        return coefficients / len(coefficients)


def _first(ranking: Ranking) -> Ranking:
    """The ranking of the only target."""
    indices, values, spread = ranking
    return Ranking(indices[0], values[0], None if spread is None else spread[0])
