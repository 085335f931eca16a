"""The workers: starts them, gives each its first configuration, replaces the dead and the wedged."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from lb.master import signals
from lb.master.deployment import Deployment
from lb.master.failures import BindError
from lb.master.listeners import Listeners, Served
from lb.master.loop import Loop
from lb.master.observers import Observer, Witness
from lb.master.spawn import Spawned
from lb.master.supervision import CHANNEL, LATE, REFUSED, WEDGED, Backoff, cause_of_death, quiet_for
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.cells import WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import (
    Abort,
    AnyMessage,
    Commit,
    Committed,
    Prepared,
    Ready,
    Refused,
    ReopenLogs,
    Stop,
    Tunnels,
    TunnelsClosed,
)
from workers.contract.scoreboard import MAX_WORKERS, Scoreboard
from workers.contract.series import SeriesTable

_LOADING_TIMEOUT: Final = 30.0  # for a worker's first configuration
_DUMP_TIME: Final = 0.5  # between the stack dump of a wedged worker and its end
_LATE_AFTER: Final = 2.0  # beyond the grace that a leaving worker was given
_RETRY_FORK: Final = 1.0


class Fleet:
    """All workers. `active` are the slots that shall be served; `deployment` is what they shall serve."""

    def __init__(
        self,
        loop: Loop,
        log: ErrorLog,
        board: Scoreboard,
        listeners: Listeners,
        spawn: Callable[[int], Spawned],
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
        self.on_empty: Callable[[], None] = lambda: None
        self._loop = loop
        self._log = log
        self._board = board
        self._listeners = listeners
        self._spawn = spawn
        self._backoffs: dict[int, Backoff] = {}
        self._last_tick = time.monotonic()

    # --- which slots -----------------------------------------------------------------------------------

    def slots_for(self, count: int) -> tuple[int, ...]:
        """The slots that `count` workers would have: those of today first, then the lowest that no
        process holds. Shorter than `count` where leaving workers hold too many."""
        kept = list(self.active[:count])
        free = (slot for slot in range(self._board.capacity.workers) if slot not in self.workers)
        for slot in free:
            if len(kept) >= count:
                break
            if slot not in kept:
                kept.append(slot)
        return tuple(sorted(kept))

    @property
    def capacity(self) -> int:
        """The most workers that there can be."""
        return MAX_WORKERS

    def switch(self, deployment: Deployment, active: tuple[int, ...]) -> None:
        """Makes `deployment` what is served from now on: starts what is missing in `active` and retires
        what is not in it. Workers that serve already are the caller's to tell."""
        if deployment is not self.deployment:
            self.deployment.close()
            self.deployment = deployment
            if self.witness is not None:
                self.witness.configured()
        before, self.active = self.active, active
        for slot in before:
            worker = self.workers.get(slot)
            if slot not in active and worker is not None:
                self.dismiss(worker, deployment.plan.snapshot.drain.hard_stop)
        for slot in active:
            if slot not in self.workers and slot not in before:
                self._start(slot)

    # --- talking to workers ----------------------------------------------------------------------------

    def prepare(self, worker: WorkerProcess, deployment: Deployment, served: Sequence[Served]) -> None:
        """Sends everything of `deployment` with what is `served` to `worker`."""
        for envelope in deployment.envelopes(served):
            worker.send(envelope.message, envelope.fds)

    def reopen_logs(self, fd: int) -> None:
        """Tells all workers to write to `fd` from now on."""
        for worker in self.workers.values():
            if worker.phase in (Phase.LOADING, Phase.SERVING):
                worker.send(ReopenLogs(), (fd,))

    def dismiss(self, worker: WorkerProcess, grace: float) -> None:
        """Tells `worker` to leave; it is not replaced."""
        worker.phase = Phase.LEAVING
        self._changed()
        worker.send(Stop(grace=grace))
        self._loop.later(grace + _LATE_AFTER, lambda: self.kill(worker, LATE))

    def stop_all(self, grace: float) -> None:
        """Tells everybody to leave within `grace` seconds; nobody is replaced any more."""
        self.closed = True
        self.active = ()
        for worker in list(self.workers.values()):
            self.dismiss(worker, grace)
        self._check_empty()

    def kill_all(self, cause: str) -> None:
        """Ends whoever is left, at once."""
        for worker in self.workers.values():
            self.kill(worker, cause)

    def abort(self, worker: WorkerProcess, generation: int) -> None:
        """Tells `worker` to forget what it prepared."""
        worker.send(Abort(generation=generation))

    # --- life and death --------------------------------------------------------------------------------

    def _start(self, slot: int) -> None:
        if self.closed or slot not in self.active or slot in self.workers:
            return
        try:
            spawned = self._spawn(slot)
        except OSError as error:
            self._log.error("a worker can't be forked", slot=slot, error=error, retry_in=_RETRY_FORK)
            self._loop.later(_RETRY_FORK, lambda: self._start(slot))
            return
        worker = WorkerProcess(slot, spawned, self._loop, self._log, self._received, self._broken)
        self.workers[slot] = worker
        self.used_slots.add(slot)
        self._changed()
        self._loop.later(_LOADING_TIMEOUT, lambda: self._kill_if_loading(worker))

    def reap(self) -> None:
        """Takes notice of the children that ended."""
        for worker in list(self.workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, worker.cause or cause_of_death(status))

    def _ended(self, worker: WorkerProcess, cause: str) -> None:
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
        if self.witness is not None:
            self.witness.ended(worker, cause, expected)
        if worker.phase is not Phase.LEAVING:
            self.restarts[cause] += 1
            if self.observer is not None:
                self.observer.failed(worker, f"ended: {cause}")
            self._replace(worker.slot, lived)
        elif worker.slot in self.active:
            self._start(worker.slot)
        self._check_empty()

    def _clear(self, slot: int) -> None:
        """What a dead worker had open is gone, also where no successor comes (soon) to say so. Nobody else
        writes to its slab until then."""
        slab = self._board.slab(slot)
        if slab.used:
            slab.clear_gauges()
            SeriesTable(slab, self._board.capacity.series)  # which clears the gauges among the series

    def _replace(self, slot: int, lived: float) -> None:
        delay = self._backoffs.setdefault(slot, Backoff()).died(lived)
        if not delay:
            self._start(slot)
            return
        if not self.closed:
            self._log.warning("workers die early, the next waits", slot=slot, seconds=delay)
        self._loop.later(delay, lambda: self._start(slot))

    def _changed(self) -> None:
        if self.witness is not None:
            self.witness.changed()

    def _check_empty(self) -> None:
        if self.closed and not self.workers:
            self.on_empty()

    def kill(self, worker: WorkerProcess, cause: str) -> None:
        """Ends `worker` at once, where it is still there; `cause` is what its end is counted as."""
        if self.workers.get(worker.slot) is worker:
            worker.cause = worker.cause or cause
            worker.signal(signal.SIGKILL)

    def _kill_if_loading(self, worker: WorkerProcess) -> None:
        if worker.phase in (Phase.STARTING, Phase.LOADING):
            self.kill(worker, LATE)

    # --- what workers say ------------------------------------------------------------------------------

    def _received(self, worker: WorkerProcess, message: AnyMessage) -> None:
        match message:
            case Ready():
                self._load(worker)
            case Prepared() | Refused() | Committed():
                if worker.phase is Phase.LOADING:
                    self._loading(worker, message)
                elif worker.phase is Phase.SERVING and self.observer is not None:
                    self.observer.answered(worker, message)
            case Tunnels() | TunnelsClosed():
                if self.witness is not None:
                    self.witness.told(worker, message)
            case _:
                self._broken(worker, f"it sent {type(message).__name__}, which is the master's to send")

    def _load(self, worker: WorkerProcess) -> None:
        if worker.phase is not Phase.STARTING:
            return
        worker.phase = Phase.LOADING
        served = self._listeners.served_by(worker.slot, self.active)
        self.prepare(worker, self.deployment, served)

    def _loading(self, worker: WorkerProcess, message: Prepared | Refused | Committed) -> None:
        """The first configuration of `worker`, step by step. A reload commits only when nobody is at it,
        so `deployment` is still the one that was sent."""
        if message.generation != self.deployment.generation:
            return
        match message:
            case Prepared():
                try:
                    self._listeners.listen(self._listeners.current(), worker.slot, self.active)
                except BindError as error:
                    self._reject(worker, str(error))
                    return
                worker.send(Commit(generation=message.generation))
            case Refused():
                self._reject(worker, message.error)
            case Committed():
                worker.phase = Phase.SERVING
                fields = {"slot": worker.slot, "pid": worker.pid, "generation": message.generation}
                self._log.info("worker serves", **fields)
                if self.witness is not None:
                    self.witness.served(worker)
                if self.observer is not None:
                    self.observer.serving(worker)

    def _reject(self, worker: WorkerProcess, why: str) -> None:
        self._log.error("worker can't serve the configuration", slot=worker.slot, pid=worker.pid, error=why)
        if self.observer is not None:
            self.observer.failed(worker, why)
        self.kill(worker, REFUSED)

    def _broken(self, worker: WorkerProcess, why: str) -> None:
        """The channel is of no use any more: an ending process, or one that must be ended."""
        worker.close()
        if worker.phase is Phase.LEAVING:
            return
        self._loop.later(_DUMP_TIME, lambda: self._report_broken(worker, why))

    def _report_broken(self, worker: WorkerProcess, why: str) -> None:
        if self.workers.get(worker.slot) is worker and not worker.cause:
            self._log.error("worker can't be talked to", slot=worker.slot, pid=worker.pid, reason=why)
            self.kill(worker, CHANNEL)

    # --- the watchdog ----------------------------------------------------------------------------------

    def watch_heartbeats(self, tick: float) -> None:
        """To be called every `tick` seconds: ends the workers whose event loop stands still."""
        now = time.monotonic()
        elapsed, self._last_tick = now - self._last_tick, now
        limit = self.deployment.plan.config.process.wedged_after
        for worker in list(self.workers.values()):
            beat = self._board.slab(worker.slot).cells[WorkerCell.HEARTBEAT]
            worker.quiet = quiet_for(worker.quiet, beat != worker.heartbeat, elapsed, tick)
            worker.heartbeat = beat
            if worker.quiet > limit and not worker.cause:
                self._end_wedged(worker)

    def _end_wedged(self, worker: WorkerProcess) -> None:
        self._log.error("worker is wedged", slot=worker.slot, pid=worker.pid, silent=round(worker.quiet, 1))
        worker.cause = WEDGED
        worker.signal(signals.DUMP_STACKS)
        self._loop.later(_DUMP_TIME, lambda: self.kill(worker, WEDGED))
