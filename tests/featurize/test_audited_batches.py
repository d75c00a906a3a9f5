"""Which batches of a known kind are audited."""

import torch
from torch import nn
from torch.utils.data import default_collate

from trak_lightning import registry
from trak_lightning.data.samples import SampleBatch
from trak_lightning.featurize.batch_audit import BatchAuditor
from trak_lightning.gradients import ParameterLayout


def audited(count, *, ranks=1, rank=0):
    """The numbers, from 1, of the batches that are due, of as many of two alike samples on each rank."""
    model = nn.Linear(3, 2)
    auditor = BatchAuditor(model, registry.create("tasks", "image_classification"), ParameterLayout.of(model), seed=0)
    batch = SampleBatch.of([(torch.ones(3), 0)] * 2, default_collate)
    starts = [2 * (rank + ranks * number) for number in range(count)]
    return [
        number
        for number, start in enumerate(starts, 1)
        if auditor.due(batch, torch.arange(start, start + 2), ranks) is not None
    ]


def test_a_short_run_audits_the_first_second_and_fourth_batch_and_so_on():
    due = set(audited(32))
    assert due >= {1, 2, 4, 8, 16, 32}
    assert len(due) <= 8  # a few are drawn


def test_of_the_later_ones_of_ranks_that_audit_together_each_has_its_share():
    due = [audited(256, ranks=8, rank=rank) for rank in range(8)]
    assert all(1 in each for each in due)
    assert 4 <= sum(len(each) - 1 for each in due) <= 24, due
