"""All that a feature store from another distribution needs; nothing else in `trak_lightning.stores` is meant for it.

Derive the store from `FeatureStore` and its feature sets from `SharedSet`, which lets processes share blocks and lets sets
grow. Test both with `trak_lightning.testing.StoreConformance`. Errors come from `trak_lightning.errors`. docs/plugins.md has a
complete example.

| name | what for |
| --- | --- |
| `FeatureStore`, `SharedSet`, `FeatureSet` | the base classes and their laws |
| `FeatureSpec`, `FeatureRows` | what a set holds; the rows of a block |
| `Manifest` | description of a stored set as checked JSON, with the comparison that refuses other settings |
| `layout`, `to_arrays`, `from_arrays`, `decode` | rows to little-endian arrays and back; shapes and types of these |
| `Dtype`, `DTYPES`, `Compression`, `COMPRESSIONS` | options that all stores offer under the same names |
| `checksum` | XXH3-64 of an array |
| `LARGEST_COMPRESSED` | bytes: refuse to unpack a block that claims to be larger |
| `require_option`, `require_name`, `require_rows`, `no_such_set` | checks that all stores make, with the same messages |
| `prefetched` | read the next blocks in background threads |
| `atomic_write`, `fsync`, `refused` | files that exist whole or not at all; what the operating system refused, with the remedy |
| `read_npz` | read ``.npz`` files that may be damaged |
"""

from trak_lightning.errors import require_option
from trak_lightning.run.atomic import atomic_write, fsync, refused
from trak_lightning.run.numpy_files import read_npz
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.encoding import COMPRESSIONS, DTYPES, LARGEST_COMPRESSED, Compression, Dtype, decode
from trak_lightning.stores.manifest import Manifest
from trak_lightning.stores.prefetch import prefetched
from trak_lightning.stores.schema import checksum, from_arrays, layout, to_arrays
from trak_lightning.stores.shared_set import SharedSet
from trak_lightning.stores.validation import no_such_set, require_name, require_rows

__all__ = [
    "COMPRESSIONS",
    "DTYPES",
    "LARGEST_COMPRESSED",
    "Compression",
    "Dtype",
    "FeatureRows",
    "FeatureSet",
    "FeatureSpec",
    "FeatureStore",
    "Manifest",
    "SharedSet",
    "atomic_write",
    "checksum",
    "decode",
    "from_arrays",
    "fsync",
    "layout",
    "no_such_set",
    "prefetched",
    "read_npz",
    "refused",
    "require_name",
    "require_option",
    "require_rows",
    "to_arrays",
]
