import pytest
import torch

from trak_lightning.projectors import signed_sums
from trak_lightning.projectors.signed_sums import accumulate, compiled, fold, project

pytestmark = pytest.mark.skipif(
    not compiled(torch.zeros(1)), reason="trak_lightning was installed without a C compiler: torch sums runs"
)


@pytest.fixture
def torch_only(monkeypatch):
    """Do what follows as an installation without a compiler does it."""
    return lambda: monkeypatch.setattr(signed_sums, "_library", lambda: None)


# Pairs of samples and a rest; runs that end within a slice of the cache and at its edge, fewer and more of them than are added at a time, one alone.
@pytest.mark.parametrize("entries", [1, 7, 4096, 4097, 40_000, 123_457])
@pytest.mark.parametrize(("length", "groups"), [(1, 1), (13, 2), (509, 9), (2039, 5), (4099, 1)])
def test_compiled_code_gives_the_bits_of_torch(entries, length, groups, torch_only):
    torch.manual_seed(0)
    grad, dim = torch.randn(7, entries), length + 9
    signs = (torch.randint(0, 2, (entries,)) * 2 - 1).to(torch.int8)
    offsets, width = torch.randint(0, dim, (groups,)), min(groups * length, entries)
    features = [torch.ones(7, dim), torch.ones(7, dim)]
    sums = [torch.zeros(7, width), torch.zeros(7, width)]
    for number in range(2):
        project(grad, signs, offsets, length, width, features[number])
        for start in range(0, entries, 31_000):
            accumulate(grad[:, start : start + 31_000], start, signs, sums[number])
        torch_only()
    assert torch.equal(*features)
    assert torch.equal(*sums)
    fold(sums[0], offsets, length, again := torch.ones(7, dim))
    assert torch.equal(again, features[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads):
    torch.manual_seed(0)
    grad, offsets = torch.randn(5, 30_000), torch.tensor([3, 11])
    signs = (torch.randint(0, 2, (30_000,)) * 2 - 1).to(torch.int8)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, threads):
            torch.set_num_threads(count)
            project(grad, signs, offsets, 509, 1018, out := torch.zeros(5, 600))
            found.append(out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_slices_and_other_dtypes_are_summed_too():
    grad, signs = torch.randn(4, 600, dtype=torch.float64), torch.ones(500, dtype=torch.int8)
    offsets, features = torch.tensor([0]), torch.zeros(4, 120)
    project(grad[:, 50:550].float(), signs, offsets, 100, 100, features[:, 10:110])
    assert torch.allclose(features[:, 10:110].double(), grad[:, 50:550].view(4, 5, 100).sum(1), atol=1e-5)
    assert not features[:, :10].any()
    assert not features[:, 110:].any()
    double = torch.zeros(4, 100, dtype=torch.float64)
    project(grad[:, 50:550], signs, offsets, 100, 100, double)
    assert torch.allclose(double, grad[:, 50:550].view(4, 5, 100).sum(1), atol=1e-12)


def test_code_compiled_from_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(signed_sums, "_ARGUMENTS", {"no_longer": []})
    signed_sums._library.cache_clear()
    with pytest.warns(UserWarning, match="compiled from the sources of another version"):
        assert compiled(torch.zeros(1)) is None
    signed_sums._library.cache_clear()
