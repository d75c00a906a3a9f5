"""Computing what is missing of several feature sets under a Trainer, with any number of ranks and of other jobs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import lightning as L
import torch

from trak_lightning.errors import IncompleteRunError
from trak_lightning.featurize.block_writer import BlockWriter
from trak_lightning.featurize.module import Featurizer
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.runtime.lightning import interruptible, without_resuming
from trak_lightning.runtime.ranks import agreed, lost_ranks, will_join_group
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.stores.base import FeatureSet

POLL_SECONDS = 0.2
"""How often a job whose work is done looks whether other jobs have finished theirs."""


class Work(NamedTuple):
    """The blocks of one feature set that are a job's."""

    checkpoint: Checkpoint
    feature_set: FeatureSet
    blocks: range

    def missing(self) -> list[int]:
        return self.feature_set.missing_in(self.blocks)


@dataclass(frozen=True)
class Worker:
    """One rank at a job."""

    trainer: L.Trainer
    work: Sequence[Work]
    featurizer: Callable[[Work], Featurizer]
    advance: Callable[[int], None]
    """Told how many rows have been computed."""
    stop: StopRequest

    def run(self) -> int:
        """Compute until nothing is missing; returns the rows computed by all ranks of this job.

        Raises:
            IncompleteRunError: something is missing all the same, or another rank has ended.
            TerminatedError: the process was asked to end.
        """
        # Ranks meet in their first prediction. Before that, each sees for itself what is missing; afterwards, rank 0.
        computed = self._compute(self.work[0]) if will_join_group(self.trainer) else 0
        missing, idle = agreed(self.trainer, self._missing), 0
        while missing:
            for number in missing:
                self.stop.check()
                computed += self._compute(self.work[number])
            before = missing
            while (missing := agreed(self.trainer, partial(self._missing, free=True))) is None:
                self.stop.check()
                time.sleep(POLL_SECONDS)
            idle = 0 if missing != before else idle + 1
            if missing and idle > 1:
                raise IncompleteRunError(
                    f"{sum(missing.values())} blocks of {self.work[0].feature_set.spec.split} are missing after featurizing: "
                    "it was interrupted, a process died, or the Trainer limits the batches. What is stored is kept; run the "
                    "same command again."
                )
        return computed

    def _compute(self, part: Work) -> int:
        """Compute the missing blocks that no other process works on; returns the rows that all ranks computed."""
        featurizer, writer = self.featurizer(part), BlockWriter(self.advance, self.trainer.world_size)
        part.checkpoint.load_into(featurizer.model)
        try:
            with lost_ranks():
                predict(self.trainer, featurizer, [writer])
                # A rank that died early is not noticed by predict, and has to be met.
                computed = torch.tensor(writer.computed, device=self.trainer.strategy.root_device)
                return int(self.trainer.strategy.reduce(computed, reduce_op="sum"))
        except Exception:
            self.stop.check()  # signals also end the worker processes of a loader, and other ranks
            raise
        finally:
            if featurizer.plan is not None:
                featurizer.plan.release()

    def _missing(self, *, free: bool = False) -> dict[int, int] | None:
        """Which parts of the work have how many blocks missing. With `free`: None while others compute all of these."""
        blocks = {number: part.missing() for number, part in enumerate(self.work)}
        missing = {number: len(found) for number, found in blocks.items() if found}
        if not missing or not free:
            return missing
        for number in missing:
            feature_set = self.work[number].feature_set
            for block in blocks[number]:
                if feature_set.claim(block):
                    feature_set.release(block)
                    return missing
        return None


def predict(trainer: L.Trainer, featurizer: Featurizer, callbacks: list[L.Callback]) -> None:
    """Run the Trainer once, with these callbacks beside its own, and leave it as it was."""
    own_callbacks = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [*own_callbacks, *callbacks]  # type: ignore[attr-defined]
    try:
        with interruptible(), without_resuming(trainer):
            trainer.predict(featurizer, return_predictions=False)
    finally:
        trainer.callbacks = own_callbacks  # type: ignore[attr-defined]
        featurizer.trainer = None
