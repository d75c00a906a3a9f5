"""Seeds and fingerprints: randomness is derived by hashing names, never read from global state."""

import hashlib
import json
from typing import Any


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts` alone.

    The same on every machine, process and Python version (nothing depends on `hash()`); different parts give
    statistically independent seeds. ``derive_seed(seed, checkpoint, parameter)`` seeds one block of a projection.

    >>> derive_seed(0, "checkpoint", "fc.weight") == derive_seed(0, "checkpoint", "fc.weight")
    True
    """
    return int(fingerprint(list(parts)), 16) >> 1


def fingerprint(value: Any) -> str:
    """The first 16 hexadecimal digits of SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
