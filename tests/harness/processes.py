"""What /proc says about a process: descriptors, memory, CPU time, children."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name; `[]` when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def cpu_seconds(pid: int) -> float:
    """User and system time that `pid` has used so far."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(pid: int) -> int:
    """Resident memory of `pid` that is its own, shared pages left out."""
    total, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3]
    return (int(total) - int(shared)) * _PAGE


def descriptors(pid: int) -> dict[int, str]:
    """Each open descriptor of `pid` and what it points to; a process that is gone has none."""
    found: dict[int, str] = {}
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return found
    for entry in entries:
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:  # closed between the listing and the look
            continue
    return found


@contextlib.contextmanager
def memory_of(pid: int, name: str) -> Iterator[int]:
    """A descriptor of the memfd of `pid` that is called so, closed at the end of the block."""
    number = next(number for number, target in descriptors(pid).items() if name in target)
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def own_descriptors() -> set[int]:
    """The open descriptors of the test's own process. (What earlier tests mapped is closed when it is
    collected, which may be in the middle of this one.)"""
    gc.collect()
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {int(name) for name in os.listdir(listing)} - {listing}
    finally:
        os.close(listing)


def children(pid: int) -> list[int]:
    """The running children of `pid`."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split() if alive(int(child))]


def threads(pid: int) -> int:
    """How many threads `pid` has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
