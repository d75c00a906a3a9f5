"""Short plug-in names on the command line and in YAML.

jsonargparse knows classes by import path. Names are turned into paths before it sees them, from entry-point metadata
alone, so that only the plug-ins that are used get imported::

    projector: sparse_jl                        →  projector: {class_path: trak_lightning.projectors.….SparseJL}
    projector: {name: sparse_jl, dim: 512}      →  … with init_args: {dim: 512}
    --projector sparse_jl                       →  --projector trak_lightning.projectors.….SparseJL
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from trak_lightning import registry
from trak_lightning.errors import DataError, PluginError

KINDS = {kind.removesuffix("s"): kind for kind in registry.BASES}
"""Configuration key → plug-in kind: ``projector`` → ``projectors``."""

_SUFFIXES = ("", ".class_path", ".help")


def rewrite(argv: Sequence[str], reads: Collection[str] = tuple(KINDS)) -> list[str]:
    """`argv` with class paths for plug-in names, in options and in the files after ``--config``.

    Plug-ins of other distributions are imported here, where it can be said what is wrong with them, if their kind is among
    the keys that the command `reads`.
    """
    class_path = partial(_class_path, reads)
    rewriters: dict[str, Callable[[str], str]] = {
        f"--{key}{suffix}": lambda value, key=key: _option(key, value, class_path)  # type: ignore[misc]
        for key in KINDS
        for suffix in _SUFFIXES
    }
    rewriters["--config"] = rewriters["-c"] = lambda source: _config(source, class_path)
    rewritten: list[str] = []
    flag = ""
    for token in argv:
        if flag in rewriters and not token.startswith("--"):
            rewritten.append(rewriters[flag](token))
        elif "=" in token and (name := token.partition("=")[0]) in rewriters:
            rewritten += [name, rewriters[name](token.partition("=")[2])]
        else:
            rewritten.append(token)
        flag = token
    return rewritten


def load_config(source: str) -> dict[str, Any]:
    """The mapping in a YAML file, or in inline YAML.

    Raises:
        DataError: there is no such file, or it does not hold a mapping.
    """
    path = Path(source)
    inline = source.lstrip().startswith("{")
    if not inline and not path.is_file():
        raise DataError(f"there is no configuration file {source} (looked in {Path.cwd()})")
    try:
        config = get_loader("yaml")(source if inline else path.read_text())
    except yaml.YAMLError as error:
        raise DataError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{source} must hold a mapping of settings, found {type(config).__name__}")
    return config


ClassPath = Callable[[str, str], str]
"""From a configuration key and a name to the path of the class."""


def _class_path(reads: Collection[str], key: str, name: str) -> str:
    plugin = registry.resolve(KINDS[key], name)
    if key in reads and plugin.distribution != registry.OWN_DISTRIBUTION:
        plugin.load()
    return plugin.class_path


def _config(source: str, class_path: ClassPath) -> str:
    config = load_config(source)
    for key in ("model", "data"):
        _require_demos(key, config.get(key))
    expanded = {key: _expand(key, value, class_path) if key in KINDS else value for key, value in config.items()}
    # Unchanged files stay files, so that paths in them keep being relative to them.
    return source if expanded == config else json.dumps(expanded)


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


def _option(key: str, value: str, class_path: ClassPath) -> str:
    if value.lstrip().startswith("{"):
        return json.dumps(_expand(key, load_config(value), class_path))
    return class_path(key, value)


def _expand(key: str, value: Any, class_path: ClassPath) -> Any:
    if isinstance(value, str):
        return {"class_path": class_path(key, value)}
    if isinstance(value, dict) and "name" in value:
        options = {name: option for name, option in value.items() if name != "name"}
        return {"class_path": class_path(key, value["name"]), "init_args": options}
    return value
