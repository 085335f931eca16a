"""Finds the resets that the event loop does not report.

When a reset arrives together with data, epoll reports both at once; libuv then calls the reader a last time
and stops watching the descriptor (uv__poll_io on POLLERR). That one call reads the data, and the error behind
it would never be seen: an exchange would hang until its timeout, a tunnel until `idle`. A second recv per
chunk would find it and cost every chunk a system call. So what had traffic lately is looked at here instead,
once per `PERIOD`, many descriptors to one poll.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

from workers.core.wheel import TICK

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.io.downstream import Client
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

PERIOD: Final = 1.0  # seconds: how late a reset is noticed at the most, when the loop is not late itself
_TURNS: Final = round(PERIOD / TICK)


class Sweep:
    """One round over all tunnels and exchanges of a worker takes `PERIOD`, a part of it each tick."""

    __slots__ = ("_left", "_part", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._left: list[Tunnel | Client] = []
        self._part = 0

    def turn(self) -> None:
        """Looks at the next part."""
        left = self._left
        if not left:
            worker = self._worker
            left.extend(worker.tunnels)
            left.extend(client for client in worker.clients if client.exchange is not None)
            self._part = -(-len(left) // _TURNS)
        part = left[-self._part :] if self._part else []
        del left[len(left) - len(part) :]
        readers: dict[int, Callable[[], None]] = {}
        lately = self._worker.now - 2 * PERIOD
        for item in part:
            item.add_readers(readers, lately)
        if readers:
            self._look(readers)

    def _look(self, readers: dict[int, Callable[[], None]]) -> None:
        poll = select.poll()
        for fd in readers:
            poll.register(fd, 0)  # errors are reported whatever is asked for
        for fd, events in poll.poll(0):
            if events & (select.POLLERR | select.POLLNVAL):
                # A call that has become superfluous meanwhile finds nothing to read.
                readers[fd]()
