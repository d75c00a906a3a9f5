"""Choose the extractor for each batch: hooks where they are exact, else one sample at a time."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.base import GradientExtractor, RuleUse, describe
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.extractors.hooks.budget import Budget, Deferred
from trak_lightning.extractors.iterative import Iterative
from trak_lightning.extractors.rules.fallback import TooManyPasses
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink, halves_of, restart_of
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task

log = logging.getLogger(__name__)

_PATIENCE = 3
"""After this many batches in a row that hooks refuse, all later batches use ``iterative``."""

_REHEARSAL = 8
"""About how many passes it takes to plan for a batch, rehearse it and verify it."""

_FOUND_NEW = 0.5
"""The part of a pass after which a batch turns out to be of a new kind."""

_SPENT = 40
"""Hooks may take one pass in so many before they have saved any."""

_HELD = 2**24
"""The gradient of a model with no more entries may be held as a whole: then hooks save nothing for a batch of one sample."""

_FEWER = "gradients  one sample at a time from now on, which takes fewer passes through this model than hooks do"


class Auto(GradientExtractor):
    """``hooks`` where they are exact, as they are for nearly all models; else ``iterative``, one sample at a time, which is
    right for every batch.

    The choice is made for each batch. Log once which layers use which rule, and why samples are computed one at a time.
    The choice depends on counted passes and never on time, so that the same run gives the same bits on a busy machine.
    """

    falls_back = True

    def __init__(self) -> None:
        self._passes = _Passes()
        self._hooks = Hooks()
        self._hooks.budget = self._passes
        self._alone = Iterative()
        self._last: ReferenceType[SampleBatch] | None = None
        self._last_alone = False
        self._refused: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
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
        again = self._last is not None and self._last() is batch
        if not again:  # else the batch is verified by the extractor that computed it
            self._last = ref(batch)
            self._last_alone = self._chooses_alone(model, batch, layout)
        if self._last_alone:
            return self._alone.extract(model, task, batch, layout, sink)
        watched, passes = _Watched(sink), self._passes.of(model)
        rehearsals = self._hooks.rehearsals
        try:
            output = self._hooks.extract(model, task, batch, layout, watched)
        except UnsupportedModelError as refusal:
            if watched.begun:
                self._note_refusal(model, refusal)
                raise  # the caller discards what the sink has received, and starts again with `fall_back`
            self._last_alone = True
            output = self._alone.extract(model, task, batch, layout, sink)
            if isinstance(refusal, Deferred):
                self._count(model, batch.size, batch.size + (_FOUND_NEW if passes.worked else 0.0), 0)
                return output
            self._note_refusal(model, refusal)
            self._count(model, batch.size, batch.size, 1)
            self.fall_back(model, refusal)  # says why, once the other has worked
            return output
        if not again:
            self._refused[model] = 0
            passes.worked = True
        if batch.size > 1 and not again:
            # Re-running one sample takes about as long as two ordinary passes.
            taken = 1 + 2 * batch.size * self._hooks.looped(model)
            self._count(model, batch.size, taken, self._hooks.rehearsals - rehearsals)
        if model not in self._explained and self._described.get(model) != layout.fingerprint:
            self._described[model] = layout.fingerprint
            log.info("gradients  hooks: %s", describe(self._hooks.account(model, task, batch, layout)))
        return output

    def _chooses_alone(self, model: nn.Module, batch: SampleBatch, layout: ParameterLayout) -> bool:
        if batch.size == 1 and layout.numel <= _HELD and not any_sharded(model.parameters()):
            return True
        # A batch of one that hooks can do says nothing of larger ones that they refused.
        return self._refused.get(model, 0) >= (1 if batch.size == 1 else _PATIENCE)

    def audits(self, model: nn.Module, batch: SampleBatch) -> bool:
        return self._refused.get(model, 0) < _PATIENCE and self._hooks.audits(model, batch)

    def _note_refusal(self, model: nn.Module, refusal: UnsupportedModelError) -> None:
        # If vmap cannot re-run most of the model, no other batch will change that.
        hopeless = isinstance(refusal, TooManyPasses) and not self._passes.of(model).worked
        self._refused[model] = _PATIENCE if hopeless else self._refused.get(model, 0) + 1

    def _count(self, model: nn.Module, samples: int, taken: float, rehearsals: int) -> None:
        """Switch to one sample at a time if the batches so far took more passes than their samples would have taken, not counting
        the first plan."""
        passes = self._passes.of(model)
        passes.samples += samples
        passes.taken += taken
        passes.rehearsals += rehearsals
        if passes.worked and passes.saved + _REHEARSAL < 0 and self._refused.get(model, 0) < _PATIENCE:
            self._refused[model] = _PATIENCE
            if model not in self._explained:
                log.info(_FEWER)

    def fall_back(self, model: nn.Module, refusal: UnsupportedModelError) -> GradientExtractor:
        if model not in self._explained:
            self._explained.add(model)
            if isinstance(refusal, TooManyPasses):
                log.info(_FEWER)
                return self._alone
            log.warning(
                "gradients  one sample at a time where hooks fail, which is exact but slower (extractor: iterative does so without this "
                "line): %s",
                _reason(refusal),
            )
        return self._alone

    def distrust(self, model: nn.Module) -> bool:
        self._refused[model] = _PATIENCE
        return True

    def account(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout) -> list[RuleUse]:
        if not self._chooses_alone(model, batch, layout):
            try:
                return self._hooks.account(model, task, batch, layout)
            except UnsupportedModelError as refusal:
                self.fall_back(model, refusal)
        return self._alone.account(model, task, batch, layout)


class _Watched:
    """A sink that knows whether it has received blocks."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.begun = False

    def __call__(self, block: GradientBlock) -> None:
        self.begun = True
        self._sink(block)

    @property
    def restart(self) -> Callable[[], None] | None:
        return None if restart_of(self._sink) is None else self._restart

    @property
    def halves(self) -> Callable[[Tensor], None] | None:
        return halves_of(self._sink)

    def _restart(self) -> None:
        self.begun = False
        if (restart := restart_of(self._sink)) is not None:
            restart()


def _reason(refusal: UnsupportedModelError) -> str:
    """The reason of a refusal, without the advice to use another extractor, which `Auto` has followed."""
    return str(refusal).partition(" Use extractor=")[0]


@dataclass
class _Count:
    """The batches of a model so far: the passes that they took, not counting rehearsals; their samples; how many were rehearsed or
    refused; and whether hooks have worked for any."""

    taken: float = 0.0
    samples: int = 0
    rehearsals: int = 0
    worked: bool = False

    @property
    def saved(self) -> float:
        """How many passes fewer the batches took than their samples would have taken."""
        return self.samples - self.taken - _REHEARSAL * self.rehearsals


class _Passes(Budget):
    """Allows hooks what is not expected to be more than one sample at a time takes. The first plan is free."""

    def __init__(self) -> None:
        self._counts: WeakKeyDictionary[nn.Module, _Count] = WeakKeyDictionary()

    def of(self, model: nn.Module) -> _Count:
        """What was counted for a model."""
        return self._counts.setdefault(model, _Count())

    def allows_plan(self, model: nn.Module, size: int) -> bool:
        count = self.of(model)
        if not count.rehearsals or (count.worked and size > _REHEARSAL):
            return True
        return count.saved >= 0 or _SPENT * _REHEARSAL * count.rehearsals <= count.samples

    def allows_loop(self, share: float, size: int) -> bool:
        return 1 + 2 * size * share <= size
