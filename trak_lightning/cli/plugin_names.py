"""Short plug-in names on the command line and in YAML.

jsonargparse knows classes by import path. Names are turned into paths before it sees them, from entry-point metadata
alone, so that only the plug-ins that are used get imported::

    projector: sparse_jl                        →  projector: {class_path: trak_lightning.projectors.….SparseJL}
    projector: {name: sparse_jl, dim: 512}      →  … with init_args: {dim: 512}
    --projector sparse_jl                       →  --projector trak_lightning.projectors.….SparseJL
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from trak_lightning import registry
from trak_lightning.errors import PluginError

KINDS = {kind.removesuffix("s"): kind for kind in registry.BASES}
"""Configuration key → plug-in kind: ``projector`` → ``projectors``."""


@dataclass(frozen=True)
class Names:
    """Names of plug-ins → class paths.

    Plug-ins of other distributions are imported, so that what is wrong with them can be said, if their kind is among the
    settings that the command `uses`.
    """

    uses: Collection[str]

    def class_path(self, key: str, name: str) -> str:
        """The class path of the plug-in `name` of the kind that the setting `key` takes.

        Raises:
            PluginError: there is none; suggests the nearest.
        """
        plugin = registry.resolve(KINDS[key], name)
        if key in self.uses and plugin.distribution != registry.OWN_DISTRIBUTION:
            plugin.load()
        return plugin.class_path

    def expand(self, key: str, value: Any) -> Any:
        """The value of a setting as jsonargparse expects it.

        Raises:
            PluginError: a name is unknown, or the demo that is named is not installed.
        """
        value = _moved(value)
        if key in ("model", "data"):
            _require_demos(key, value)
        if key not in KINDS:
            return value
        if isinstance(value, str):
            return {"class_path": self.class_path(key, value)}
        if isinstance(value, dict) and "name" in value:
            options = {name: option for name, option in value.items() if name != "name"}
            return {"class_path": self.class_path(key, value["name"]), "init_args": options}
        return value


def _moved(value: Any) -> Any:
    """`value` with the class paths of earlier versions replaced."""
    if isinstance(value, dict):
        return {
            name: registry.MOVED.get(each, each) if name == "class_path" and isinstance(each, str) else _moved(each)
            for name, each in value.items()
        }
    return [_moved(each) for each in value] if isinstance(value, list) else value


_DEMO = re.compile(r"trak_lightning(?:_demos|\.demos)\.(?!Digits|digits\.|held_out\.).*\b(\w+)")
"""The import path of a demo of the distribution trak-lightning-demos, as it is or as it was before there was one."""


def _require_demos(key: str, value: Any) -> None:
    """Name the missing distribution here, before jsonargparse calls the class path no subclass of anything."""
    path = str(value.get("class_path") if isinstance(value, dict) else value)
    if (found := _DEMO.fullmatch(path)) and find_spec("trak_lightning_demos") is None:
        raise PluginError(
            f"{key} is {path}, but the distribution trak-lightning-demos, which has {found[1]}, is not installed: install it "
            "from plugins/trak-lightning-demos of the repository"
        )
