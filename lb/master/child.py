"""A child process as the master sees it: its pid and its channel, whose sending side never blocks."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from lb.master.loop import READ, WRITE, Loop
from lb.master.spawn import Spawned
from workers.contract import messages
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import ChannelError, Message

# A child that lets this many messages wait reads its channel no more.
MAX_WAITING: Final = 1024

Incoming = TypeVar("Incoming")
Receive = Callable[[socket.socket], tuple[Incoming, list[int]] | None]


class Child(Generic[Incoming]):
    """What the socket doesn't take waits here, bounded. `receive` reads one message of the child."""

    __slots__ = (
        "_log",
        "_loop",
        "_receive",
        "_waiting",
        "cause",
        "channel",
        "closed",
        "heartbeat",
        "pid",
        "quiet",
        "started",
    )

    def __init__(self, spawned: Spawned, loop: Loop, log: ErrorLog, receive: Receive[Incoming]) -> None:
        self.pid = spawned.pid
        self.channel = spawned.channel
        self.started = time.monotonic()
        self.cause = ""  # why the master killed it
        self.closed = False
        self.heartbeat = 0  # last seen
        self.quiet = 0.0  # seconds without a new one
        self._loop = loop
        self._log = log
        self._receive = receive
        self._waiting: deque[tuple[Message, tuple[int, ...]]] = deque()
        loop.watch(self.channel.fileno(), READ, self._ready)

    @abstractmethod
    def took(self, message: Incoming, fds: list[int]) -> None:
        """The child said `message`; the descriptors are the callee's."""

    @abstractmethod
    def lost(self, why: str) -> None:
        """The channel is of no use any more, and closed."""

    @property
    def behind(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._waiting)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends or queues `message`. The descriptors stay the caller's, who may close them at once."""
        if self.closed:
            return
        if not self._waiting and self._try(message, fds):
            return
        self._queue(message, fds)

    def _queue(self, message: Message, fds: Sequence[int]) -> None:
        if self.closed:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._broken("it does not read its channel")
            return
        kept: list[int] = []
        try:
            for fd in fds:
                kept.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as error:
            close_fds(kept)
            self._broken(f"no descriptors for what waits for it: {error}")
            return
        self._waiting.append((message, tuple(kept)))
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
            close_fds(self._waiting.popleft()[1])

    def _try(self, message: Message, fds: Sequence[int]) -> bool:
        """Whether nothing is left to do for `message`."""
        try:
            messages.send(self.channel, message, fds)
        except BlockingIOError:
            return False
        except ChannelError as error:  # over the limits: nothing was sent, and nothing ever can be
            self._log.error("a message to a child is dropped, please report it", pid=self.pid, error=error)
        except OSError as error:
            self._broken(f"its channel failed: {error}")
            return False
        return True

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ:
            self._read()

    def _flush(self) -> None:
        while self._waiting and not self.closed:
            message, fds = self._waiting[0]
            if not self._try(message, fds):
                return
            self._waiting.popleft()
            close_fds(fds)
        if not self.closed:
            self._loop.watch(self.channel.fileno(), READ, self._ready)

    def _read(self) -> None:
        if self.closed:
            return
        try:
            received = self._receive(self.channel)
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
        self.took(*received)

    def last_words(self) -> Iterator[Incoming]:
        """What a child that is gone had said and nobody has read."""
        while not self.closed:
            try:
                received = self._receive(self.channel)
            except OSError:
                return  # nothing more, or nothing that can be read
            if received is None:
                return
            message, fds = received
            close_fds(fds)
            yield message

    def _broken(self, why: str) -> None:
        self.close()
        self.lost(why)


def close_fds(fds: Sequence[int]) -> None:
    """Closes all of `fds`."""
    for fd in fds:
        os.close(fd)
