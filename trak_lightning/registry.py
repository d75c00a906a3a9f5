"""Plug-ins: entry points → classes.

Extractors, projectors, stores, tasks and scorers are found through entry points, the built-in ones too; there is no
other door. Nothing is imported until it is asked for, and a plug-in that is broken breaks only itself.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from trak_lightning.errors import PluginError

BASES = {
    "extractors": "trak_lightning.extractors.base:GradientExtractor",
    "projectors": "trak_lightning.projectors.base:Projector",
    "stores": "trak_lightning.stores.base:FeatureStore",
    "tasks": "trak_lightning.tasks.base:Task",
    "scorers": "trak_lightning.scoring.base:Scorer",
}
"""The plug-in points, each with the class that its plug-ins derive from."""

OWN_DISTRIBUTION = "trak-lightning"

API_VERSION = (1, 0)
"""Of the base classes in `BASES`. A plug-in declares the version that it was written for, ``trak_api = (1, 0)`` in its
class; it can be used where the first number is the same and the second no larger. Without a declaration it is tried."""


@dataclass(frozen=True)
class Plugin:
    """An entry point in one of our groups, and the distribution that declares it."""

    kind: str
    name: str
    target: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return (
            f"{self.kind.removesuffix('s')} plug-in {self.name!r} ({self.target}) of distribution "
            f"{self.distribution} {self.version}"
        )

    @property
    def class_path(self) -> str:
        """Dotted import path, as configuration files write it."""
        return self.target.replace(":", ".")

    def load(self) -> type:
        """Import the plug-in's class.

        Raises:
            PluginError: it cannot be imported, is not a class of the right kind, or was written for another version of
                these. Names the distribution.
        """
        base = _import(BASES[self.kind])
        try:
            found = _import(self.target)
        except Exception as error:  # whatever a stranger's module raises must not break anything but itself
            raise PluginError(f"{self} could not be loaded: {type(error).__name__}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise PluginError(f"{self} is not a subclass of {base.__module__}.{base.__qualname__}")
        self._require_api(getattr(found, "trak_api", API_VERSION))
        return found

    def _require_api(self, declared: Any) -> None:
        if not (isinstance(declared, tuple) and len(declared) == 2 and all(type(number) is int for number in declared)):
            raise PluginError(
                f"{self} must declare trak_api as two integers, such as {API_VERSION}; found {declared!r}"
            )
        if declared[0] != API_VERSION[0] or declared[1] > API_VERSION[1]:
            raise PluginError(
                f"{self} was written for version {_dotted(declared)} of the plug-in interface, and this trak_lightning has "
                f"version {_dotted(API_VERSION)}. Install a version of {self.distribution} or of {OWN_DISTRIBUTION} that "
                "fits the other."
            )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class Broken:
    """Entry points that could not even be read, and why. `kind` and `name` are empty if the whole file is malformed."""

    distribution: str
    reason: str
    kind: str = ""
    name: str = ""


@cache
def scan() -> tuple[tuple[Plugin, ...], tuple[Broken, ...]]:
    """All plug-ins declared by installed distributions, in any state, and those whose declaration is unreadable."""
    plugins: list[Plugin] = []
    broken: list[Broken] = []
    seen = set()
    for distribution in distributions():
        # The first of two copies on the path wins, as for importlib.metadata.entry_points; a distribution with a damaged
        # folder has no name.
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name is None or name.lower().replace("_", "-") in seen:
            continue
        seen.add(name.lower().replace("_", "-"))
        try:
            entry_points = list(distribution.entry_points)
        except Exception as error:  # importlib.metadata raises a bare TypeError on a malformed entry_points.txt
            broken.append(Broken(name, f"its entry_points.txt is malformed: {type(error).__name__}: {error}"))
            continue
        for entry_point in entry_points:
            kind = entry_point.group.removeprefix("trak_lightning.")
            if entry_point.group.startswith("trak_lightning.") and kind in BASES:
                plugins.append(Plugin(kind, entry_point.name, entry_point.value, name, distribution.version))
    return tuple(plugins), tuple(broken)


def find(kind: str, name: str) -> Plugin:
    """The plug-in of that kind and name, not yet imported.

    Raises:
        PluginError: there is none (suggests the nearest), or two distributions declare it (names both).
    """
    mine = [plugin for plugin in scan()[0] if plugin.kind == kind]
    found = [plugin for plugin in mine if plugin.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise PluginError(
            f"{len(found)} distributions declare a {kind.removesuffix('s')} named {name!r}: "
            + " and ".join(f"{plugin.distribution} ({plugin.target})" for plugin in found)
            + ". Uninstall one of them, or give the full class path instead of the name."
        )
    raise PluginError(unknown(kind.removesuffix("s"), name, sorted({plugin.name for plugin in mine})))


def unknown(what: str, name: str, known: list[str]) -> str:
    """What to say of a name that is not among the known ones."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return (
        f"no {what} named {name!r} is installed"
        + (f"; did you mean {nearest[0]!r}?" if nearest else "")
        + f" Installed: {', '.join(known) or 'none'}."
    )


def names(kind: str) -> list[str]:
    """The names of all plug-ins of one kind, sorted."""
    return sorted({plugin.name for plugin in scan()[0] if plugin.kind == kind})


def create(kind: str, choice: Any) -> Any:
    """An instance from a name, from ``{"name": …, **options}``, or from an object, which is returned as it is.

    A dotted path stands for a class that is not registered. `kind` is one of `BASES`.

    >>> create("projectors", {"name": "sparse_jl", "dim": 512}).dim
    512

    Raises:
        PluginError: unknown name, unloadable plug-in, an object of another kind, or options it does not take.
    """
    base = _import(BASES[kind])
    singular = kind.removesuffix("s")
    if isinstance(choice, base):
        return choice
    if isinstance(choice, str):
        choice = {"name": choice}
    if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
        raise PluginError(
            f"{singular} must be a name, a dict with a 'name', or a {base.__qualname__} object; got {choice!r}"
        )
    options = {key: value for key, value in choice.items() if key != "name"}
    plugin = resolve(kind, choice["name"])
    try:
        return plugin.load()(**options)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{plugin} cannot be made from {options}: {error}") from error


def resolve(kind: str, name: str) -> Plugin:
    """As `find`, for a registered name or the dotted path of any importable class."""
    if "." not in name:
        return find(kind, name)
    module, _, attribute = name.replace(":", ".").rpartition(".")
    return Plugin(kind, name, f"{module}:{attribute}", "(given by class path)", "")


def _own_module(module: str) -> Path:
    return Path(__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")


def diagnose(kind: str) -> Iterator[tuple[Plugin, PluginError | None]]:
    """Every plug-in of one kind, with what is wrong with it.

    Plug-ins of other distributions are imported to find out. Our own are only looked up, since importing them would
    make everybody wait for torch.
    """
    for plugin in scan()[0]:
        if plugin.kind == kind:
            try:
                find(kind, plugin.name)
                if plugin.distribution != OWN_DISTRIBUTION:
                    plugin.load()
                elif not _own_module(plugin.target.partition(":")[0]).is_file():
                    raise PluginError(f"{plugin} is missing from the installation; install trak-lightning anew")
                yield plugin, None
            except PluginError as error:
                yield plugin, error
