"""What an earlier version recorded is compared as this version would have written it."""

import pytest

from trak_lightning import registry
from trak_lightning.errors import IncompatibleRunError
from trak_lightning.run.same_settings import current, require_same


def recorded(*classes):
    """The fingerprint of a chain of projectors."""
    return {
        "seed": 0,
        "projector": {"class": "trak_lightning.projectors.chain.Chain", "projectors": [{"class": c} for c in classes]},
    }


@pytest.mark.parametrize(("old", "new"), registry.MOVED.items())
def test_a_class_that_was_moved_is_the_same_setting(old, new):
    assert current(recorded(old, "mine.P")) == recorded(new, "mine.P")
    require_same(recorded(old), recorded(new), "runs/x")
    require_same(recorded(new), recorded(old), "runs/x")  # a job of an earlier version may have been the second


def test_another_class_is_refused_by_its_present_path():
    old, new = (
        recorded("trak_lightning.projectors.lowrank.LowRank"),
        recorded("trak_lightning.projectors.dense.Gaussian"),
    )
    with pytest.raises(
        IncompatibleRunError, match=r"projector.projectors = .*two_sided.LowRank.*, and .*dense.Gaussian"
    ):
        require_same(old, new, "runs/x")
