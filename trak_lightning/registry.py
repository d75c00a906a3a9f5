"""Plug-ins: entry points → classes.

Extractors, projectors, stores, tasks and scorers are found through entry points, including the built-in ones; there is no
other way in. A plug-in is imported only when it is used, and a broken plug-in breaks only itself.
"""

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from trak_lightning.errors import PluginError, did_you_mean, docs_page, is_integer

BASES = {
    "extractors": "trak_lightning.extractors.base:GradientExtractor",
    "projectors": "trak_lightning.projectors.base:Projector",
    "stores": "trak_lightning.stores.base:FeatureStore",
    "tasks": "trak_lightning.tasks.base:Task",
    "scorers": "trak_lightning.scoring.base:Scorer",
}
"""The plug-in points, each with the base class of its plug-ins."""

OWN_DISTRIBUTION = "trak-lightning"

API_VERSION = (2, 0)
"""Version of the base classes in `BASES`. A plug-in declares the version that it was written for, ``trak_api = (2, 0)`` in
its class. It can be used if the first number is the same and the second one is not larger. A plug-in without a declaration
is tried."""

MOVED = {
    f"trak_lightning.{old}": f"trak_lightning.{new}"
    for old, new in {
        "projectors.gaussian.Gaussian": "projectors.dense.Gaussian",
        "projectors.rademacher.Rademacher": "projectors.dense.Rademacher",
        "projectors.lowrank.LowRank": "projectors.two_sided.LowRank",
        "projectors.two_stage.TwoStage": "projectors.two_sided.TwoStage",
        "scoring.gradients.GradientCosine": "scoring.gradient_scorers.GradientCosine",
        "scoring.gradients.GradientDot": "scoring.gradient_scorers.GradientDot",
        "scoring.gradients.TracIn": "scoring.gradient_scorers.TracIn",
    }.items()
}
"""Class paths of earlier versions → where the class is now. Earlier run directories, score files and configuration files
hold the old paths."""


