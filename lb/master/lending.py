"""Shares of `max_connections`: a total over all workers, divided among them and lent on demand.

Each worker may have as many exchanges on a server as it is granted. Grants are cells of the scoreboard that
the master alone writes; a worker takes them in once a tick and answers with what it is bound to (its grant,
or more while it still has more open than that). A permit is given away only after the worker that had it has
answered, so the total is kept at every moment, and no request waits for the master: it waits in its worker's
queue, as it would when the servers are full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from lb.master.fleet import Fleet
from lb.master.loop import Loop
from workers.contract.cells import ServerCell
from workers.contract.scoreboard import Scoreboard
from workers.contract.snapshot import Snapshot

_BUSY: Final = 0.05  # seconds between two turns while any server has a limit
_IDLE: Final = 1.0


class Lending:
    """Keeps the grants in order, turn by turn."""

    def __init__(self, loop: Loop, fleet: Fleet, board: Scoreboard) -> None:
        self._loop = loop
        self._fleet = fleet
        self._board = board
        self._slots: tuple[int, ...] = ()
        self._limits: Mapping[int, int] = {}
        self._snapshot: Snapshot | None = None

    def start(self, slots: Collection[int]) -> None:
        """Gives the workers that are about to be forked their first shares, and goes on from there."""
        self.turn(slots)
        self._loop.later(_BUSY, self._again)

    def inherit(self, slots: Iterable[int]) -> None:
        """`slots` have had shares of a predecessor of this process; what it gave to those that are gone is
        taken back with the first turn."""
        board = self._board
        self._slots = tuple(slots)
        rows = range(board.capacity.servers)
        index = board.grant_index
        self._limits = {row: 0 for row in rows if any(board.grants[index(slot, row)] for slot in self._slots)}

    def _again(self) -> None:
        self.turn({*self._fleet.workers, *self._fleet.active})
        self._loop.later(_BUSY if self._limits else _IDLE, self._again)

    def turn(self, slots: Collection[int]) -> None:
        """Looks once at all servers that have a limit; `slots` are the workers that there are."""
        snapshot = self._fleet.deployment.plan.snapshot
        limits = self._limits
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            limits = limits_of(snapshot)
        self._take_back(slots, limits)
        self._slots = tuple(sorted(slots))
        self._limits = limits
        for row, limit in limits.items():
            self._share_out(row, limit, self._slots)

    def _take_back(self, slots: Collection[int], limits: Mapping[int, int]) -> None:
        """Takes back what belongs to nobody: of workers that are gone, of servers without a limit."""
        for slot in self._slots:
            for row in self._limits:
                if slot not in slots or row not in limits:
                    self._board.grants[self._board.grant_index(slot, row)] = 0

    def _share_out(self, row: int, limit: int, slots: Sequence[int]) -> None:
        board, grants = self._board, self._board.grants
        indexes = [board.grant_index(slot, row) for slot in slots]
        rows = [board.slab(slot).server_row(row) for slot in slots]
        held = [grants[index] for index in indexes]
        waiting = [cells[ServerCell.WAITING] for cells in rows]
        if sum(held) == limit and not any(waiting):
            return
        active = [cells[ServerCell.ACTIVE] for cells in rows]
        targets = fair_shares(limit, [a + w for a, w in zip(active, waiting, strict=True)])
        for index, before, target in zip(indexes, held, targets, strict=True):
            if target < before:
                grants[index] = target
        bound = [cells[ServerCell.BOUND] for cells in rows]
        # What was lowered just now counts until its worker has answered.
        free = limit - sum(map(max, held, bound))
        for index, before, target in zip(indexes, held, targets, strict=True):
            more = min(target - before, free)
            if more > 0:
                grants[index] = before + more
                free -= more


def limits_of(snapshot: Snapshot) -> dict[int, int]:
    """The limits of all servers that have one, by their row on the scoreboard."""
    return {
        server.slot: server.max_connections
        for pool in snapshot.pools
        for server in pool.servers
        if server.max_connections is not None
    }


def fair_shares(limit: int, demands: Sequence[int]) -> list[int]:
    """`limit` divided max-min fairly by `demands` (Bertsekas and Gallager, Data Networks, 6.5.2), and what
    nobody asks for evenly on top. The shares add up to `limit`."""
    shares = [0] * len(demands)
    left = limit
    open_slots = sorted(range(len(demands)), key=lambda slot: demands[slot])
    for position, slot in enumerate(open_slots):
        shares[slot] = min(demands[slot], left // (len(open_slots) - position))
        left -= shares[slot]
    for slot in range(len(demands)):
        # The last ones get no less than the first: what is left is divided anew at each step.
        more = left // (len(demands) - slot)
        shares[slot] += more
        left -= more
    return shares
