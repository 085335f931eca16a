"""The first start: ready when every worker serves, given up when one can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lb.master.fleet import Fleet
from lb.master.loop import Loop
from lb.master.worker_process import WorkerProcess
from workers.contract.messages import Committed, Prepared, Refused

BOOT_DEADLINE: Final = 30.0
_TOLERATED_FAILURES: Final = 2


class Boot:
    """The fleet's observer until everybody serves. A crash loop at the first start would only hide its
    reason, so it ends the master instead."""

    def __init__(
        self, loop: Loop, fleet: Fleet, on_ready: Callable[[], None], give_up: Callable[[str], None]
    ) -> None:
        self._fleet = fleet
        self._on_ready = on_ready
        self._give_up = give_up
        self._failures = 0
        self._over = False
        self._timer = loop.later(BOOT_DEADLINE, self._missed_deadline)

    def serving(self, _worker: WorkerProcess) -> None:
        """One more; the last of them ends the boot."""
        serving = {slot for slot, worker in self._fleet.workers.items() if worker.phase.value == "serving"}
        if serving >= set(self._fleet.active) and not self._over:
            self._end()
            self._on_ready()

    def answered(self, worker: WorkerProcess, message: Prepared | Refused | Committed) -> None:
        """Nobody was asked anything but the first configuration."""

    def failed(self, worker: WorkerProcess, why: str) -> None:
        """Accidents are replaced; a refusal, or failure after failure, would come again."""
        self._failures += 1
        if self._over or (why.startswith("ended") and self._failures <= _TOLERATED_FAILURES):
            return
        self._end()
        self._give_up(f"the workers can't start: worker {worker.slot} (pid {worker.pid}) {why}")

    def _missed_deadline(self) -> None:
        if not self._over:
            self._end()
            self._give_up(f"the workers did not become ready within {BOOT_DEADLINE:g}s")

    def _end(self) -> None:
        self._over = True
        self._timer.cancel()
