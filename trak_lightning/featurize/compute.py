"""Compute the missing blocks of several feature sets under a Trainer, alongside any number of ranks and other jobs."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import lightning as L
import torch

from trak_lightning.errors import DataError, IncompleteRunError, NonFiniteGradientError, WrongRowsError
from trak_lightning.featurize.block_writer import BlockWriter
from trak_lightning.featurize.module import Featurizer
from trak_lightning.featurize.notices import notices
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.runtime.lightning import without_resuming
from trak_lightning.runtime.ranks import agreed, lost_ranks, will_join_group
from trak_lightning.runtime.signals import StopRequest, interruptible
from trak_lightning.stores.base import FeatureSet

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often a job checks whether other jobs have stored their blocks, once its own are stored."""


class Assignment(NamedTuple):
    """The blocks of one feature set that must be stored when this job ends."""

    checkpoint: Checkpoint
    feature_set: FeatureSet
    blocks: range

    def missing(self) -> list[int]:
        """The blocks not yet stored, in order."""
        return self.feature_set.missing_in(self.blocks)

    def stored(self) -> bool:
        """Whether any job has stored rows of the set."""
        return len(self.feature_set.missing_blocks()) < self.feature_set.spec.num_blocks


@dataclass(frozen=True)
class BlockComputer:
    """One rank of a job.

    Args:
        trainer: runs the passes.
        assignments: one for each checkpoint.
        featurizer: returns the module that computes the rows of an assignment, given whether to verify stored rows first.
        advance: called with the number of rows computed since the last call.
        stop: whether the process was asked to end.
    """

    trainer: L.Trainer
    assignments: Sequence[Assignment]
    featurizer: Callable[[Assignment, bool], Featurizer]
    advance: Callable[[int], None]
    stop: StopRequest
    verified: set[int] = field(default_factory=set)
    """The assignments that were computed at least once: rows stored before this job are verified only then."""

    def run(self) -> int:
        """Compute until no block is missing; return the number of rows computed by all ranks of this job.

        Raises:
            IncompleteRunError: blocks are still missing, or another rank has ended.
            TerminatedError: the process was asked to end.
        """
        # Ranks join a process group in their first prediction. Only after it can rank 0 decide for all what is missing.
        computed = self._compute(0) if will_join_group(self.trainer) else 0
        for number in agreed(self.trainer, self._complete):
            self.stop.check()
            computed += self._compute(number)
        missing, idle = agreed(self.trainer, self._missing), 0
        while missing:
            for number in missing:
                self.stop.check()
                computed += self._compute(number)
            before = missing
            while (missing := agreed(self.trainer, partial(self._missing, free=True))) is None:
                self.stop.check()
                time.sleep(POLL_SECONDS)
            idle = 0 if missing != before else idle + 1
            if missing and idle > 1:
                raise IncompleteRunError(
                    f"{sum(missing.values())} blocks of {self.assignments[0].feature_set.spec.split} are missing after "
                    "featurizing: it was interrupted, a process died, or the Trainer limits the batches. Stored "
                    "blocks are kept; run the same command again to compute the rest."
                )
        return computed

    def _complete(self) -> list[int]:
        """The assignments that have no missing blocks and whose rows have not been verified."""
        return [
            number
            for number, assignment in enumerate(self.assignments)
            if number not in self.verified and not assignment.missing()
        ]

    def _compute(self, number: int) -> int:
        """Verify stored rows, the first time, and compute the missing blocks that no other process has claimed; return the
        number of rows that all ranks computed."""
        assignment = self.assignments[number]
        featurizer = self.featurizer(assignment, number not in self.verified)
        self.verified.add(number)
        writer = BlockWriter(self.advance, self.trainer.world_size)
        try:
            with leave_unchanged(featurizer.model), lost_ranks():
                assignment.checkpoint.load_into(featurizer.model)
                with notices(bool(assignment.missing()) or featurizer.repair):
                    predict(self.trainer, featurizer, [writer])
                # Communicate, since predict does not notice a rank that died early.
                computed = torch.tensor(writer.computed, device=self.trainer.strategy.root_device)
                return int(self.trainer.strategy.reduce(computed, reduce_op="sum"))
        except WrongRowsError as wrong:
            discarded = featurizer.discard()
            if not wrong.mended or self.trainer.world_size > 1:
                raise WrongRowsError(
                    f"{wrong} Batches like it were right before, so the rows stored earlier may be wrong, too; they were deleted: "
                    f"{discarded}.",
                    mended=False,
                ) from wrong
            self.verified.discard(number)  # it may have been the verification that failed
            log.warning("gradients  all rows of %s are computed again, one sample at a time: %s", discarded, wrong)
            return writer.computed
        except DataError as error:
            error.args = (f"split {assignment.feature_set.spec.split!r}: {error}",)
            raise error from error.__cause__  # not with what was tried before: other extractors met the same
        except NonFiniteGradientError as error:
            count = f" ({number + 1} of {len(self.assignments)})" if len(self.assignments) > 1 else ""
            where = f"split {assignment.feature_set.spec.split!r} under checkpoint {assignment.checkpoint}{count}"
            error.args = (f"{where}: {error}",)
            raise error from error.__cause__
        except Exception:
            self.stop.check()  # signals also end the worker processes of a loader, and other ranks
            raise
        finally:
            if featurizer.batches is not None:
                featurizer.batches.release()

    def _missing(self, *, free: bool = False) -> dict[int, int] | None:
        """How many blocks are missing, by assignment. With `free`, None while other processes have claimed all of these."""
        blocks = {number: assignment.missing() for number, assignment in enumerate(self.assignments)}
        missing = {number: len(found) for number, found in blocks.items() if found}
        if not missing or not free:
            return missing
        for number in missing:
            feature_set = self.assignments[number].feature_set
            for block in blocks[number]:
                if feature_set.claim(block):
                    feature_set.release(block)
                    return missing
        return None


def predict(trainer: L.Trainer, featurizer: Featurizer, callbacks: list[L.Callback]) -> None:
    """Run the Trainer once with these callbacks in addition to its own, and restore it."""
    own_callbacks = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [*own_callbacks, *callbacks]  # type: ignore[attr-defined]
    try:
        with interruptible(), without_resuming(trainer):
            trainer.predict(featurizer, return_predictions=False)
    finally:
        trainer.callbacks = own_callbacks  # type: ignore[attr-defined]
        featurizer.trainer = None
