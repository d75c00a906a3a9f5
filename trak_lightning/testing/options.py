"""A law of all plug-ins that have a `state`: it tells two of them with other options apart."""

import inspect
from typing import Any


def require_recorded_options(plugin: Any) -> None:
    """Check that every option of the constructor is an attribute of that name, and so is recorded: what is stored under one value
    must not be reused under another. An option that changes no result is left out by overriding `state`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = [each.name for each in inspect.signature(type(plugin)).parameters.values() if each.kind in kinds]
    unrecorded = [name for name in options if name not in plugin.state and not hasattr(plugin, name)]
    assert not unrecorded, (
        f"option {unrecorded[0]!r} of {type(plugin).__name__} is not in its state: keep it in an attribute of that name, "
        f"self.{unrecorded[0]}, so that stored results of other values are not taken for those of this one"
    )
