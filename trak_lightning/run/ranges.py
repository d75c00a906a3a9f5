"""Integers in the way people write them."""

from collections.abc import Iterable


def ranges(parts: Iterable[range], most: int = 8) -> str:
    """Ranges of integers, in order; those that touch are written as one, and at most `most` of these.

    >>> ranges([range(0, 2), range(2, 3), range(7, 8), range(9, 11)])
    '0–2, 7, 9–10'
    """
    found: list[range] = []
    for part in parts:
        if found and part.start == found[-1].stop:
            found[-1] = range(found[-1].start, part.stop)
        else:
            found.append(part)
    texts = [str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in found[:most]]
    return ", ".join(texts) + (f" and {len(found) - most} more ranges" if len(found) > most else "")
