"""Ends the workers whose event loop stands still."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from lb.master import signals
from lb.master.loop import Loop
from lb.master.supervision import WEDGED, quiet_for
from lb.master.worker_process import WorkerProcess
from workers.contract.cells import WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.scoreboard import Scoreboard

DUMP_TIME: Final = 0.5  # between the stack dump of a wedged worker and its end


class Watchdog:
    """Looks at the workers' heartbeats; `kill` ends one for a cause."""

    def __init__(
        self, loop: Loop, log: ErrorLog, board: Scoreboard, kill: Callable[[WorkerProcess, str], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._board = board
        self._kill = kill
        self._last_tick = time.monotonic()

    def look(self, workers: Iterable[WorkerProcess], tick: float, limit: float) -> None:
        """To be called every `tick` seconds: `limit` is how long a worker may be silent."""
        now = time.monotonic()
        elapsed, self._last_tick = now - self._last_tick, now
        for worker in workers:
            beat = self._board.slab(worker.slot).cells[WorkerCell.HEARTBEAT]
            worker.quiet = quiet_for(worker.quiet, beat != worker.heartbeat, elapsed, tick)
            worker.heartbeat = beat
            if worker.quiet > limit and not worker.cause:
                self._end_wedged(worker)

    def _end_wedged(self, worker: WorkerProcess) -> None:
        self._log.error("worker is wedged", slot=worker.slot, pid=worker.pid, silent=round(worker.quiet, 1))
        worker.cause = WEDGED
        worker.signal(signals.DUMP_STACKS)
        self._loop.later(DUMP_TIME, lambda: self._kill(worker, WEDGED))
