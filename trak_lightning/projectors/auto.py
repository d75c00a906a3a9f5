"""The default projector: how many dimensions, and whether to project at all, follow from the data."""

from collections.abc import Mapping
from typing import Any, Literal

from trak_lightning import registry
from trak_lightning.errors import SettingsError, require_integer
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors.base import Projector
from trak_lightning.projectors.dimensions import automatic
from trak_lightning.projectors.identity import Identity
from trak_lightning.projectors.second_moment import SecondMoment
from trak_lightning.projectors.sparse_jl import SparseJL
from trak_lightning.registry import class_path, current_path


class Auto(Projector):
    """``second_moment`` of `sparse_jl`, or of ``identity`` where there are no more than k parameters.

    The choice is made once per run directory, from the number of training samples and of parameters: see
    `trak_lightning.projectors.dimensions`. A run that already has features keeps their projector, whatever made the choice.

    Args:
        dim: k, or ``auto``.
    """

    def __init__(self, dim: int | Literal["auto"] = "auto") -> None:
        self._dim: int | Literal["auto"] = "auto"
        if dim != "auto":
            self._dim = require_integer("dim", dim, 1, "a number of dimensions, or auto")

    def for_run(self, layout: ParameterLayout, num_samples: int, stored: Mapping[str, Any] | None) -> Projector:
        if (kept := _stored(stored)) is not None and self._dim in ("auto", kept.output_dim(layout)):
            kept._reason = f"k = {kept.output_dim(layout):,}, as in the features that this run has"
            return kept
        p = layout.numel
        k, reason = automatic(num_samples, p) if self._dim == "auto" else (min(self._dim, p), None)
        found = SecondMoment(Identity() if k == p else SparseJL(k))
        found._reason = reason
        return found

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        raise SettingsError(
            "the projector auto chooses k from the training set, which only TRAK and the commands know; elsewhere, use sparse_jl or "
            "call for_run"
        )


def _stored(state: Mapping[str, Any] | None) -> Projector | None:
    """The projector that `Auto.for_run` chose when features were stored, or earlier versions used by default; None if it was
    another one."""
    if state is None:
        return None
    kind = current_path(state["class"])
    if kind == class_path(SecondMoment):
        inner = _stored(state["projector"])
        return None if inner is None else SecondMoment(inner, state["fit_samples"])
    options = {key: value for key, value in state.items() if key != "class"}
    known = kind in (class_path(SparseJL), class_path(Identity))
    return registry.create("projectors", {"name": kind, **options}) if known else None
