"""The random stream is Philox4x32-10, and tiles of it fit together."""

import pytest
import torch

from trak_lightning.projectors.philox import philox_rounds, random_integers, random_normals, random_signs

CPU = torch.device("cpu")
ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES), (ONES, ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_it_gives_the_known_answers_of_its_authors(key, counter, expected):
    words = philox_rounds(key, tuple(torch.tensor([word]) for word in counter))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("stream", [random_signs, random_normals])
def test_any_piece_of_a_stream_equals_that_piece_of_the_whole(stream):
    whole = stream(7, 0, 1000, CPU)
    for start, count in ((0, 1), (1, 130), (127, 2), (500, 500)):
        assert torch.equal(stream(7, start, count, CPU), whole[start : start + count])


def test_signs_and_normals_have_the_moments_of_their_distributions():
    signs, normals = random_signs(1, 0, 100_000, CPU).float(), random_normals(1, 0, 100_000, CPU)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.02
    for moment, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs(float((normals**moment).mean()) - expected) < 0.1


def test_integers_fill_their_range():
    found = random_integers(3, 10_000, 7, CPU)
    assert torch.bincount(found, minlength=7).min() > 1200
    assert found.max() == 6
