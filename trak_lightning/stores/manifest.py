"""``manifest.json``: what a stored feature set holds, with a checksum of its own."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from trak_lightning.errors import CorruptFileError, StorageError
from trak_lightning.run.atomic import atomic_create, atomic_write
from trak_lightning.run.same_settings import require_same
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureSpec
from trak_lightning.stores.encoding import DTYPES
from trak_lightning.stores.schema import SCHEMA_VERSION
from trak_lightning.stores.validation import identity, require_name

FILE = "manifest.json"
MOST_BLOCKS = 2**24
"""A manifest that claims more is refused."""


@dataclass(frozen=True)
class Manifest:
    """The spec of a feature set, and how its rows are stored."""

    spec: FeatureSpec
    dtype: str
    set_id: str
    """Stored in every block, so that a block of another set is refused. It stays the same when the set grows."""
    grown_from: tuple[int, ...] = ()
    """Numbers of samples that the set had before it grew."""
    schema_version: int = SCHEMA_VERSION
    """Of the trak_lightning that created the set; see `trak_lightning.stores.schema`."""

    @classmethod
    def of(cls, spec: FeatureSpec, dtype: str) -> "Manifest":
        return cls(spec, dtype, fingerprint([identity(spec), spec.split, spec.checkpoint, dtype]))

    def grown(self, spec: FeatureSpec) -> "Manifest":
        """The manifest of this set once it has the samples and the data of `spec`."""
        longer = replace(self.spec, num_samples=spec.num_samples, fingerprint=spec.fingerprint)
        return replace(self, spec=longer, grown_from=(*self.grown_from, self.spec.num_samples))

    def require(self, spec: FeatureSpec, dtype: str, where: Path | str) -> None:
        """Refuse to use the set at `where` for `spec` and `dtype` if it was made with other settings.

        Raises:
            IncompatibleRunError: names the first setting that differs, with both values.
        """
        require_same(identity(self.spec) | {"store.dtype": self.dtype}, identity(spec) | {"store.dtype": dtype}, where)

    def create(self, folder: Path) -> None:
        """Write the manifest to `folder`, unless another process was faster."""
        with atomic_create(folder / FILE) as part:
            part.write_text(self.dump())

    def replace_in(self, folder: Path) -> None:
        """Write the manifest to `folder`, replacing an older one."""
        with atomic_write(folder / FILE) as part:
            part.write_text(self.dump())

    def dump(self) -> str:
        """The manifest as JSON text."""
        content = {
            "schema_version": self.schema_version,
            "dtype": self.dtype,
            "set": self.set_id,
            "grown_from": list(self.grown_from),
            **asdict(self.spec),
        }
        return json.dumps({**content, "checksum": fingerprint(content)}, indent=1)

    @classmethod
    def load(cls, text: str, where: Path | str) -> "Manifest":
        """Read a manifest from JSON text; errors name `where` it was found.

        Raises:
            CorruptFileError: the text is not what `dump` wrote.
        """
        try:
            content = json.loads(text)
            seen, expected = content.pop("checksum"), fingerprint(content)
            if seen != expected:
                raise ValueError(f"its checksum is {seen}, and its content has {expected}")
            version = content["schema_version"]
            if version not in range(1, SCHEMA_VERSION + 1):
                raise ValueError(f"schema version {version}; this trak_lightning reads 1 to {SCHEMA_VERSION}")
            spec = FeatureSpec(**{field.name: content[field.name] for field in fields(FeatureSpec)})
            _check(spec)
            if content["dtype"] not in DTYPES:
                raise ValueError(f"dtype {content['dtype']!r}; there are {', '.join(DTYPES)}")
            grown_from = tuple(map(int, content["grown_from"]))
            return cls(spec, content["dtype"], str(content["set"]), grown_from, version)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StorageError) as error:
            raise CorruptFileError(
                f"{where} is not a manifest ({type(error).__name__}: {error}). Delete the features that it belongs to and "
                "run featurize again."
            ) from None

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of `folder`.

        Raises:
            CorruptFileError: it is damaged, or its split or checkpoint is not the name of the folder.
        """
        path = folder / FILE
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptFileError(f"{path} is not a manifest ({error})") from None
        manifest = cls.load(text, path)
        if (manifest.spec.split, manifest.spec.checkpoint) != (folder.parent.name, folder.name):
            raise CorruptFileError(
                f"{path} belongs to {manifest.spec.split}/{manifest.spec.checkpoint}: the folder was renamed or copied"
            )
        return manifest


def _check(spec: FeatureSpec) -> None:
    counts: dict[str, Any] = {name: getattr(spec, name) for name in ("num_samples", "dim", "batch_size", "block_size")}
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}, and a positive number was expected")
    if spec.block_size % spec.batch_size or spec.num_blocks > MOST_BLOCKS:
        raise ValueError(f"{spec.num_blocks} blocks of {spec.block_size} rows, in batches of {spec.batch_size}")
    if not isinstance(spec.fingerprint, dict):
        raise TypeError(f"fingerprint is {type(spec.fingerprint).__name__}, and a mapping was expected")
    for name in (spec.split, spec.checkpoint):
        require_name(name)
