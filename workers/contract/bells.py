"""Two bells between the workers and the control process, so that neither has to look again and again.

Each is an eventfd that the master makes before the first fork. `workers` is rung when a server's state
changed on the scoreboard: every worker has it in its epoll set, edge-triggered, and nobody ever reads it
(each write is an edge of its own for every set that watches: epoll(7), eventfd(2)). `control` is rung
when a worker has something for the control process to see, which reads it to silence it.
"""

from __future__ import annotations

import os


class Bells:
    """The descriptors of both; inherited through fork."""

    __slots__ = ("control", "workers")

    def __init__(self, workers: int, control: int) -> None:
        self.workers = workers
        self.control = control

    @classmethod
    def create(cls) -> Bells:
        """Two new bells. Raises `OSError` when descriptors are short."""
        return cls(_eventfd(), _eventfd())

    def ring_workers(self) -> None:
        """Every worker looks at the servers' states, in its next turn."""
        _ring(self.workers)

    def ring_control(self) -> None:
        """The control process looks at what the workers tell."""
        _ring(self.control)

    def silence_control(self) -> None:
        """To be called by the control process before it looks."""
        try:
            os.eventfd_read(self.control)
        except BlockingIOError:
            return  # nobody rang


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _ring(fd: int) -> None:
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        # Full after 2^64 - 2 rings that nobody read: read it away, so that the next one is an edge again.
        os.eventfd_read(fd)
        os.eventfd_write(fd, 1)
