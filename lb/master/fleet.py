"""The workers: starts them, gives each its first configuration, replaces the dead and the wedged."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from lb.master.deployment import Deployment
from lb.master.keepers import Keepers
from lb.master.leaving import Leaving
from lb.master.listeners import Listeners, Served
from lb.master.loading import Loading
from lb.master.loop import Loop
from lb.master.observers import Movers, Observer, Witness
from lb.master.spawn import Spawned
from lb.master.succession import Succession
from lb.master.supervision import CHANNEL, LATE, REFUSED, cause_of_death
from lb.master.watchdog import DUMP_TIME, Watchdog
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.cells import NANOSECONDS, WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import (
    Abort,
    AnyMessage,
    Committed,
    Given,
    Prepared,
    Ready,
    Reclaimed,
    Refused,
    ReopenLogs,
    Tunnels,
    TunnelsClosed,
)
from workers.contract.scoreboard import MAX_WORKERS, Scoreboard
from workers.contract.series import SeriesTable

_RETRY_FORK: Final = 1.0
_RECLAIM_TIME: Final = 15.0  # for taking over what a dead predecessor left


class Fleet:
    """All workers. `active` are the slots that shall be served; `deployment` is what they shall serve."""

    def __init__(
        self,
        loop: Loop,
        log: ErrorLog,
        board: Scoreboard,
        listeners: Listeners,
        spawn: Callable[[int], Spawned],
        keepers: Keepers,
        deployment: Deployment,
    ) -> None:
        self.deployment = deployment
        self.active: tuple[int, ...] = ()
        self.workers: dict[int, WorkerProcess] = {}
        self.used_slots: set[int] = set()  # ever
        self.restarts: Counter[str] = Counter()
        self.closed = False
        self.observer: Observer | None = None
        self.witness: Witness | None = None
        self.mover: Movers | None = None
        self.on_empty: Callable[[], None] = lambda: None
        self._loop = loop
        self._log = log
        self._board = board
        self._listeners = listeners
        self._spawn = spawn
        self.keepers = keepers
        keepers.on_needed = self._attend
        self._succession = Succession(loop, log, keepers, self._start)
        self._leaving = Leaving(loop, self, self._succession)
        self._loading = Loading(loop, log, self, listeners)
        self._loading.on_served = self._serves
        self._loading.on_rejected = self._rejects
        self._watchdog = Watchdog(loop, log, board, self.kill)

    # --- which slots -----------------------------------------------------------------------------------

    def slots_for(self, count: int) -> tuple[int, ...]:
        """The slots that `count` workers would have: those of today first, then the lowest that no
        process holds. Shorter than `count` where leaving workers hold too many."""
        kept = list(self.active[:count])
        for slot in range(self._board.capacity.workers):
            if len(kept) >= count:
                break
            if slot not in kept and slot not in self.workers and self._succession.of(slot) is None:
                kept.append(slot)
        return tuple(sorted(kept))

    @property
    def capacity(self) -> int:
        """The most workers that there can be."""
        return MAX_WORKERS

    @property
    def recovering(self) -> bool:
        """Whether tunnels of dead workers are not back in a worker's hands yet."""
        return self._succession.open

    def switch(self, deployment: Deployment, active: tuple[int, ...]) -> None:
        """Makes `deployment` what is served from now on: starts what is missing in `active`, and retires
        what is not in it as soon as all that is serves. Workers that serve already are the caller's to
        tell."""
        if deployment is not self.deployment:
            self.deployment.close()
            self.deployment = deployment
            if self.witness is not None:
                self.witness.configured()
        before, self.active = self.active, active
        for slot in active:
            if slot not in self.workers and slot not in before:
                self._start(slot)
        self._leaving.switched(before)

    def adopt(
        self, slot: int, spawned: Spawned, phase: Phase, leave_by: float | None = None
    ) -> WorkerProcess:
        """Takes over a worker that a predecessor of this process has forked: SERVING, or LEAVING by
        `leave_by`. It is told nothing; where its slot is not in `active` it is retired, its tunnels moving
        for an upgrade, as soon as all that is active serves."""
        worker = self._add(slot, spawned)
        worker.phase = phase
        worker.moves = "upgrade"
        if phase is Phase.LEAVING:
            worker.leave_by = leave_by or time.monotonic()
            worker.hands_over = True
            self._leaving.watch(worker)
        return worker

    # --- talking to workers ----------------------------------------------------------------------------

    def prepare(self, worker: WorkerProcess, deployment: Deployment, served: Sequence[Served]) -> None:
        """Sends everything of `deployment` with what is `served` to `worker`."""
        for envelope in deployment.envelopes(served):
            worker.send(envelope.message, envelope.fds)

    def reopen_logs(self, fd: int) -> None:
        """Tells all workers to write to `fd` from now on."""
        for worker in self.workers.values():
            if worker.phase in (Phase.LOADING, Phase.SERVING, Phase.CARETAKING):
                worker.send(ReopenLogs(), (fd,))

    def stop_all(self, grace: float) -> None:
        """Tells everybody to leave within `grace` seconds; nobody is replaced any more, but by a caretaker
        that closes what a dead one leaves."""
        self.closed = True
        self.active = ()
        self._leaving.leave_all(grace)
        self.check_empty()

    def kill_all(self, cause: str) -> None:
        """Ends whoever is left, at once."""
        for worker in self.workers.values():
            self.kill(worker, cause)

    def abort(self, worker: WorkerProcess, generation: int) -> None:
        """Tells `worker` to forget what it prepared."""
        worker.send(Abort(generation=generation))

    # --- life and death --------------------------------------------------------------------------------

    def _start(self, slot: int) -> None:
        """Forks the worker of `slot`, or its caretaker, where it shall have one and has none."""
        held = self._succession.held(slot)
        if slot in self.workers:
            return
        if (slot not in self.active and not held) or not self._leaving.has_time:
            self._succession.over(slot)
            self.keepers.release(slot)
            self.check_empty()
            return
        self._announce(slot)
        try:
            spawned = self._spawn(slot)
        except OSError as error:
            self._log.error("a worker can't be forked", slot=slot, error=error, retry_in=_RETRY_FORK)
            self._loop.later(_RETRY_FORK, lambda: self._start(slot))
            return
        worker = self._add(slot, spawned)
        worker.caretaker = slot not in self.active
        self.keepers.attend(worker, reclaim=held > 0)
        if not held:
            self._succession.over(slot)
        self._loading.expect(worker)

    def _announce(self, slot: int) -> None:
        """The other workers count the one of `slot` from now on: one that serves before it runs would think
        that there are fewer, and take its part of what is shared, too."""
        cells = self._board.slab(slot).cells
        cells[WorkerCell.HEARTBEAT] = int(time.monotonic() * NANOSECONDS)
        cells[WorkerCell.GENERATION] = 0

    def _add(self, slot: int, spawned: Spawned) -> WorkerProcess:
        worker = WorkerProcess(slot, spawned, self._loop, self._log, self._received, self._broken)
        self.workers[slot] = worker
        self.used_slots.add(slot)
        self.changed()
        return worker

    def _attend(self, slot: int) -> None:
        """A new keeper can be had for `slot`."""
        worker = self.workers.get(slot)
        if worker is not None and not worker.closed:
            self.keepers.attend(worker, reclaim=False)

    def reap(self) -> None:
        """Takes notice of the children that ended."""
        for worker in list(self.workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, worker.cause or cause_of_death(status))
        self.keepers.reap()

    def _ended(self, worker: WorkerProcess, cause: str) -> None:
        for message in worker.last_words():
            if isinstance(message, (Reclaimed, Given)):  # what it did, not what it would have done
                self._received(worker, message)
        worker.close()
        del self.workers[worker.slot]
        self._clear(worker.slot)
        lived = time.monotonic() - worker.started
        expected = worker.phase is Phase.LEAVING and cause == "exit-0"
        fields = {"slot": worker.slot, "pid": worker.pid, "cause": cause, "lived": round(lived, 3)}
        if expected:
            self._log.info("worker left", **fields)
        else:
            self._log.error("worker ended", **fields)
        if self.mover is not None:
            self.mover.ended(worker)
        if self.witness is not None:
            self.witness.ended(worker, cause, expected)
        if worker.phase is not Phase.LEAVING:
            self.restarts[cause] += 1
            if self.observer is not None:
                self.observer.failed(worker, f"ended: {cause}")
        inherited = not self._succession.held(worker.slot)
        self._succeed(worker, cause == LATE or (expected and inherited), lived)
        self.check_empty()

    def _succeed(self, worker: WorkerProcess, in_order: bool, lived: float) -> None:
        """Sees to the slot of a worker that is gone: `in_order` says that one that was leaving has left
        nothing that should live on."""
        if not self._leaving.has_time:
            self._succession.over(worker.slot)
            return
        leaving = worker.phase is Phase.LEAVING
        if not leaving or not in_order:
            self._succession.died(worker.slot, lived, worker.leave_by)
            return
        self._succession.over(worker.slot)
        if worker.slot in self.active:
            self._start(worker.slot)
        else:
            self.keepers.release(worker.slot)

    def _clear(self, slot: int) -> None:
        """What a dead worker had open is gone, also where no successor comes (soon) to say so: one that
        takes tunnels over counts them anew. Nobody else writes to its slab until then."""
        slab = self._board.slab(slot)
        if slab.used:
            slab.clear_gauges()
            SeriesTable(slab, self._board.capacity.series)  # which clears the gauges among the series

    def changed(self) -> None:
        """Some worker stands elsewhere."""
        if self.witness is not None:
            self.witness.changed()

    def check_empty(self) -> None:
        """Where lb stops: says so when nobody is left, and nothing that a caretaker is to close."""
        if self.closed and not self.workers and not (self._succession.open and self._leaving.has_time):
            self.on_empty()

    def kill(self, worker: WorkerProcess, cause: str) -> None:
        """Ends `worker` at once, where it is still there; `cause` is what its end is counted as."""
        if self.workers.get(worker.slot) is worker:
            worker.cause = worker.cause or cause
            worker.signal(signal.SIGKILL)

    # --- what workers say ------------------------------------------------------------------------------

    def _received(self, worker: WorkerProcess, message: AnyMessage) -> None:
        match message:
            case Ready():
                self._loading.begin(worker)
            case Prepared() | Refused() | Committed():
                if worker.phase is Phase.LOADING:
                    self._loading.answered(worker, message)
                elif worker.phase is Phase.SERVING and self.observer is not None:
                    self.observer.answered(worker, message)
            case Tunnels() | TunnelsClosed():
                if self.witness is not None:
                    self.witness.told(worker, message)
            case Given():
                if self.mover is not None:
                    self.mover.given(worker, message)
            case Reclaimed():
                self._reclaimed(worker, message)
            case _:
                self._broken(worker, f"it sent {type(message).__name__}, which is the master's to send")

    def _serves(self, worker: WorkerProcess) -> None:
        """`worker` has its first configuration."""
        if self._succession.held(worker.slot):
            self._loop.later(_RECLAIM_TIME, lambda: self._check_reclaimed(worker))
        if worker.phase is Phase.SERVING and self.witness is not None:
            self.witness.served(worker)
        if self.observer is not None:
            # Also of a caretaker: a reload waits for everybody who loads a configuration.
            self.observer.serving(worker)
        self._leaving.retire_if_replaced()

    def _rejects(self, worker: WorkerProcess, why: str) -> None:
        """`worker` can't serve its first configuration."""
        if self.observer is not None:
            self.observer.failed(worker, why)
        self.kill(worker, REFUSED)

    def _reclaimed(self, worker: WorkerProcess, message: Reclaimed) -> None:
        fields = {"slot": worker.slot, "pid": worker.pid}
        counts = {"restored": message.restored, "closed": message.closed}
        self._log.info("tunnels of a dead worker are taken over", **fields, **counts)
        if self.witness is not None:
            self.witness.reclaimed(worker, message)
        self._inherited(worker)

    def _check_reclaimed(self, worker: WorkerProcess) -> None:
        if self.workers.get(worker.slot) is worker and self._succession.of(worker.slot) is not None:
            self._log.error("worker does not take over what is left", slot=worker.slot, pid=worker.pid)
            self._inherited(worker)

    def _inherited(self, worker: WorkerProcess) -> None:
        estate = self._succession.of(worker.slot)
        self._succession.over(worker.slot)
        if worker.caretaker and worker.phase is not Phase.LEAVING:
            self._leaving.relieve(worker, None if estate is None else estate.leave_by)

    def _broken(self, worker: WorkerProcess, why: str) -> None:
        """The channel is of no use any more: an ending process, or one that must be ended."""
        worker.close()
        if worker.phase is Phase.LEAVING:
            return
        self._loop.later(DUMP_TIME, lambda: self._report_broken(worker, why))

    def _report_broken(self, worker: WorkerProcess, why: str) -> None:
        if self.workers.get(worker.slot) is worker and not worker.cause:
            self._log.error("worker can't be talked to", slot=worker.slot, pid=worker.pid, reason=why)
            self.kill(worker, CHANNEL)

    def watch_heartbeats(self, tick: float) -> None:
        """To be called every `tick` seconds: ends the workers and keepers whose event loop stands still."""
        limit = self.deployment.plan.config.process.wedged_after
        self._watchdog.look(list(self.workers.values()), tick, limit)
        self.keepers.watch(tick, limit)
