"""Reads the files that a configuration names, without ever waiting for one: the master does this, too, and
must not stand still because a path leads to a named pipe. Makes those that hold secrets."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
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


def create_secret(path: pathlib.Path, content: bytes) -> None:
    """Makes the file `path` with `content`, readable by its owner alone, unless there is one already.

    It is there whole or not at all: of two that make it at once, both find the same one. Raises `OSError`.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write(draft, content)
        # Unlike a rename, a link never replaces what somebody else has just made.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write(path: pathlib.Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
