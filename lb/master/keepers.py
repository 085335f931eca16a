"""The keepers: one per worker slot that is in use, so that a dead worker's tunnels outlive it.

A keeper is forked when a worker of its slot comes and there is none, and leaves when the slot is empty. One
that dies takes nothing with it but the insurance: its successor is told everything anew by the worker.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from lb.master.keeper_process import KeeperProcess, Settle
from lb.master.loop import Loop
from lb.master.spawn import Spawned
from lb.master.supervision import CHANNEL, LATE, WEDGED, Backoff, cause_of_death, quiet_for
from lb.master.worker_process import WorkerProcess
from workers.contract import messages
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import Keep
from workers.contract.tunnels import Attend, FromKeeper, KeeperReady, Leave, Ping, Pong, Settled
from workers.contract.tunnels import Settle as SettleNow

_READY_TIME: Final = 30.0
_LEAVE_TIME: Final = 2.0
_NOTICE: Final = 0.5  # between a broken channel and the end of a process that is still there
_RETRY: Final = 1.0
SETTLE_TIME: Final = 5.0  # a few thousand tunnels take some ten milliseconds; to give them up costs them all


class Keepers:
    """All keepers. `spawn` forks one for a slot; `on_needed` is called with a slot whose worker, if it has
    one, needs a new keeper: it should `attend` it."""

    def __init__(self, loop: Loop, log: ErrorLog, spawn: Callable[[int], Spawned]) -> None:
        self.on_needed: Callable[[int], None] = lambda _slot: None
        self.restarts: Counter[str] = Counter()  # by cause
        self.on_end: Callable[[int, int, str], None] = lambda _slot, _pid, _cause: None
        self._loop = loop
        self._log = log
        self._spawn = spawn
        self._keepers: dict[int, KeeperProcess] = {}  # by slot
        self._leaving: set[KeeperProcess] = set()
        self._backoffs: dict[int, Backoff] = {}
        self._waiting: set[int] = set()  # slots whose next keeper waits for its time
        self._unasked: set[int] = set()  # slots whose worker shall reclaim, once it can be told
        self._last_tick = time.monotonic()
        self._when_gone: Callable[[], None] | None = None

    @property
    def all(self) -> dict[int, KeeperProcess]:
        """Those that keep, by slot."""
        return self._keepers

    @property
    def unsettled(self) -> bool:
        """Whether one comes, goes, or puts things in order."""
        keepers = self._keepers.values()
        return bool(self._leaving) or any(not one.ready or one.settling is not None for one in keepers)

    def pid(self, slot: int) -> int:
        """The process id of the keeper of `slot`; 0 where there is none."""
        keeper = self._keepers.get(slot)
        return 0 if keeper is None else keeper.pid

    # --- what the fleet asks for -----------------------------------------------------------------------

    def attend(self, worker: WorkerProcess, reclaim: bool) -> None:
        """Gives `worker` a way to the keeper of its slot, which is forked where there is none. With
        `reclaim`, it shall ask for its predecessor's tunnels. A worker serves without a keeper, too: where
        none can be had now, `on_needed` says when to ask again; what it shall reclaim is not forgotten."""
        keeper = self._keepers.get(worker.slot) or self._start(worker.slot)
        if keeper is None:
            return
        try:
            for_keeper, for_worker = messages.pair()
        except OSError as error:
            self._log.error("no way between worker and keeper", slot=worker.slot, error=error)
            if reclaim:
                self._unasked.add(worker.slot)
            self._need_later(worker.slot, _RETRY)
            return
        reclaim = reclaim or worker.slot in self._unasked
        self._unasked.discard(worker.slot)
        with for_keeper, for_worker:
            keeper.send(Attend(), (for_keeper.fileno(),))
            worker.send(Keep(reclaim=reclaim), (for_worker.fileno(),))

    def settle(self, slot: int, done: Settle) -> None:
        """The worker of `slot` is gone for good: `done` is called once its keeper has put the ledger in
        order, or has failed to (then it holds nothing any more)."""
        keeper = self._keepers.get(slot)
        if keeper is None:
            done(Settled(held=0))
            return
        self._unasked.discard(slot)  # its successor is asked anew
        keeper.settling = done
        keeper.expect(self._loop.later(SETTLE_TIME, lambda: self._late(keeper, "it does not settle")))
        keeper.send(SettleNow())

    def release(self, slot: int) -> None:
        """Nobody needs the keeper of `slot` any more: it closes what it may hold, and leaves."""
        keeper = self._keepers.pop(slot, None)
        self._unasked.discard(slot)
        if keeper is None:
            return
        self._leaving.add(keeper)
        keeper.settling = None
        keeper.send(Leave())
        keeper.expect(self._loop.later(_LEAVE_TIME, lambda: self._kill(keeper, LATE)))

    def leave(self, when_gone: Callable[[], None]) -> None:
        """Ends all of them, and calls `when_gone` when they have ended. No other is started."""
        if self._when_gone is not None:
            return
        self._when_gone = when_gone
        for slot in list(self._keepers):
            self.release(slot)
        self._check_gone()

    def adopt(self, slot: int, spawned: Spawned) -> None:
        """Takes over a keeper that a predecessor of this process has forked."""
        self._keepers[slot] = keeper = self._made(slot, spawned)
        keeper.ready = True

    # --- life and death --------------------------------------------------------------------------------

    def _made(self, slot: int, spawned: Spawned) -> KeeperProcess:
        return KeeperProcess(slot, spawned, self._loop, self._log, self._received, self._lost)

    def _start(self, slot: int) -> KeeperProcess | None:
        if self._when_gone is not None or slot in self._waiting:
            return None
        if any(keeper.slot == slot for keeper in self._leaving):
            return None  # the ledger's area has one keeper at a time: its end is awaited
        try:
            spawned = self._spawn(slot)
        except OSError as error:
            self._log.error("a keeper can't be forked", slot=slot, error=error, retry_in=_RETRY)
            self._need_later(slot, _RETRY)
            return None
        self._keepers[slot] = keeper = self._made(slot, spawned)
        keeper.expect(self._loop.later(_READY_TIME, lambda: self._late(keeper, "it does not get ready")))
        return keeper

    def _need_later(self, slot: int, delay: float) -> None:
        def need() -> None:
            self._waiting.discard(slot)
            self.on_needed(slot)

        self._waiting.add(slot)
        self._loop.later(delay, need)

    def reap(self) -> None:
        """Takes notice of the keepers that ended."""
        for keeper in [*self._keepers.values(), *self._leaving]:
            pid, status = os.waitpid(keeper.pid, os.WNOHANG)
            if pid:
                keeper.close()
                keeper.expect(None)
                self._ended(keeper, keeper.cause or cause_of_death(status))

    def _ended(self, keeper: KeeperProcess, cause: str) -> None:
        slot = keeper.slot
        if keeper in self._leaving:
            self._leaving.discard(keeper)
            self._log.info("keeper left", slot=slot, pid=keeper.pid, cause=cause)
            self.on_needed(slot)
            self._check_gone()
            return
        del self._keepers[slot]
        self._unasked.discard(slot)  # what it held is gone
        self.restarts[cause] += 1
        lived = time.monotonic() - keeper.started
        settling, keeper.settling = keeper.settling, None
        lost = "those of the dead worker" if settling is not None else "none"
        self._log.error("keeper ended", slot=slot, pid=keeper.pid, cause=cause, tunnels_lost=lost)
        self.on_end(slot, keeper.pid, cause)
        delay = self._backoffs.setdefault(slot, Backoff()).died(lived)
        if delay:
            self._log.warning("keepers die early, the next waits", slot=slot, seconds=delay)
            self._need_later(slot, delay)
        else:
            self.on_needed(slot)
        if settling is not None:
            settling(Settled(held=0))

    def watch(self, tick: float, limit: float) -> None:
        """To be called every `tick` seconds: asks the keepers for a sign of life, and ends those that have
        given none for `limit` seconds, while their workers are there to tell others about their tunnels."""
        now = time.monotonic()
        elapsed, self._last_tick = now - self._last_tick, now
        for keeper in self._keepers.values():
            if not keeper.ready or keeper.settling is not None or keeper.cause:
                continue  # which has a limit of its own
            keeper.quiet = quiet_for(keeper.quiet, keeper.answered, elapsed, tick)
            if keeper.quiet > limit:
                silent = round(keeper.quiet, 1)
                self._log.error("keeper is wedged", slot=keeper.slot, pid=keeper.pid, silent=silent)
                self._kill(keeper, WEDGED)
            elif keeper.answered:
                keeper.answered = False
                keeper.send(Ping())

    def _check_gone(self) -> None:
        if self._when_gone is not None and not self._leaving and not self._keepers:
            when_gone, self._when_gone = self._when_gone, lambda: None
            when_gone()

    def _late(self, keeper: KeeperProcess, why: str) -> None:
        self._log.error("keeper is late", slot=keeper.slot, pid=keeper.pid, reason=why)
        self._kill(keeper, LATE)

    def _kill(self, keeper: KeeperProcess, cause: str) -> None:
        if self._keepers.get(keeper.slot) is keeper or keeper in self._leaving:
            keeper.cause = keeper.cause or cause
            keeper.signal(signal.SIGKILL)

    # --- what keepers say ------------------------------------------------------------------------------

    def _received(self, keeper: KeeperProcess, message: FromKeeper) -> None:
        match message:
            case KeeperReady():
                keeper.ready = True
                if keeper.settling is None and self._keepers.get(keeper.slot) is keeper:
                    keeper.expect(None)
            case Pong():
                keeper.answered = True
            case Settled():
                settling, keeper.settling = keeper.settling, None
                if settling is not None:
                    keeper.expect(None)
                    settling(message)

    def _lost(self, keeper: KeeperProcess, why: str) -> None:
        """The channel is of no use any more: an ending process, or one that must be ended."""
        self._loop.later(_NOTICE, lambda: self._report_lost(keeper, why))

    def _report_lost(self, keeper: KeeperProcess, why: str) -> None:
        if self._keepers.get(keeper.slot) is keeper and not keeper.cause:
            self._log.error("keeper can't be talked to", slot=keeper.slot, pid=keeper.pid, reason=why)
            self._kill(keeper, CHANNEL)
