"""Integers in the way people write them."""

from collections.abc import Iterable


def ranges(values: Iterable[int], most: int = 8) -> str:
    """Sorted integers, with runs of consecutive ones written as ranges, at most `most` of these.

    >>> ranges([0, 1, 2, 7, 9, 10])
    '0–2, 7, 9–10'
    """
    found: list[list[int]] = []
    for value in values:
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    texts = [str(first) if first == last else f"{first}–{last}" for first, last in found[:most]]
    return ", ".join(texts) + (f" and {len(found) - most} more ranges" if len(found) > most else "")
