"""A fresh worker's first configuration, step by step: Ready -> Prepare -> Prepared -> Commit -> Committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lb.master.failures import BindError
from lb.master.listeners import Listeners
from lb.master.loop import Loop
from lb.master.supervision import LATE
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import Commit, Committed, Prepared, Refused

if TYPE_CHECKING:
    from lb.master.fleet import Fleet

TIMEOUT: Final = 30.0


class Loading:
    """Brings workers of `fleet` up. A reload commits only when nobody is at it, so the fleet's deployment is
    the one that was sent throughout. A caretaker gets no listeners."""

    def __init__(self, loop: Loop, log: ErrorLog, fleet: Fleet, listeners: Listeners) -> None:
        self.on_served: Callable[[WorkerProcess], None] = lambda _worker: None
        self.on_rejected: Callable[[WorkerProcess, str], None] = lambda _worker, _why: None
        self._loop = loop
        self._log = log
        self._fleet = fleet
        self._listeners = listeners

    def expect(self, worker: WorkerProcess) -> None:
        """`worker` was forked: it is killed where this takes too long."""
        self._loop.later(TIMEOUT, lambda: self._check(worker))

    def _check(self, worker: WorkerProcess) -> None:
        if worker.phase in (Phase.STARTING, Phase.LOADING):
            self._fleet.kill(worker, LATE)

    def begin(self, worker: WorkerProcess) -> None:
        """`worker` is ready for its configuration."""
        if worker.phase is not Phase.STARTING:
            return
        worker.phase = Phase.LOADING
        fleet = self._fleet
        served = [] if worker.caretaker else self._listeners.served_by(worker.slot, fleet.active)
        fleet.prepare(worker, fleet.deployment, served)

    def answered(self, worker: WorkerProcess, message: Prepared | Refused | Committed) -> None:
        """What `worker` says to it."""
        if message.generation != self._fleet.deployment.generation:
            return
        match message:
            case Prepared():
                self._commit(worker, message.generation)
            case Refused():
                self._reject(worker, message.error)
            case Committed():
                worker.phase = Phase.CARETAKING if worker.caretaker else Phase.SERVING
                event = "worker takes over what is left" if worker.caretaker else "worker serves"
                fields = {"slot": worker.slot, "pid": worker.pid, "generation": message.generation}
                self._log.info(event, **fields)
                self.on_served(worker)

    def _commit(self, worker: WorkerProcess, generation: int) -> None:
        try:
            if not worker.caretaker:
                self._listeners.listen(self._listeners.current(), worker.slot, self._fleet.active)
        except BindError as error:
            self._reject(worker, str(error))
            return
        worker.send(Commit(generation=generation))

    def _reject(self, worker: WorkerProcess, why: str) -> None:
        self._log.error("worker can't serve the configuration", slot=worker.slot, pid=worker.pid, error=why)
        self.on_rejected(worker, why)
