"""Read the next blocks in background threads while the present one is used."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def prefetched(read: Callable[[Key], Value], keys: Sequence[Key], ahead: int) -> Iterator[Value]:
    """``map(read, keys)``, while the next `ahead` results are read in at most two background threads.

    At most ``ahead + 1`` results exist at a time. An error of `read` is raised in place of its result.
    """
    if ahead < 1 or len(keys) < 2:
        yield from map(read, keys)
        return
    pool = ThreadPoolExecutor(min(ahead, 2), "trak-read-ahead")
    pending: deque[Future[Value]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(read, key))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also if the consumer stops early
        pool.shutdown(wait=True, cancel_futures=True)
