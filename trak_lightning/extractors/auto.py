"""The extractor that suits the model."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from trak_lightning.data.samples import batch_size
from trak_lightning.errors import TrakError, UnsupportedModelError
from trak_lightning.extractors.audit import Audit, reference
from trak_lightning.extractors.base import GradientExtractor, RuleUse, describe
from trak_lightning.extractors.functional import Functional
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.extractors.hooks.probe import take
from trak_lightning.extractors.iterative import Iterative
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink
from trak_lightning.tasks.base import Task

log = logging.getLogger(__name__)


class Auto(GradientExtractor):
    """``hooks`` where they are exact for every parameter, as they are for nearly all models; else ``functional``, which
    holds the gradient of the whole model for every sample; else ``iterative``, which makes a pass a sample as well.

    Decided on the first batch of a model, and logged in one line that says which layers use which rule.
    """

    def __init__(self) -> None:
        self._hooks = Hooks()
        self._chosen: WeakKeyDictionary[nn.Module, tuple[str, GradientExtractor]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["Auto"], tuple[()]]:
        return Auto, ()  # a rank that is spawned finds out for itself what is known of the model

    def extract(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink) -> Tensor:
        chosen = self._choose(model, task, batch, layout)
        if chosen is not self._hooks:
            return chosen.extract(model, task, batch, layout, sink)
        begun = False

        def watched(block: GradientBlock) -> None:
            nonlocal begun
            begun = True
            sink(block)

        try:
            return chosen.extract(model, task, batch, layout, watched)
        except UnsupportedModelError as refusal:
            if begun:
                raise
            # What no earlier batch did: another extractor goes on from here.
            chosen = self._fall_back(model, task, batch, layout, refusal)
            return chosen.extract(model, task, batch, layout, sink)

    def account(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout) -> list[RuleUse]:
        return self._choose(model, task, batch, layout).account(model, task, batch, layout)

    def _choose(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout) -> GradientExtractor:
        known = self._chosen.get(model)
        if known is not None and known[0] == layout.fingerprint:
            return known[1]
        try:
            uses = self._hooks.account(model, task, batch, layout)
        except UnsupportedModelError as refusal:
            return self._fall_back(model, task, batch, layout, refusal)
        log.info("gradients  hooks: %s", describe(uses))
        self._chosen[model] = layout.fingerprint, self._hooks
        return self._hooks

    def _fall_back(
        self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, refusal: UnsupportedModelError
    ) -> GradientExtractor:
        chosen: GradientExtractor = Functional()
        if not _right(chosen, model, task, batch, layout):
            chosen = Iterative()
        log.info("gradients  %s, for all parameters, since %s", type(chosen).__name__.lower(), refusal)
        self._chosen[model] = layout.fingerprint, chosen
        return chosen


def _right(extractor: GradientExtractor, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout) -> bool:
    """Whether two samples come out right."""
    size = batch_size(batch)
    two = take(batch, [0, size - 1], size)
    audit = Audit(layout, reference(model, task, two, layout))
    try:
        extractor.extract(model, task, two, layout, audit)
    except UnsupportedModelError:
        return False
    except TrakError:
        raise
    return not audit.wrong()
