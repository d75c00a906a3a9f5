"""What a linear datamodeling score is called. No numpy: commands that only read import it."""

from bisect import bisect_left

WORDS = ((0.05, "very weak"), (0.15, "weak"), (0.3, "moderate"), (0.5, "good"), (1.0, "very good"))
UNKNOWN, UNCERTAIN, CHANCE = "not known yet", "uncertain", "not distinguishable from chance"

WIDEST = 1.0
"""Of a wider 95 % interval, the score itself is not told: it would be read, and the interval would not."""


def in_words(lds: float, low: float, high: float) -> str:
    """Call a linear datamodeling score weak, moderate or good, unless an end of its 95 % interval is more than one word away, or it is wider
    than `WIDEST`."""
    if high - low > WIDEST:
        return UNKNOWN
    limits = [limit for limit, _ in WORDS]
    least, word, most = (bisect_left(limits, min(value, 1.0)) for value in (low, lds, high))
    if max(word - least, most - word) > 1:
        return UNCERTAIN
    return CHANCE if low <= 0 else WORDS[word][1]
