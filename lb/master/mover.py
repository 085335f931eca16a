"""Moves tunnels between workers: away from those that leave, and from the fullest to the emptiest.

The master makes a pair of sockets and gives an end to each; what goes over it is the workers' own affair
(`workers.contract.tunnels`). A worker is in one hand-over at a time. One that breaks off leaves each tunnel
with exactly one of the two, so that it is simply tried again.
"""

from __future__ import annotations

import itertools
import time
from typing import Final, Literal

from lb.master import sharing
from lb.master.fleet import Fleet
from lb.master.loop import Loop, Timer
from lb.master.sharing import Load
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract import messages
from workers.contract.cells import WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import Give, Given, Take
from workers.contract.scoreboard import Scoreboard

Reason = Literal["retire", "rebalance", "upgrade"]

TURN: Final = 0.03  # seconds between two looks while anybody leaves
REBALANCE: Final = 1.0  # and while nobody does
_DEADLINE: Final = 30.0  # for a hand-over; workers give up a silent peer far earlier
_REST_EMPTY: Final = 0.1  # before a pair is tried again where nothing could go
_REST_FAILED: Final = 1.0


class _Transfer:
    __slots__ = ("giver", "reason", "taker", "timer")

    def __init__(self, giver: WorkerProcess, taker: WorkerProcess, reason: Reason, timer: Timer) -> None:
        self.giver = giver
        self.taker = taker
        self.reason = reason
        self.timer = timer


