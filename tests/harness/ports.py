"""Free ports for listeners that another process binds.

They lie below the range that the kernel takes ports for outgoing connections from, and each test process has
a part of them for itself, so that suites may run side by side.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FIRST = 12_000
_PART = 320  # ports
_PARTS = 64


def _part() -> int:
    """The first port of a part that is nobody else's, which a lock says for as long as this process lives."""
    folder = Path(tempfile.gettempdir()) / f"shardlb-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in range(_PARTS):
        fd = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return _FIRST + number * _PART
    raise RuntimeError(f"{_PARTS} other test processes have all the ports")


def _turn() -> Iterator[int]:
    first = _part()
    return itertools.cycle(range(first, first + _PART))


_ports: Iterator[int] | None = None


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody has bound on `host`, and that this process has not handed out for a while."""
    global _ports
    if _ports is None:
        _ports = _turn()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in itertools.islice(_ports, _PART):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of {_PART} ports is free on {host}")
