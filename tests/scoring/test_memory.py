"""Features on disk that are larger than the memory a process may use are scored all the same."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.scores import Scores, write_scores
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.hdf5 import HDF5Store

N, K, BLOCK = 300_000, 256, 4096

SCORE = """
import resource, sys
import numpy as np
import scipy.linalg, h5py
from pathlib import Path
from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.scores import write_scores
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.hdf5 import HDF5Store

store = HDF5Store()
store.bind(Path(sys.argv[1]) / "features")
sets = CheckpointFeatures(store.open("train", "c"), store.open("test", "c"))
np.ones((64, 64)) @ np.ones((64, 64))  # the threads of the matrix library are there before memory is limited
used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# What may be written to, and not the address space, of which threads reserve much that they never touch.
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]),) * 2)
write_scores(Path(sys.argv[1]) / "limited.h5", Trak("trace/1500").fit([sets]), {}, top=20)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the data segment")
def test_features_larger_than_memory(tmp_path):
    store = HDF5Store()
    store.bind(tmp_path / "features")
    for split, n in (("train", N), ("test", 20)):
        created = store.create(FeatureSpec(split, "c", n, K, 64, BLOCK, {}))
        for block in range(created.spec.num_blocks):
            inside = created.spec.block_range(block)
            rng = np.random.default_rng([block, n])
            phi = rng.standard_normal((len(inside), K), dtype=np.float32)
            q = rng.uniform(0, 1, len(inside)).astype(np.float32)
            created.write_block(block, FeatureRows(np.arange(inside.start, inside.stop), phi, q, q, q))
    size = sum(path.stat().st_size for path in (tmp_path / "features/train").rglob("*.h5"))
    allowed = size * 3 // 4  # the libraries' own buffers are in it
    command = [sys.executable, "-c", SCORE, str(tmp_path), str(allowed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert size > 300e6
    assert int(done.stdout) < size / 2
    sets = CheckpointFeatures(store.open("train", "c"), store.open("test", "c"))
    free = write_scores(tmp_path / "free.h5", Trak("trace/1500").fit([sets]), {}, top=20)
    np.testing.assert_array_equal(Scores(tmp_path / "limited.h5").top(20).indices, free.top(20).indices)


def test_neither_gram_matrices_nor_factors_of_many_checkpoints_are_held_at_once(features, rng, tmp_path):
    k, M = 256, 12
    sets = [
        features(
            rng.standard_normal((2 * k, k)),
            rng.standard_normal((3, k)),
            rng.uniform(0, 1, 2 * k),
            checkpoint=str(m),
            cache=tmp_path / str(m),
            block_size=k,
        )
        for m in range(M)
    ]
    tracemalloc.start()
    try:
        write_scores(tmp_path / "scores.h5", Trak().fit(sets), {}, top=5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * 8 * k**2  # less than half of the Gram matrices
