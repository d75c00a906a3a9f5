"""The extractor that suits the model."""

import logging
from dataclasses import dataclass
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.base import GradientExtractor, RuleUse, describe
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.extractors.iterative import Iterative
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink
from trak_lightning.tasks.base import Task

log = logging.getLogger(__name__)

_PATIENCE = 3
"""After how many batches in a row that hooks refuse the samples of all others are computed one by one."""

_REHEARSAL = 12
"""About how many passes a rehearsed batch takes: shown to the planner, rehearsed and verified."""

_FREE_REHEARSALS = 4
"""So many kinds of batches are nothing unusual."""


class Auto(GradientExtractor):
    """``hooks`` where they are exact, as they are for nearly all models; else ``iterative``, one sample at a time, which is
    right for every batch.

    Decided batch by batch; it is logged once which layers use which rule, and why samples are computed one at a time. What
    decides is counted and never timed, so that the same run gives the same bits on a busy machine.
    """

    def __init__(self) -> None:
        self._hooks = Hooks()
        self._alone = Iterative()
        self._last: ReferenceType[SampleBatch] | None = None
        self._last_alone = False
        self._refused: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._passes: WeakKeyDictionary[nn.Module, _Passes] = WeakKeyDictionary()
        self._explained: WeakSet[nn.Module] = WeakSet()
        self._described: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["Auto"], tuple[()]]:
        return Auto, ()  # a rank that is spawned finds out for itself what is known of the model

    @property
    def one_by_one(self) -> bool:  # type: ignore[override]
        """Whether the samples of the last batch were."""
        return self._last_alone

    @property
    def kinds(self) -> int:
        return self._hooks.kinds

    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        again = self._last is not None and self._last() is batch
        if not again:  # else it is verified, in the way in which it was computed
            self._last, self._last_alone = ref(batch), self._refused.get(model, 0) >= _PATIENCE
        if self._last_alone:
            return self._alone.extract(model, task, batch, layout, sink)
        begun = False

        def watched(block: GradientBlock) -> None:
            nonlocal begun
            begun = True
            sink(block)

        kinds = self._hooks.kinds
        try:
            output = self._hooks.extract(model, task, batch, layout, watched)
        except UnsupportedModelError as refusal:
            self._refused[model] = self._refused.get(model, 0) + 1
            if begun:
                raise  # the caller discards what the sink has, and begins anew with `fall_back`
            self._last_alone = True
            return self.fall_back(model, refusal).extract(model, task, batch, layout, sink)
        if not again:
            self._refused[model] = 0
        if batch.size > 1 and not again:
            self._count(model, batch.size, self._hooks.kinds - kinds)
        if self._described.get(model) != layout.fingerprint:
            self._described[model] = layout.fingerprint
            log.info("gradients  hooks: %s", describe(self._hooks.account(model, task, batch, layout)))
        return output

    def _count(self, model: nn.Module, size: int, rehearsals: int) -> None:
        """Compute samples one at a time from now on, if that takes fewer passes than batches have taken."""
        passes = self._passes.setdefault(model, _Passes())
        passes.rehearsals += rehearsals
        passes.samples += size
        # A re-run costs two passes: its own forward and backward pass, with the overhead of a functional call.
        passes.batches += 1 + 2 * size * self._hooks.looped(model)
        if passes.batches + _REHEARSAL * max(0, passes.rehearsals - _FREE_REHEARSALS) > passes.samples:
            self._refused[model] = _PATIENCE
            log.info(
                "gradients  one sample at a time from now on, which takes fewer passes through this model than hooks do"
            )

    def fall_back(self, model: nn.Module, refusal: UnsupportedModelError) -> GradientExtractor:
        if model not in self._explained:
            self._explained.add(model)
            log.warning(
                "gradients  one sample at a time, which takes as many passes as a batch has samples, for batches that need it: %s",
                refusal,
            )
        return self._alone

    def account(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout) -> list[RuleUse]:
        if self._refused.get(model, 0) < _PATIENCE:
            try:
                return self._hooks.account(model, task, batch, layout)
            except UnsupportedModelError as refusal:
                self.fall_back(model, refusal)
        return self._alone.account(model, task, batch, layout)


@dataclass
class _Passes:
    """Passes through the model, of batches and of the samples in them, had they been computed one at a time."""

    batches: float = 0.0
    samples: int = 0
    rehearsals: int = 0
