"""The pid file: locked for the master's life, so that it can neither be stale nor lie."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib

from lb.master.failures import StartError, reason


class PidFile:
    """Holds `path` with our pid in it. A file that a dead process left is taken over."""

    def __init__(self, path: pathlib.Path) -> None:
        """Raises `StartError` where another instance holds it, or it can't be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = _locked(path)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise StartError(f"process.pid_file: {path} can't be written: {reason(error)}") from error

    @classmethod
    def inherited(cls, path: pathlib.Path, fd: int) -> PidFile:
        """The file that this very process has locked and written before it executed itself anew."""
        kept = cls.__new__(cls)
        kept._path, kept._fd = path, fd
        return kept

    @property
    def path(self) -> pathlib.Path:
        """Where it is."""
        return self._path

    @property
    def fd(self) -> int:
        """The open file that has the lock."""
        return self._fd

    def close(self) -> None:
        """Removes the file, where it is still ours, and gives the lock back."""
        with contextlib.suppress(FileNotFoundError):
            if _same(self._fd, self._path):
                os.unlink(self._path)
        os.close(self._fd)


def _locked(path: pathlib.Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StartError(f"process.pid_file: another lb (pid {holder}) holds {path}") from None
        # The holder may have removed the file between our open and its unlock.
        if _same(fd, path):
            return fd
        os.close(fd)


def _same(fd: int, path: pathlib.Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)
