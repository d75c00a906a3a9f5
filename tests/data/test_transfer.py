"""A batch is moved as in training, whatever it holds."""

from array import array
from collections import UserList
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from trak_lightning.data.loading import IndexedBatch
from trak_lightning.data.transfer import to_device


@dataclass(frozen=True)
class Frozen:
    inputs: torch.Tensor


def moved(batch):
    indexed = IndexedBatch(torch.arange(2), batch)
    return to_device(indexed, None, nn.Identity(), torch.device("meta")).batch


@pytest.mark.parametrize("entry", [range(2), array("i", [1, 2]), memoryview(b"ab"), "ab", b"ab", None])
def test_what_holds_no_tensors_stays_as_it_is(entry):
    batch = {"entry": entry, "inputs": [Frozen(torch.ones(2)), UserList([3])]}
    found = moved(batch)
    assert found["entry"] == entry
    assert found["inputs"][0].inputs.is_meta
    assert found["inputs"][1] == [3]


def test_errors_of_the_users_own_way_to_move_are_not_hidden():
    class Graph:
        def to(self, device):
            raise TypeError("graphs stay")

    with pytest.raises(TypeError, match="graphs stay"):
        moved([Graph(), range(2)])
