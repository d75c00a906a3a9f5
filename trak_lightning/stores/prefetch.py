"""Reading ahead."""

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def prefetched(read: Callable[[Key], Value], keys: Sequence[Key], ahead: int) -> Iterator[Value]:
    """``map(read, keys)``, in order, with the next `ahead` results read in background threads meanwhile.

    At most ``ahead + 1`` results exist at a time. An error of `read` is raised where its result would have come.
    """
    if ahead < 1 or len(keys) < 2:
        yield from map(read, keys)
        return
    lanes = [Lane(read) for _ in range(min(ahead, 2))]
    try:
        for number, key in enumerate(keys[:ahead]):
            lanes[number % len(lanes)].ask(key)
        for number in range(len(keys)):
            if (later := number + ahead) < len(keys):
                lanes[later % len(lanes)].ask(keys[later])
            yield lanes[number % len(lanes)].result()
    finally:  # also when the consumer stops early
        for lane in lanes:
            lane.stop()


class Lane(Generic[Key, Value]):
    """A thread that reads what it is asked for, in that order. It hands over results sooner than a pool of futures does."""

    def __init__(self, read: Callable[[Key], Value]) -> None:
        self._read = read
        self._keys: SimpleQueue[tuple[Key] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Value] | BaseException] = SimpleQueue()
        self._stopped = False
        # It has nothing to finish: one whose consumer never comes back must not keep the interpreter from ending.
        self._thread = Thread(target=self._run, name="trak-read-ahead", daemon=True)
        self._thread.start()

    def ask(self, key: Key) -> None:
        """Have `key` read after those asked for before."""
        self._keys.put((key,))

    def result(self) -> Value:
        """What came of the first key whose result has not been fetched yet."""
        found = self._results.get()
        if isinstance(found, BaseException):
            raise found
        return found[0]

    def stop(self) -> None:
        """Wait for the read at hand, and do no other."""
        self._stopped = True
        self._keys.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (asked := self._keys.get()) is not None and not self._stopped:
            self._results.put(self._try(*asked))

    def _try(self, key: Key) -> tuple[Value] | BaseException:
        try:
            return (self._read(key),)
        except BaseException as error:
            return error
