"""Feature sets made by hand, for problems whose answer is known."""

import numpy as np
import pytest

from trak_lightning.scoring import CheckpointFeatures
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.memory import MemoryStore


@pytest.fixture
def features():
    def make(
        train,
        targets,
        q,
        r=None,
        *,
        outputs=None,
        train_outputs=None,
        subset=None,
        checkpoint="c",
        block_size=7,
        cache=None,
        fingerprint=None,
    ):
        store = MemoryStore()

        def fill(split, phi, columns):
            spec = FeatureSpec(split, checkpoint, len(phi), phi.shape[1], 1, block_size, fingerprint or {})
            created = store.create(spec)
            for block in range(spec.num_blocks):
                rows = spec.block_range(block)
                piece = slice(rows.start, rows.stop)
                created.write_block(
                    block, FeatureRows(np.arange(*piece.indices(len(phi))), phi[piece], *[c[piece] for c in columns])
                )
            return created

        q = np.asarray(q, dtype=np.float64)
        m = len(targets)
        target_columns = [np.zeros(m) if outputs is None else outputs, np.ones(m), np.ones(m)]
        return CheckpointFeatures(
            fill(
                "train",
                train,
                [
                    np.zeros(len(train)) if train_outputs is None else train_outputs,
                    q,
                    np.full(len(train), 0.25) if r is None else r,  # of no squared loss
                ],
            ),
            fill("test", targets, target_columns),
            subset,
            cache,
        )

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(0)
