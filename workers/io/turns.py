"""How long the turns of the event loop are: whoever becomes ready meanwhile waits for their end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from workers.contract.cells import NANOSECONDS

if TYPE_CHECKING:
    from workers.contract.errorlog import ErrorLog
    from workers.io.reactor import Reactor

WINDOW: Final = 30.0  # seconds; the longest turn of this one and of the one before is told
TOLD: Final = 0.25  # seconds of a turn from which on the error log tells of it
PACE: Final = 60.0  # seconds between two such lines


class Turns:
    """Looks at the turns of `loop` once a tick."""

    __slots__ = ("_before", "_cpu", "_log", "_longest", "_loop", "_quiet_until", "_window_ends", "_worst")

    def __init__(self, loop: Reactor, log: ErrorLog, now: float) -> None:
        self._loop = loop
        self._log = log
        self._longest = self._before = 0.0
        self._window_ends = now + WINDOW
        self._quiet_until = 0.0
        self._worst = 0.0  # that was not told yet
        self._cpu = time.process_time_ns()

    def look(self, now: float, cpu: int, working: bool) -> float:
        """The longest turn of the last half minute, or minute, in seconds. `cpu` are the nanoseconds of CPU
        time of this process so far; `working` says that it is at work on a configuration."""
        took, self._loop.longest = self._loop.longest, 0.0
        if now >= self._window_ends:
            self._window_ends = now + WINDOW
            self._before, self._longest = self._longest, 0.0
        if took:
            self._longest = max(self._longest, took)
            if took >= TOLD:
                self._tell(now, took, cpu - self._cpu, working)
        self._cpu = cpu
        return max(self._longest, self._before)

    def _tell(self, now: float, took: float, cpu: int, working: bool) -> None:
        """At 3 a.m. it matters whether it was this process that was busy, or the machine."""
        self._worst = max(self._worst, took)
        if now < self._quiet_until:
            return
        self._quiet_until = now + PACE
        self._log.warning(
            "the event loop stood still, all connections of this worker waited",
            seconds=round(self._worst, 3),
            cpu_seconds=round(cpu / NANOSECONDS, 3),
            reloading=working,
            advice="with far less cpu_seconds than seconds the machine had no CPU time or memory for it",
        )
        self._worst = 0.0