@dataclass(frozen=True)
class Plugin:
    """An entry point in one of the groups of trak_lightning, and the distribution that declares it."""

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
        """Dotted import path, as written in configuration files."""
        return self.target.replace(":", ".")

    def load(self) -> type:
        """Import the plug-in's class.

        Raises:
            PluginError: it cannot be imported, is not a class of the right kind, or was written for another version of
                the plug-in interface. Names the distribution.
        """
        parent = base(self.kind)
        try:
            found = imported(self.target)
        except Exception as error:  # whatever another distribution raises must break nothing but itself
            raise PluginError(f"{self} could not be loaded: {type(error).__name__}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, parent)):
            raise PluginError(f"{self} is not a subclass of {class_path(parent)}")
        self._require_api(getattr(found, "trak_api", API_VERSION))
        return found

    def _require_api(self, declared: Any) -> None:
        if not (isinstance(declared, tuple) and len(declared) == 2 and all(type(number) is int for number in declared)):
            raise PluginError(
                f"{self} must declare trak_api as two integers, such as {API_VERSION}; found {declared!r}"
            )
        if declared[0] != API_VERSION[0] or declared[1] > API_VERSION[1]:
            raise PluginError(
                f"{self} was written for version {_dotted(declared)} of the plug-in interface, and this {OWN_DISTRIBUTION} has "
                f"version {_dotted(API_VERSION)}. {self._remedy(declared)}"
            )

    def _remedy(self, declared: tuple[int, int]) -> str:
        if declared > API_VERSION:
            return f"Install a newer {OWN_DISTRIBUTION}, or an older {self.distribution}."
        return (
            f"Install a newer {self.distribution}, or an older {OWN_DISTRIBUTION}. If you maintain the plug-in: {docs_page('plugins')} "
            f"lists what changed; adapt the class and declare trak_api = {API_VERSION}."
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def imported(path: str) -> Any:
    """Import what is at a path, ``package.module:Class.attribute`` or ``package.module.name``.

    Raises:
        ImportError, AttributeError, ValueError: it is not there, or this is no path; and whatever the module raises.
    """
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    return attrgetter(attribute)(importlib.import_module(module))


def base(kind: str) -> type:
    """Return the base class of the plug-ins of one kind."""
    found: type = imported(BASES[kind])
    return found


@dataclass(frozen=True)
class Broken:
    """A distribution whose entry points cannot be read, and why."""

    distribution: str
    reason: str


@cache
def scan() -> tuple[tuple[Plugin, ...], tuple[Broken, ...]]:
    """Find all plug-ins that installed distributions declare, loadable or not, and their declarations that cannot be read."""
    plugins: list[Plugin] = []
    broken: list[Broken] = []
    seen = set()
    for distribution in distributions():
        with suppress(UnicodeDecodeError):  # which is said below
            if "trak_lightning." not in (distribution.read_text("entry_points.txt") or ""):
                continue  # reading the name of each of some hundred distributions takes 0.2 s
        # Of two copies on the path the first one wins, as for importlib.metadata.entry_points. A distribution with a
        # damaged folder has no name.
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
    """Return the plug-in of that kind and name, not yet imported.

    Raises:
        PluginError: there is none (suggests the nearest name), or two distributions declare it (names both).
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


_TASKS = {
    **dict.fromkeys(("mse", "l2"), ("regression",)),
    **dict.fromkeys(("ce", "cross_entropy"), ("image_classification", "text_classification")),
    "bce": ("binary_classification", "multilabel"),
    "classification": ("image_classification",),
}
"""Tasks that are asked for by the name of their loss, or by what they have in common."""

_NOTES = {"classification": " It is the default, for tables and graphs too."}
"""What a suggestion does not say by its name."""


def unknown(what: str, name: str, known: list[str]) -> str:
    """Return the error message for a name that is not among the known ones."""
    nearest = [each for each in known if each in _TASKS.get(name, ())] or [
        each for each in known if name in each.split("_")
    ]
    note = _NOTES.get(name, "") if nearest else ""
    nearest = nearest or difflib.get_close_matches(name, known, n=1)
    return (
        f"no {what} named {name!r} is installed"
        + (f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ".")
        + f"{note} Installed: {', '.join(known) or 'none'}."
    )


def names(kind: str) -> list[str]:
    """Return the names of all plug-ins of one kind, sorted."""
    return sorted({plugin.name for plugin in scan()[0] if plugin.kind == kind})


def create(kind: str, choice: Any) -> Any:
    """Create an instance from a name or from ``{"name": …, **options}``; an instance is returned as it is.

    A name with dots is the import path of a class, registered or not. `kind` is one of `BASES`.

    >>> create("projectors", {"name": "sparse_jl", "dim": 512}).dim
    512

    Raises:
        PluginError: unknown name, a plug-in that cannot be loaded, an object of another kind, or unknown options.
    """
    parent = base(kind)
    singular = kind.removesuffix("s")
    if isinstance(choice, parent):
        return choice
    if isinstance(choice, str):
        choice = {"name": choice}
    if isinstance(choice, Mapping) and "class_path" in choice:  # as jsonargparse writes it
        choice = {"name": choice["class_path"], **(choice.get("init_args") or {})}
    if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
        raise PluginError(
            f"{singular} must be a name, a dict with a 'name', or a {parent.__qualname__} object; got {choice!r}"
        )
    options = {key: int(value) if is_integer(value) else value for key, value in choice.items() if key != "name"}
    plugin = resolve(kind, choice["name"])
    cls = plugin.load()
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        known = options_of(cls)
        if wrong := [key for key in options if key not in known]:
            raise PluginError(
                f"{plugin} has no option {wrong[0]!r}"
                + did_you_mean(wrong[0], known)
                + f" {cls.__name__} takes {', '.join(known) or 'no options'}."
            ) from None
        raise PluginError(f"{plugin} cannot be created from {options}: {error}") from error


def options_of(cls: type) -> list[str]:
    """Return the names of the options of a class, with those of base classes that it passes ``**kwargs`` to."""
    found: dict[str, None] = {}
    for each in (base for base in inspect.getmro(cls) if base is not object and "__init__" in vars(base)):
        parameters = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
        found.update((own.name, None) for own in parameters if own.kind not in (own.VAR_KEYWORD, own.VAR_POSITIONAL))
        if not any(own.kind is own.VAR_KEYWORD for own in parameters):
            break
    return list(found)


def resolve(kind: str, name: str) -> Plugin:
    """Return the plug-in of a registered name, or of the import path of any class; old paths of moved classes are valid."""
    if "." not in name:
        return find(kind, name)
    module, _, attribute = current_path(name.replace(":", ".")).rpartition(".")
    return Plugin(kind, name, f"{module}:{attribute}", "(given by class path)", "")


def class_path(cls: type) -> str:
    """Return the dotted import path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def recorded(plugin: Any) -> dict[str, Any]:
    """Return what is recorded of a plug-in: its class, and its settings, which are its public attributes."""
    settings = {name: value for name, value in vars(plugin).items() if not name.startswith("_")}
    return {"class": class_path(type(plugin)), **settings}


def current_path(path: str) -> str:
    """Return where the class is now that an earlier version had at this dotted path."""
    return MOVED.get(path, path)


def _is_installed(module: str) -> bool:
    """Whether there is a file for this module or package. Imports nothing."""
    package, *names = module.split(".")
    found = find_spec(package)
    if found is None or not names:
        return found is not None
    stems = [Path(folder, *names) for folder in found.submodule_search_locations or ()]
    return any((stem / "__init__.py").is_file() or any(stem.parent.glob(f"{stem.name}.*")) for stem in stems)


def diagnose(kind: str, *, load: bool) -> Iterator[tuple[Plugin, PluginError | None]]:
    """Yield every plug-in of one kind, with what is wrong with it: with its import and its class if `load`, else only with
    its declaration, because importing a plug-in may import torch, which takes seconds."""
    for plugin in scan()[0]:
        if plugin.kind == kind:
            try:
                find(kind, plugin.name)
                if not _is_installed(plugin.target.partition(":")[0]):
                    raise PluginError(
                        f"{plugin} is missing from the installation. Install {plugin.distribution} again."
                    )
                if load:
                    plugin.load()
                yield plugin, None
            except PluginError as error:
                yield plugin, error
