"""Choose the extractor for each batch: hooks where they are exact, else one sample at a time."""

import logging
from time import perf_counter
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.base import GradientExtractor, RuleUse, describe
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.extractors.iterative import Iterative, sample_gradient
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink
from trak_lightning.tasks.base import Task

log = logging.getLogger(__name__)

_PATIENCE = 3
"""After this many batches in a row that hooks refuse, or are slower for, all later batches use ``iterative``."""


class Auto(GradientExtractor):
    """``hooks`` where they are exact, as they are for nearly all models; else ``iterative``, one sample at a time, which is
    right for every batch.

    The choice is made for each batch. Log once which layers use which rule, and why samples are computed one at a time.
    """

    def __init__(self) -> None:
        self._hooks = Hooks()
        self._alone = Iterative()
        self._last_alone = False
        self._refused: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._sample_seconds: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
        self._slow: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._explained: WeakSet[nn.Module] = WeakSet()
        self._described: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["Auto"], tuple[()]]:
        return Auto, ()  # a spawned rank starts without knowledge of the model

    @property
    def one_by_one(self) -> bool:  # type: ignore[override]
        """Whether the samples of the last batch were computed one at a time."""
        return self._last_alone

    @property
    def kinds(self) -> int:
        return self._hooks.kinds

    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        self._last_alone = self._refused.get(model, 0) >= _PATIENCE
        if self._last_alone:
            return self._alone.extract(model, task, batch, layout, sink)
        begun = False

        def watched(block: GradientBlock) -> None:
            nonlocal begun
            begun = True
            sink(block)

        known, kinds, started = model in self._described, self._hooks.kinds, perf_counter()
        try:
            output = self._hooks.extract(model, task, batch, layout, watched)
        except UnsupportedModelError as refusal:
            self._refused[model] = self._refused.get(model, 0) + 1
            if begun:
                raise  # the caller discards what the sink has received, and starts again with `fall_back`
            self._last_alone = True
            return self.fall_back(model, refusal).extract(model, task, batch, layout, sink)
        self._refused[model] = 0
        # Layers with a rule are never slower than computing one sample at a time.
        if known and batch.size > 1 and (self._hooks.kinds > kinds or self._hooks.runs_again(model)):
            self._compare(model, task, batch, layout, perf_counter() - started)
        if self._described.get(model) != layout.fingerprint:
            self._described[model] = layout.fingerprint
            log.info("gradients  hooks: %s", describe(self._hooks.account(model, task, batch, layout)))
        return output

    def _compare(
        self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, seconds: float
    ) -> None:
        """Switch to one sample at a time if `_PATIENCE` batches in a row, not counting the first, took longer than that would."""
        if model not in self._sample_seconds:
            started = perf_counter()
            sample_gradient(model, task, batch.fetch([0]), layout)
            self._sample_seconds[model] = perf_counter() - started
        if seconds > 1.5 * batch.size * self._sample_seconds[model]:
            self._slow[model] = self._slow.get(model, 0) + 1
            if self._slow[model] >= _PATIENCE:
                self._refused[model] = _PATIENCE
                log.info("gradients  one sample at a time from now on, since that is faster than hooks for this model")

    def fall_back(self, model: nn.Module, refusal: UnsupportedModelError) -> GradientExtractor:
        if model not in self._explained:
            self._explained.add(model)
            log.warning(
                "gradients  one sample at a time where hooks fail, which is exact but slower: %s",
                _reason(refusal),
            )
        return self._alone

    def account(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout) -> list[RuleUse]:
        if self._refused.get(model, 0) < _PATIENCE:
            try:
                return self._hooks.account(model, task, batch, layout)
            except UnsupportedModelError as refusal:
                self.fall_back(model, refusal)
        return self._alone.account(model, task, batch, layout)


def _reason(refusal: UnsupportedModelError) -> str:
    """The reason of a refusal, without the advice to use another extractor, which `Auto` has followed."""
    return str(refusal).partition(" Use extractor=")[0]
