"""Numbers as people write them."""

import math
from collections.abc import Iterable
from typing import Any


def format_ranges(parts: Iterable[range], most: int = 8) -> str:
    """Write ascending ranges of integers; adjacent ranges are joined, and at most `most` are written out.

    >>> format_ranges([range(0, 2), range(2, 3), range(7, 8), range(9, 11)])
    '0–2, 7, 9–10'
    """
    joined: list[range] = []
    for part in parts:
        if joined and part.start == joined[-1].stop:
            joined[-1] = range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    texts = [str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in joined[:most]]
    return ", ".join(texts) + (f" and {len(joined) - most} more ranges" if len(joined) > most else "")


def listed(items: Iterable[Any], most: int = 5) -> str:
    """Write the first few of some things.

    >>> listed([3, 17]), listed("abc", 2)
    ('3, 17', 'a, b …')
    """
    found = list(items)
    return ", ".join(map(str, found[:most])) + " …" * (len(found) > most)


def counted(count: int, noun: str) -> str:
    """Write a number of things.

    >>> counted(1, "checkpoint"), counted(2, "checkpoint")
    ('1 checkpoint', '2 checkpoints')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def format_bytes(nbytes: float) -> str:
    """Write a number of bytes with three significant digits, in powers of 1000.

    >>> format_bytes(512), format_bytes(1_234_567), format_bytes(23_400_000_000)
    ('512 B', '1.23 MB', '23.4 GB')
    """
    value, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def format_number(value: float, digits: int = 4, flags: str = "") -> str:
    """Write a number like ``{value:{flags}.{digits}g}``, but from 0.001 to 10⁶ without an exponent: with all digits before the point.

    >>> format_number(0.00123456), format_number(13245.6), format_number(4400), format_number(386.2, 2, "+"), format_number(2e7)
    ('0.001235', '13246', '4400', '+386', '2e+07')
    """
    text = f"{value:{flags}.{digits}g}"
    return f"{value:{flags.replace('#', '')}.0f}" if "e" in text and 1e-3 <= abs(value) < 1e6 else text


def format_percent(share: float, decimals: int = 0) -> str:
    """Write a share in percent.

    >>> format_percent(0.1), format_percent(0.885, 1)
    ('10 %', '88.5 %')
    """
    return f"{100 * share:.{decimals}f} %"


def format_with_error(value: float, error: float | None) -> str:
    """Write a number with its sign, and to as many decimals as two digits of its error have; without the error if it is not known.

    >>> format_with_error(-4386.3, 213.0), format_with_error(0.12345, 0.0123), format_with_error(0.12345, None)
    ('-4386 ± 213', '+0.123 ± 0.012', '+0.1235')
    """
    if error is None or not 1e-6 < error < 1e6:
        return format_number(value, flags="+")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:+.{decimals}f} ± {error:.{decimals}f}"


def format_significant(value: float | str, digits: int = 4) -> str:
    """Write a number with all of its significant digits, zeros at the end too, so that numbers that are compared have as many. Text that is
    no number stays as it is.

    >>> format_significant(0.07749), format_significant(-0.23), format_significant(151), format_significant(1234.4)
    ('0.07749', '−0.2300', '151.0', '1234')
    """
    try:
        number = float(value)
    except ValueError:
        return str(value)
    return format_number(number, digits, "#").removesuffix(".").replace("-", "−")
