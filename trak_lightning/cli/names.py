"""Short plug-in names on the command line and in YAML.

jsonargparse knows classes by import path. Names are turned into paths before it sees them, from entry-point metadata
alone, so that only the plug-ins that are used get imported::

    projector: sparse_jl                        →  projector: {class_path: trak_lightning.projectors.….SparseJL}
    projector: {name: sparse_jl, dim: 512}      →  … with init_args: {dim: 512}
    --projector sparse_jl                       →  --projector trak_lightning.projectors.….SparseJL
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from trak_lightning import registry

KINDS = {kind.removesuffix("s"): kind for kind in registry.BASES}
"""Configuration key → plug-in kind: ``projector`` → ``projectors``."""


@dataclass(frozen=True)
class Names:
    """Names of plug-ins → class paths.

    Plug-ins of other distributions are imported, so that what is wrong with them can be said, if their kind is among the
    settings that the command `reads`.
    """

    reads: Collection[str]

    def class_path(self, key: str, name: str) -> str:
        """The class path of the plug-in `name` of the kind that the setting `key` takes.

        Raises:
            PluginError: there is none; suggests the nearest.
        """
        plugin = registry.resolve(KINDS[key], name)
        if key in self.reads and plugin.distribution != registry.OWN_DISTRIBUTION:
            plugin.load()
        return plugin.class_path

    def expand(self, key: str, value: Any) -> Any:
        """The value of a setting as jsonargparse expects it."""
        if key not in KINDS:
            return value
        if isinstance(value, str):
            return {"class_path": self.class_path(key, value)}
        if isinstance(value, dict) and "name" in value:
            options = {name: option for name, option in value.items() if name != "name"}
            return {"class_path": self.class_path(key, value["name"]), "init_args": options}
        return value