class Mover:
    """The fleet's mover. `most` is how many connections a worker can have."""

    def __init__(self, loop: Loop, log: ErrorLog, fleet: Fleet, board: Scoreboard, most: int) -> None:
        self._loop = loop
        self._log = log
        self._fleet = fleet
        self._board = board
        self._most = most
        self._transfers: dict[int, _Transfer] = {}
        # Never used twice, not even by a master that this process was before an upgrade.
        self._numbers = itertools.count(time.monotonic_ns())
        self._resting: dict[tuple[int, int], float] = {}  # pids of giver and taker: until then
        self._moved: dict[WorkerProcess, tuple[int, Reason]] = {}  # not told yet
        self._next: Timer | None = None  # look at who leaves

    def start(self) -> None:
        """Rebalances from now on, as the configuration says."""
        self._loop.later(REBALANCE, self._rebalance_again)

    # --- what the fleet tells --------------------------------------------------------------------------

    def leaving(self, worker: WorkerProcess) -> None:
        """`worker` was told to leave, and waits for somebody who takes its tunnels."""
        self._turn_in(0.0)

    def given(self, worker: WorkerProcess, message: Given) -> None:
        """`worker` says that a hand-over is over."""
        transfer = self._transfers.get(message.transfer)
        if transfer is None or transfer.giver is not worker:
            return
        self._end(message.transfer)
        before, _ = self._moved.get(worker, (0, transfer.reason))
        self._moved[worker] = before + message.count, transfer.reason
        if message.error:
            self._log.warning(
                "hand-over of tunnels broke off",
                giver=worker.slot,
                taker=transfer.taker.slot,
                moved=message.count,
                error=message.error,
            )
        if message.error or not message.count:
            self._rest(transfer, _REST_FAILED if message.error else _REST_EMPTY)
        self._turn_in(0.0)

    def ended(self, worker: WorkerProcess) -> None:
        """`worker` is gone. Where it was the taker, the giver tells how it ended."""
        for number, transfer in list(self._transfers.items()):
            if transfer.giver is worker:
                self._end(number)
        self._tell(worker)
        self._resting = {pids: until for pids, until in self._resting.items() if worker.pid not in pids}

    # --- hand-overs ------------------------------------------------------------------------------------

    def _begin(self, giver: WorkerProcess, taker: WorkerProcess, count: int, reason: Reason) -> None:
        try:
            for_giver, for_taker = messages.pair()
        except OSError as error:
            self._log.error("no way between two workers", giver=giver.slot, taker=taker.slot, error=error)
            self._resting[giver.pid, taker.pid] = time.monotonic() + _REST_FAILED
            return
        number = next(self._numbers)
        timer = self._loop.later(_DEADLINE, lambda: self._late(number))
        self._transfers[number] = _Transfer(giver, taker, reason, timer)
        with for_giver, for_taker:
            taker.send(Take(transfer=number, giver=giver.slot, reason=reason), (for_taker.fileno(),))
            give = Give(transfer=number, taker=taker.slot, count=count, reason=reason)
            giver.send(give, (for_giver.fileno(),))

    def _late(self, number: int) -> None:
        transfer = self._transfers[number]
        self._end(number)
        giver, taker = transfer.giver.slot, transfer.taker.slot
        self._log.error("hand-over of tunnels does not end", giver=giver, taker=taker, seconds=_DEADLINE)
        self._rest(transfer, _REST_FAILED)

    def _end(self, number: int) -> None:
        self._transfers.pop(number).timer.cancel()

    def _rest(self, transfer: _Transfer, seconds: float) -> None:
        self._resting[transfer.giver.pid, transfer.taker.pid] = time.monotonic() + seconds

    def _rests(self, giver: WorkerProcess, taker: WorkerProcess, now: float) -> bool:
        return self._resting.get((giver.pid, taker.pid), 0.0) > now

    def _busy(self) -> set[WorkerProcess]:
        busy = set()
        for transfer in self._transfers.values():
            busy |= {transfer.giver, transfer.taker}
        return busy

    def _load(self, worker: WorkerProcess) -> Load:
        cells = self._board.slab(worker.slot).cells
        room = max(0, self._most - cells[WorkerCell.CONNECTIONS])
        return Load(worker.slot, cells[WorkerCell.TUNNELS], cells[WorkerCell.MOVABLE], room)

    def _serving(self) -> dict[int, WorkerProcess]:
        """The workers that may take tunnels, by slot."""
        fleet = self._fleet
        return {
            slot: worker
            for slot in fleet.active
            if (worker := fleet.workers.get(slot)) is not None
            and worker.phase is Phase.SERVING
            and not worker.closed
        }

    # --- away from those that leave --------------------------------------------------------------------

    def _leavers(self) -> list[WorkerProcess]:
        return [
            worker
            for worker in self._fleet.workers.values()
            if worker.phase is Phase.LEAVING and worker.hands_over and not worker.closed
        ]

    def _turn_in(self, delay: float) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self._loop.later(delay, self._turn)

    def _turn(self) -> None:
        leavers = self._leavers()
        if not leavers or self._fleet.closed:
            return
        serving = self._serving()
        busy = self._busy()
        for giver in leavers:
            if giver not in busy:
                busy |= self._relieve(giver, serving, busy)
        self._turn_in(TURN)

    def _relieve(
        self, giver: WorkerProcess, serving: dict[int, WorkerProcess], busy: set[WorkerProcess]
    ) -> set[WorkerProcess]:
        """Begins the next hand-over of `giver`; returns who is busy with it."""
        movable = self._load(giver).movable
        if movable <= 0:
            return set()
        now = time.monotonic()
        shares = sharing.spread(movable, [self._load(worker) for worker in serving.values()])
        for slot, count in sorted(shares.items(), key=lambda share: -share[1]):
            taker = serving[slot]
            if taker not in busy and not self._rests(giver, taker, now):
                self._begin(giver, taker, count, giver.moves)
                return {giver, taker}
        return set()

    # --- from the fullest to the emptiest --------------------------------------------------------------

    def _rebalance_again(self) -> None:
        self._loop.later(REBALANCE, self._rebalance_again)
        self._rebalance()

    def _rebalance(self) -> None:
        rules = self._fleet.deployment.plan.config.process.rebalance
        # Tunnels in nobody's hands, or on their way, are on no gauge or on two.
        if rules is None or self._fleet.closed or self._fleet.recovering or self._transfers:
            return
        now = time.monotonic()
        self._resting = {pids: until for pids, until in self._resting.items() if until > now}
        serving = self._serving()
        loads = [self._load(worker) for worker in serving.values()]
        move = sharing.rebalanced(loads, rules.tunnels, rules.percent, rules.pace)
        if move is None:
            for worker in serving.values():
                self._tell(worker)
            return
        giver, taker = serving[move.giver], serving[move.taker]
        if not self._rests(giver, taker, now):
            self._begin(giver, taker, move.tunnels, "rebalance")

    def _tell(self, worker: WorkerProcess) -> None:
        """Says in one line what `worker` has given since the last time."""
        count, reason = self._moved.pop(worker, (0, "rebalance"))
        if not count:
            return
        self._log.info("tunnels moved", slot=worker.slot, pid=worker.pid, count=count, reason=reason)
        if self._fleet.witness is not None:
            self._fleet.witness.moved(worker, count, reason)
