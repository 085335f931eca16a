"""Reads the files that a configuration names, without ever waiting for one: the master does this, too, and
must not stand still because a path leads to a named pipe."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def read_regular(path: str | os.PathLike[str], most: int) -> tuple[bytes, os.stat_result]:
    """The first `most` bytes of a regular file, and what `fstat` says of it.

    Raises `OSError`, also for pipes, devices, sockets and folders: opening or reading one can take for ever.
    """
    fd = os.open(path, _FLAGS)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        with open(fd, "rb", closefd=False) as file:
            return file.read(most), status
    finally:
        os.close(fd)
