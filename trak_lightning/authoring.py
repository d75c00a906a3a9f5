"""All that an attribution method from another distribution needs, one that computes its scores from something else than features.

A method that works with features is a scorer: derive it from `trak_lightning.Scorer`. Errors come from `trak_lightning.errors`.
`plugins/trak-lightning-replay` is an example.

| name | what for |
| --- | --- |
| `AttributionData` | the samples of a dataset or loader by position, collated and moved to a device as in training |
| `create` | the task, or another plug-in, that a name or ``{"name": …, **options}`` stands for |
| `batch_of` | tell tasks and losses how many samples their batch holds |
| `write_matrix` | keep scores where `trak top`, `trak report` and `trak evaluate` find them |
| `store_repetitions` | keep the outputs of repeated trainings where `trak evaluate` finds them |
| `mean_spearman` | rank correlation of predicted and true outputs |
| `derive_seed`, `fingerprint` | seeds and identities, by hashing names and JSON |
| `atomic_write` | files that exist whole or not at all |
| `progress` | a progress bar like all others |
"""

from trak_lightning.data.dataset import AttributionData
from trak_lightning.evaluation.lds import mean_spearman
from trak_lightning.evaluation.repetitions import store_repetitions
from trak_lightning.registry import create
from trak_lightning.run.atomic import atomic_write
from trak_lightning.runtime.progress import progress
from trak_lightning.scoring.scores import write_matrix
from trak_lightning.seeds import derive_seed, fingerprint
from trak_lightning.tasks.base import batch_of

__all__ = [
    "AttributionData",
    "atomic_write",
    "batch_of",
    "create",
    "derive_seed",
    "fingerprint",
    "mean_spearman",
    "progress",
    "store_repetitions",
    "write_matrix",
]
