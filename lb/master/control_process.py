"""The control process as the master sees it: started, watched and replaced, and never in the way of the
traffic: whatever happens to it, the workers serve on."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from lb.control.messages import Leave, ToMaster, receive_in_master
from lb.master import signals
from lb.master.child import Child, close_fds
from lb.master.loop import Loop, Timer
from lb.master.spawn import Spawned
from lb.master.supervision import CHANNEL, LATE, WEDGED, Backoff, cause_of_death, quiet_for
from workers.contract.cells import ControlCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import Message
from workers.contract.scoreboard import Scoreboard

_LEAVE_TIME: Final = 1.0
_DUMP_TIME: Final = 0.5  # between the stack dump of a wedged process and its end
_RETRY_FORK: Final = 1.0

Took = Callable[["ControlProcess", ToMaster, list[int]], None]


class ControlProcess(Child[ToMaster]):
    """One control process."""

    __slots__ = ("_on_lost", "_took")

    def __init__(
        self,
        spawned: Spawned,
        loop: Loop,
        log: ErrorLog,
        took: Took,
        lost: Callable[[ControlProcess, str], None],
    ) -> None:
        super().__init__(spawned, loop, log, receive_in_master)
        self._took = took
        self._on_lost = lost

    def took(self, message: ToMaster, fds: list[int]) -> None:
        """Passes the message on."""
        self._took(self, message, fds)

    def lost(self, why: str) -> None:
        """Passes it on."""
        self._on_lost(self, why)


class ControlKeeper:
    """Sees to it that there is a control process. `on_message` gets what it says; `on_end` is called with
    the pid and the cause after each unexpected end."""

    def __init__(self, loop: Loop, log: ErrorLog, board: Scoreboard, spawn: Callable[[], Spawned]) -> None:
        self.restarts: Counter[str] = Counter()
        self.on_message: Took = lambda _child, _message, fds: close_fds(fds)
        self.on_end: Callable[[int, str], None] = lambda _pid, _cause: None
        self._loop = loop
        self._log = log
        self._board = board
        self._spawn = spawn
        self._child: ControlProcess | None = None
        self._relieved: ControlProcess | None = None  # it leaves, and another one is to come
        self._backoff = Backoff()
        self._last_tick = time.monotonic()
        self._when_gone: Callable[[], None] | None = None
        self._retry: Timer | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        return 0 if self._child is None else self._child.pid

    def start(self) -> None:
        """Forks one, where there is none."""
        if self._child is not None or self._when_gone is not None:
            return
        try:
            spawned = self._spawn()
        except OSError as error:
            self._log.error("the control process can't be forked", error=error, retry_in=_RETRY_FORK)
            self._retry = self._loop.later(_RETRY_FORK, self.start)
            return
        child = ControlProcess(spawned, self._loop, self._log, self.on_message, self._lost)
        child.heartbeat = self._heartbeat()
        self._child = child
        self._log.info("control process started", pid=child.pid)

    def relieve(self, spawned: Spawned, started: float) -> None:
        """Takes over one that a predecessor of this process has forked: it is told to leave, and another one
        is started when it has left, since the scoreboard's cells have one writer at a time."""
        child = ControlProcess(spawned, self._loop, self._log, self.on_message, self._lost)
        child.started = started
        self._child = self._relieved = child
        child.send(Leave())
        self._loop.later(_LEAVE_TIME, lambda: self._kill(child, LATE))

    @property
    def child(self) -> ControlProcess | None:
        """The one of now."""
        return self._child

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Tells it `message`, where it is there."""
        if self._child is not None:
            self._child.send(message, fds)

    def leave(self, when_gone: Callable[[], None]) -> None:
        """Ends it, and calls `when_gone` when it has ended. No other is started."""
        if self._when_gone is not None:
            return
        self._when_gone = when_gone
        if self._retry is not None:
            self._retry.cancel()
        if self._child is None:
            when_gone()
            return
        child = self._child
        child.send(Leave())
        self._loop.later(_LEAVE_TIME, lambda: self._kill(child, LATE))

    def reap(self) -> None:
        """Takes notice of its end."""
        child = self._child
        if child is None:
            return
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            self._child = None
            child.close()
            self._ended(child, child.cause or cause_of_death(status))

    def watch_heartbeat(self, tick: float, limit: float) -> None:
        """To be called every `tick` seconds: ends a process whose event loop stood still for `limit`."""
        now = time.monotonic()
        elapsed, self._last_tick = now - self._last_tick, now
        child = self._child
        if child is None or child.cause:
            return
        beat = self._heartbeat()
        child.quiet = quiet_for(child.quiet, beat != child.heartbeat, elapsed, tick)
        child.heartbeat = beat
        if child.quiet > limit:
            self._log.error("control process is wedged", pid=child.pid, silent=round(child.quiet, 1))
            child.cause = WEDGED
            child.signal(signals.DUMP_STACKS)
            self._loop.later(_DUMP_TIME, lambda: self._kill(child, WEDGED))

    def _heartbeat(self) -> int:
        return int(self._board.control[ControlCell.HEARTBEAT])

    def _ended(self, child: ControlProcess, cause: str) -> None:
        lived = time.monotonic() - child.started
        if self._when_gone is not None:
            self._log.info("control process left", pid=child.pid, cause=cause)
            self._when_gone()
            return
        if child is self._relieved:
            self._relieved = None
            self._log.info("control process left", pid=child.pid, cause=cause)
            self.start()
            return
        self._log.error("control process ended", pid=child.pid, cause=cause, lived=round(lived, 3))
        self.restarts[cause] += 1
        self.on_end(child.pid, cause)
        delay = self._backoff.died(lived)
        if not delay:
            self.start()
            return
        self._log.warning("the control process dies early, the next waits", seconds=delay)
        self._retry = self._loop.later(delay, self.start)

    def _kill(self, child: ControlProcess, cause: str) -> None:
        if self._child is child:
            child.cause = child.cause or cause
            child.signal(signal.SIGKILL)

    def _lost(self, child: ControlProcess, why: str) -> None:
        """The channel is of no use any more: an ending process, or one that must be ended."""
        self._loop.later(_DUMP_TIME, lambda: self._report_lost(child, why))

    def _report_lost(self, child: ControlProcess, why: str) -> None:
        leaves = self._when_gone is not None or child is self._relieved
        if self._child is child and not child.cause and not leaves:
            self._log.error("the control process can't be talked to", pid=child.pid, reason=why)
            self._kill(child, CHANNEL)
