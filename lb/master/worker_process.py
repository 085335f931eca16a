"""One worker as the master sees it: its process, its channel, and where it stands."""

from __future__ import annotations

import enum
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from lb.master.loop import READ, WRITE, Loop
from lb.master.spawn import Spawned
from workers.contract import messages
from workers.contract.messages import AnyMessage, ChannelError

# A worker that lets this many messages wait reads its channel no more.
MAX_WAITING: Final = 1024


class Phase(enum.Enum):
    """Where a worker stands. STARTING -> LOADING -> SERVING, and LEAVING from each of them."""

    STARTING = "starting"  # forked, not heard of yet
    LOADING = "loading"  # was sent its first configuration
    SERVING = "serving"
    LEAVING = "leaving"  # was told to stop, and is not replaced


class WorkerProcess:
    """The channel's sending side never blocks: what the socket doesn't take waits here, bounded."""

    __slots__ = (
        "_loop",
        "_on_broken",
        "_on_message",
        "_waiting",
        "cause",
        "channel",
        "closed",
        "heartbeat",
        "phase",
        "pid",
        "quiet",
        "slot",
        "started",
    )

    def __init__(
        self,
        slot: int,
        spawned: Spawned,
        loop: Loop,
        on_message: Callable[[WorkerProcess, AnyMessage], None],
        on_broken: Callable[[WorkerProcess, str], None],
    ) -> None:
        self.slot = slot
        self.pid = spawned.pid
        self.channel = spawned.channel
        self.started = time.monotonic()
        self.phase = Phase.STARTING
        self.cause = ""  # why the master killed it
        self.closed = False
        self.heartbeat = 0  # last seen
        self.quiet = 0.0  # seconds without a new one
        self._loop = loop
        self._on_message = on_message
        self._on_broken = on_broken
        self._waiting: deque[tuple[AnyMessage, tuple[int, ...]]] = deque()
        loop.watch(self.channel.fileno(), READ, self._ready)

    def send(self, message: AnyMessage, fds: Sequence[int] = ()) -> None:
        """Sends or queues `message`. The descriptors stay the caller's, who may close them at once."""
        if self.closed:
            return
        if not self._waiting and self._try(message, fds):
            return
        self._queue(message, fds)

    def _queue(self, message: AnyMessage, fds: Sequence[int]) -> None:
        if self.closed:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._broken("it does not read its channel")
            return
        kept = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds)
        self._waiting.append((message, kept))
        self._loop.watch(self.channel.fileno(), READ | WRITE, self._ready)

    def signal(self, number: int) -> None:
        """Sends a signal; harmless when the process is gone, since only `waitpid` frees its number."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """Lets go of the channel."""
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self.channel.fileno())
        self.channel.close()
        while self._waiting:
            _close_fds(self._waiting.popleft()[1])

    def _try(self, message: AnyMessage, fds: Sequence[int]) -> bool:
        try:
            messages.send(self.channel, message, fds)
        except BlockingIOError:
            return False
        except OSError as error:
            self._broken(f"its channel failed: {error}")
            return False
        return True

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ:
            self._receive()

    def _flush(self) -> None:
        while self._waiting and not self.closed:
            message, fds = self._waiting[0]
            if not self._try(message, fds):
                return
            self._waiting.popleft()
            _close_fds(fds)
        if not self.closed:
            self._loop.watch(self.channel.fileno(), READ, self._ready)

    def _receive(self) -> None:
        if self.closed:
            return
        try:
            received = messages.receive(self.channel)
        except BlockingIOError:
            return
        except ChannelError as error:
            self._broken(f"its channel can't be trusted: {error}")
            return
        except OSError as error:
            self._broken(f"its channel failed: {error}")
            return
        if received is None:
            self._broken("it closed its channel")
            return
        message, fds = received
        _close_fds(fds)  # workers have nothing to hand over
        self._on_message(self, message)

    def _broken(self, why: str) -> None:
        self.close()
        self._on_broken(self, why)


def _close_fds(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
