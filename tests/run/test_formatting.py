"""Numbers as people write them."""

import pytest

from trak_lightning.run.formatting import format_bytes, format_number, format_ranges, format_significant


def test_adjacent_ranges_are_joined_and_long_lists_are_cut():
    assert format_ranges([range(2), range(2, 3), range(7, 8), range(9, 11)]) == "0–2, 7, 9–10"
    assert format_ranges([range(i, i + 1) for i in range(0, 12, 2)], most=2) == "0, 2 and 4 more ranges"
    assert format_ranges([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.07749, "0.07749"),
        (-0.23, "−0.2300"),
        (151, "151.0"),
        ("-0.5", "−0.5000"),
        (1234.4, "1234"),
        (27_604.3, "27604"),
        (-999_999.4, "−999999"),
        (2e7, "2.000e+07"),
        (2e-7, "2.000e−07"),
        ("many", "many"),
    ],
)
def test_numbers_that_are_compared_have_as_many_digits(value, text):
    assert format_significant(value) == text


@pytest.mark.parametrize("value", [0.001, 0.0123, 9.99, 4400, 13_245.6, 99_999.9, 999_999])
@pytest.mark.parametrize("digits", [1, 2, 4, 6])
def test_numbers_of_ordinary_size_have_no_exponent(value, digits):
    for number in (value, -value):
        text = format_number(number, digits)
        assert "e" not in text
        assert float(text) == pytest.approx(number, rel=0.5 * 10 ** (1 - digits))


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1_234_567, "1.23 MB"), (5 * 10**13, "50 TB")],
)
def test_bytes_are_written_in_powers_of_1000(nbytes, text):
    assert format_bytes(nbytes) == text
