"""What Linux tells about a process (proc(5)); `None` where it tells nothing: gone, or not ours to look at."""

from __future__ import annotations

import functools
import os
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STARTTIME: Final = 22 - 3  # field of /proc/PID/stat, counted from the state, which follows the name


def resident_memory(pid: int) -> int | None:
    """Resident memory in bytes."""
    content = _read(f"/proc/{pid}/statm")
    return int(content.split()[1]) * _PAGE if content else None


def open_files(pid: int) -> int | None:
    """Open file descriptors."""
    try:
        # Since Linux 6.2 the size of the folder is their number; counting takes long when there are many.
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def start_time(pid: int) -> float | None:
    """Unix time when the process started."""
    content = _read(f"/proc/{pid}/stat")
    if not content:
        return None
    ticks = int(content[content.rindex(b")") + 1 :].split()[_STARTTIME])
    return _boot_time() + ticks / _TICKS


@functools.cache
def _boot_time() -> int:
    for line in _read("/proc/stat").splitlines():
        if line.startswith(b"btime "):
            return int(line.split()[1])
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(65536)
    except OSError:
        return b""
