"""The successor's side of an upgrade: from descriptors and numbers back to a master that serves.

It has the process, the descriptors and the children of its predecessor, and the signals are blocked until its
handlers are there, so nothing here waits. The old workers serve on until the new ones, in slots of their own,
all do.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
from collections.abc import Callable
from typing import Final

from lb.config import ConfigErrors
from lb.master.command import Respond
from lb.master.deployment import DeployError, Deployment
from lb.master.failures import BindError, StartError
from lb.master.ground import Ground
from lb.master.holdings import Holdings
from lb.master.instance import Instance
from lb.master.listeners import Kept, Listeners
from lb.master.loop import Loop
from lb.master.observers import Observer
from lb.master.pidfile import PidFile
from lb.master.plan import Plan
from lb.master.services import Service, Services
from lb.master.spawn import Spawned
from lb.master.transaction import Transaction
from lb.master.upgrade_export import COMMAND
from lb.master.upgrade_plan import next_plan, served_plan
from lb.master.upgrade_state import Listening, Process, StateError, unpack
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.bells import Bells
from workers.contract.errorlog import ErrorLog
from workers.contract.ledger import Ledger
from workers.contract.messages import Committed, Prepared, Refused
from workers.contract.scoreboard import Scoreboard

DEADLINE: Final = 60.0  # for the new workers; the old ones serve on whatever happens


class Heritage:
    """What the predecessor left, as objects. `trouble` says why the configuration file can't be served,
    though it could in the trial: what was served before still is, then."""

    def __init__(self, packed: int, log: ErrorLog) -> None:
        """Raises `StateError`, `ScoreboardError`, `LedgerError` or `StartError`."""
        self.state = state = unpack(packed)
        os.close(packed)
        for fd in state.descriptors():
            os.set_inheritable(fd, False)
        self._board = Scoreboard.attach(state.scoreboard)
        ledger = Ledger.attach(state.ledger)
        listeners = Listeners.inherited(_kept(listening) for listening in state.listeners)
        self.slots: tuple[int, ...] = ()
        self.trouble = ""
        deployment = self._deployment(listeners, log)
        holdings = Holdings.inherited(
            listeners,
            Services(_service(state.metrics), _service(state.admin)),
            None
            if state.pid_file is None
            else PidFile.inherited(pathlib.Path(state.pid_file.path), state.pid_file.fd),
            (pathlib.Path(state.command.path), _socket(state.command.fd)),
            deployment,
        )
        self.plan = deployment.plan
        self.ground = Ground(state.started, self._board, Bells(*state.bells), ledger, holdings)

    def _deployment(self, listeners: Listeners, log: ErrorLog) -> Deployment:
        try:
            return self._deploy(next_plan(self.state, self._board), listeners, log)
        except (ConfigErrors, BindError, DeployError) as error:
            self.trouble = str(error)
            log.error("the configuration can't be served, what was served before still is", error=error)
        try:
            return self._deploy(served_plan(self.state, self._board), listeners, log)
        except (StateError, BindError, DeployError) as error:
            raise StartError(f"{self.trouble}; and {error}") from error

    def _deploy(self, plan: Plan, listeners: Listeners, log: ErrorLog) -> Deployment:
        taken = {child.slot for child in self.state.children}
        free = [slot for slot in range(self._board.capacity.workers) if slot not in taken]
        self.slots = tuple(free[: plan.workers])
        if len(self.slots) < plan.workers:
            log.warning("leaving workers hold slots, reload again later", workers=len(self.slots))
        transaction = Transaction.stage(plan, self.slots, (), listeners)
        listeners.commit(transaction.staged)
        return transaction.deployment

    def children(self, kind: str) -> list[Process]:
        """Those of the predecessor."""
        return [child for child in self.state.children if child.kind == kind]

    def unblock_signals(self) -> None:
        """To be called when the handlers are there: what came since is delivered now."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self.state.signal_mask)


class Takeover:
    """The fleet's observer until all new workers serve; `reloader` observes behind it."""

    def __init__(self, loop: Loop, heritage: Heritage, instance: Instance, observer: Observer) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self.on_late: Callable[[str], None] = lambda _why: None
        self._loop = loop
        self._heritage = heritage
        self._instance = instance
        self._observer = observer
        self._trouble = ""
        self._over = False

    def adopt(self) -> list[Respond]:
        """Takes the children over, and the counters; returns who waits for the outcome of the upgrade."""
        state, instance = self._heritage.state, self._instance
        fleet = instance.fleet
        fleet.used_slots.update(state.used_slots)
        fleet.restarts.update(state.restarts)
        fleet.keepers.restarts.update(state.keeper_restarts)
        instance.control.restarts.update(state.control_restarts)
        instance.reloader.history.restore(state.reloads)
        instance.desk.restore(state.events, state.event_count, state.moves)
        for child in self._heritage.children("keeper"):
            fleet.keepers.adopt(child.slot, _spawned(child))
        for child in self._heritage.children("worker"):
            worker = fleet.adopt(child.slot, _spawned(child), Phase(child.phase), child.leave_by)
            worker.started = child.started
        for slot in fleet.keepers.all.keys() - fleet.workers.keys():
            fleet.keepers.release(slot)  # of a worker that waited for its next try, with nothing to keep
        for child in self._heritage.children("control"):
            instance.control.relieve(_spawned(child), child.started)
        return [instance.command.adopt(_socket(fd), COMMAND) for fd in state.command.waiting]

    def begin(self) -> None:
        """Starts the new workers, and the control process where there is none."""
        fleet = self._instance.fleet
        if fleet.closed:
            return
        fleet.observer = self
        self._loop.later(DEADLINE, self._missed_deadline)
        fleet.switch(fleet.deployment, self._heritage.slots)
        self._instance.control.start()

    def serving(self, worker: WorkerProcess) -> None:
        """One more."""
        self._observer.serving(worker)
        workers = self._instance.fleet.workers.values()
        serving = {one.slot for one in workers if one.phase is Phase.SERVING}
        if not self._over and serving.issuperset(self._instance.fleet.active):
            self._over = True
            self.on_ready()

    def answered(self, worker: WorkerProcess, message: Prepared | Refused | Committed) -> None:
        """About a reload, where the new workers took so long that one began."""
        self._observer.answered(worker, message)

    def failed(self, worker: WorkerProcess, why: str) -> None:
        """It is replaced, as often as it needs."""
        if worker.slot in self._instance.fleet.active:
            self._trouble = f"worker {worker.slot} (pid {worker.pid}) {why}"
        self._observer.failed(worker, why)

    def _missed_deadline(self) -> None:
        if not self._over and not self._instance.fleet.closed:
            why = f": {self._trouble}" if self._trouble else ""
            self.on_late(
                f"the new workers did not get ready within {DEADLINE:g}s, the old ones serve on{why}"
            )


def _socket(fd: int) -> socket.socket:
    found = socket.socket(fileno=fd)
    found.setblocking(False)
    return found


def _kept(listening: Listening) -> Kept:
    return Kept(listening.address, listening.home, _socket(listening.fd), listening.file)


def _service(listening: Listening | None) -> Service | None:
    if listening is None:
        return None
    return Service(listening.address, _socket(listening.fd), listening.file)


def _spawned(child: Process) -> Spawned:
    return Spawned(child.pid, _socket(child.fd))
