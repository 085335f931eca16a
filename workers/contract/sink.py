"""Writing to a descriptor that other processes share, without waiting and without changing it.

Standard output and standard error may be a terminal, a pipe, a socket or a file that other processes hold
too. O_NONBLOCK belongs to the open file, not to the descriptor, so setting it would change the shell's
terminal. Instead each write asks the kernel not to wait (RWF_NOWAIT), or, where the kernel can't do that for
the kind of file, asks first whether there is room.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import Final

# Up to here a write to a pipe is whole or not at all, whoever else writes to it (POSIX, PIPE_BUF).
ATOMIC: Final = select.PIPE_BUF
# Linux's value; the os module names it only where the C library's headers did.
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0x8)
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE})


class Sink:
    """A descriptor to write lines to. It is borrowed: closing it is the owner's business."""

    __slots__ = ("_nowait", "fd", "is_file")

    def __init__(self, fd: int) -> None:
        """Raises `OSError` when `fd` is not open."""
        mode = os.fstat(fd).st_mode
        self.fd = fd
        self.is_file = stat.S_ISREG(mode)
        self._nowait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def write(self, data: bytes) -> int:
        """Writes what fits now and says how many bytes that were.

        At most `ATOMIC` bytes go to a pipe whole or not at all. Raises `BlockingIOError` when there is no
        room now, and `OSError` when the file can't be written to. Only a disk can make this wait.
        """
        if self._nowait:
            try:
                return os.pwritev(self.fd, [data], -1, _NOWAIT)
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._nowait = False
        if not self.wait(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data)

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` until there is room (or an error to be met by writing)."""
        # A poll object serves one thread at a time, a sink several.
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
