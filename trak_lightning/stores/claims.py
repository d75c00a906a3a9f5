"""Share the blocks of a feature set between processes, so that no two of them compute the same block."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from trak_lightning.run.atomic import refused

try:
    import fcntl
except ImportError:  # Windows: processes may then do the same block twice, with the same result
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = (errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


_held: dict[Path, tuple[int, set[int]]] = {}
"""Lock file → its descriptor, and the blocks that this process has claimed. There is one descriptor per file, because closing
any of them would give up all claims of the process."""


_lock = threading.Lock()  # blocks are claimed by the main thread and released by the one that writes


class Claims:
    """One byte of a file per block, locked by the process that computes the block.

    The operating system releases a lock when its process dies, however that happens, so that no claim is ever left over and
    nothing depends on clocks. POSIX record locks also work between the machines of a cluster where the file system (NFS,
    Lustre with ``-o flock``) supports them; elsewhere every claim succeeds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self, block: int) -> bool:
        """Claim a block; returns whether this process now has it. Claims of one process do not exclude each other.

        Raises:
            StorageError: the folder cannot be written to.
        """
        if fcntl is None:
            return True
        with _lock:
            return self._acquire(block)

    def _acquire(self, block: int) -> bool:
        if self._path not in _held:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _held[self._path] = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), set()
            except OSError as error:
                raise refused(self._path, error) from error
        descriptor, blocks = _held[self._path]
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block, os.SEEK_SET)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self._close_if_idle()
                return False
        blocks.add(block)
        return True

    def release(self, block: int) -> None:
        """Let others have the block."""
        with _lock:
            descriptor, blocks = _held.get(self._path, (-1, set()))
            if block in blocks:
                blocks.remove(block)
                with suppress(OSError):
                    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, block, os.SEEK_SET)
                self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not _held[self._path][1]:
            os.close(_held.pop(self._path)[0])
