"""Tunnels that are to be closed politely, each in its turn.

Whoever wants tunnels to go (an operator, a drain, a reload, the end of the worker) plans them here; the
worker's tick serves what is due, a bounded number in each turn of the loop. Why a tunnel is planned is its
*cause*: what is called off takes back its own plans and nobody else's.

What follows from a state is looked up rather than remembered, so that a crashed worker's successor goes on
with it: servers that are to be emptied stand on the scoreboard (`StateCell.EMPTY_BY`), servers and routes
that are gone are those that the configuration has not. New tunnels, adopted ones among them, are held against
both. What somebody asked for is no state, and stands on the ledger beside the tunnel.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from workers.contract.cells import NANOSECONDS, StateCell, WorkerCell
from workers.contract.entries import EntryCell
from workers.contract.snapshot import DrainSpec, PoolSpec, Snapshot
from workers.core.pacing import Timetable, times, window
from workers.io.closing import PATIENCE, close_politely

if TYPE_CHECKING:
    from workers.io.chores import Steps
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

# Tunnels that begin to close in one turn of the loop, so that the others are not held up.
_AT_ONCE: Final = 64
_A_STEP: Final = 500  # tunnels; they take two milliseconds
_EMPTY_BY: Final = int(StateCell.EMPTY_BY)
_STATES: Final = int(StateCell.WIDTH)
# A tunnel that reached its max_age is closed within this part of it, so that those that were opened together
# don't come back together.
_AGE_SPREAD: Final = 0.1

Row = tuple[int, int]  # a server's or a route's: its slot on the scoreboard, and its owner


class Cause(NamedTuple):
    """Why tunnels are closed, and with which Close. `key` tells apart what else would be the same."""

    why: str
    code: int
    reason: str = ""
    key: tuple[int, ...] = ()


class _Leaving(NamedTuple):
    """All tunnels are to be closed by `until`, with `hand_over` only those that no other worker can have; and
    those whose end somebody asked for at their own times, by `at_last`."""

    cause: Cause
    until: float
    hand_over: bool
    at_last: float


class Pacer:
    """See the module."""

    __slots__ = (
        "_drained", "_leaving", "_met", "_more", "_random", "_removed", "_rows", "_timetable", "_worker",
    )  # fmt: skip

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._timetable: Timetable[Cause] = Timetable()
        self._random = random.Random().random
        self._met = 0  # the tunnel with the highest number that was held against the states
        self._more = False  # whether the next turn of the loop goes on with what is due
        # What the states say: servers that are to be empty, by when and why; and what there is.
        self._drained: dict[Row, tuple[int, Cause]] = {}
        self._rows: tuple[frozenset[Row], frozenset[Row]] = (frozenset(), frozenset())
        self._removed: set[Cause] = set()  # one for each server or route that is gone and had tunnels
        self._leaving: _Leaving | None = None

    def __contains__(self, number: int) -> bool:
        """Whether the tunnel is planned."""
        return number in self._timetable

    def is_ordered(self, number: int) -> bool:
        """Whether somebody asked for this tunnel's end: no other worker that lives knows of that."""
        return self._order_of(number) is not None

    def _order_of(self, number: int) -> tuple[float, Cause] | None:
        """What somebody asked for: when it is due, and how the tunnel is closed then."""
        planned = self._timetable.planned(number).items()
        return min(((at, cause) for cause, at in planned if cause.why == "order"), default=None)

    # --- planning ------------------------------------------------------------------------------------

    def plan(self, tunnels: Iterable[Tunnel], cause: Cause, spread: float, wait: float = 0.0) -> int:
        """Closes these tunnels evenly over `spread` seconds, `wait` seconds from now on; returns how many
        they are. Those that are being closed are left alone; what is planned earlier for `cause` stays so."""
        numbers = [tunnel.number for tunnel in tunnels if tunnel.closing is None]
        if numbers:
            start = time.monotonic() + wait
            self._timetable.plan(numbers, cause, times(len(numbers), start, spread, self._random))
            if start + spread <= time.monotonic():
                self._serve()
            self._count()
        return len(numbers)

    def _plan_once(self, tunnels: Iterable[Tunnel], cause: Cause, spread: float) -> None:
        """The same, but for those that are planned for `cause` already: to draw their times a second time
        would bring them forward."""
        has = self._timetable.has
        self.plan([tunnel for tunnel in tunnels if not has(tunnel.number, cause)], cause, spread)

    def order(self, tunnels: Iterable[Tunnel], code: int, reason: str, spread: float) -> int:
        """Somebody asks for it."""
        chosen = list(tunnels)
        count = self.plan(chosen, Cause("order", code, reason), spread)
        if self._leaving is not None:
            self._bring_forward(chosen, self._leaving)
        for tunnel in chosen:
            self.note_order(tunnel)
        return count

    def note_order(self, tunnel: Tunnel) -> None:
        """Puts down on the ledger what somebody asked for, where it is not done yet, for a successor."""
        if tunnel.entry < 0:
            return
        keeping = self._worker.keeping
        base = keeping.area.entry(tunnel.entry)
        order = self._order_of(tunnel.number)
        keeping.cells[base + EntryCell.ORDERED_AT] = int(order[0] * NANOSECONDS) if order else 0
        keeping.cells[base + EntryCell.ORDERED] = order[1].code if order else 0

    def go_on(self, tunnel: Tunnel) -> None:
        """Plans what a predecessor was asked for. (Its reason in words is not on the ledger.)"""
        keeping = self._worker.keeping
        base = keeping.area.entry(tunnel.entry)
        code = int(keeping.cells[base + EntryCell.ORDERED])
        if code:
            at = keeping.cells[base + EntryCell.ORDERED_AT] / NANOSECONDS
            self._timetable.plan((tunnel.number,), Cause("order", code), (at,))

    def too_old(self, tunnel: Tunnel, max_age: float) -> None:
        """It has lived for `max_age` seconds: it closes soon, but not with all that are as old."""
        drain = self._drain
        spread = min(drain.spread, max_age * _AGE_SPREAD)
        self.plan((tunnel,), Cause("max_age", drain.close_code), spread)

    def idle(self, tunnel: Tunnel) -> None:
        """Nothing passed for as long as `idle` allows: it closes now."""
        close_politely(tunnel, self._drain.close_code, "")

    def leave(self, grace: float, *, hand_over: bool = False, late: bool = False) -> None:
        """The worker ends within `grace` seconds. With `hand_over`, those that another worker can have are
        left for it; with `late`, all are left alone for as long as possible. Where somebody asked for a
        tunnel's end that is done at its time, or within the grace if that comes first."""
        drain = self._drain
        wait, spread = window(grace, drain.spread, PATIENCE, late=late)
        now = time.monotonic()
        at_last = now + window(grace, grace, PATIENCE, late=False).spread
        self._leaving = _Leaving(Cause("stop", drain.close_code), now + wait + spread, hand_over, at_last)
        staying = self._bring_forward(self._worker.tunnels.values(), self._leaving)
        self.plan(staying, self._leaving.cause, spread, wait)

    def _bring_forward(self, tunnels: Iterable[Tunnel], leaving: _Leaving) -> list[Tunnel]:
        """Sees to it that what was asked for is done before the worker's end. Returns those that stay with
        the worker and that nobody asked for."""
        staying: list[Tunnel] = []
        too_late: dict[Cause, list[Tunnel]] = {}
        for tunnel in tunnels:
            order = self._order_of(tunnel.number)
            if order is None:
                if not (leaving.hand_over and tunnel.movable):
                    staying.append(tunnel)
            elif order[0] > leaving.at_last:
                too_late.setdefault(order[1], []).append(tunnel)
        for cause, some in too_late.items():
            self.plan(some, cause, max(0.0, leaving.at_last - time.monotonic()))
            for tunnel in some:
                self.note_order(tunnel)
        return staying

    @property
    def _drain(self) -> DrainSpec:
        plan = self._worker.current
        return plan.snapshot.drain if plan is not None else DrainSpec()

    # --- what the states say -------------------------------------------------------------------------

    def adopt(self, snapshot: Snapshot) -> None:
        """A configuration is served from now on. Tunnels on servers or routes that it has not any more are
        closed, where their pool says so (one that is gone, too: as it said last). For those that it has
        again, that is called off."""
        routes = frozenset((route.slot, route.owner) for route in snapshot.routes)
        servers = frozenset((server.slot, server.owner) for pool in snapshot.pools for server in pool.servers)
        self._rows = routes, servers
        former, self._removed = self._removed, set()
        self._plan_removed(self._worker.tunnels.values())
        for cause in former - self._removed:
            self._timetable.call_off(cause)
        self._count()
        self.look()

    def look(self) -> None:
        """Takes in which servers are to be emptied; when the control process says that some state changed."""
        plan = self._worker.current
        if plan is None:
            return
        drained = self._read_drained(plan.snapshot)
        if drained == self._drained:
            return
        former, self._drained = self._drained, drained
        for row, (_, cause) in former.items():
            if drained.get(row, (0, None))[1] != cause:
                self._timetable.call_off(cause)
        fresh = {row for row, found in drained.items() if former.get(row) != found}
        if fresh:
            self._worker.chores.begin(self._plan_in_steps(fresh), first=True)
        self._count()

    def _plan_in_steps(self, rows: set[Row]) -> Steps:
        """Thousands of tunnels take long; each part of them is spread over the whole time, and so are all."""
        tunnels = tuple(self._worker.tunnels.values())
        for start in range(0, len(tunnels), _A_STEP):
            self._plan_drained(tunnels[start : start + _A_STEP], rows & self._drained.keys())
            yield

    def _read_drained(self, snapshot: Snapshot) -> dict[Row, tuple[int, Cause]]:
        """What is on the board, also of servers that are gone from the configuration: to drain a server and
        then to remove it is what people do."""
        board = self._worker.board
        cells = board.control
        code = snapshot.drain.close_code
        found: dict[Row, tuple[int, Cause]] = {}
        if not any(cells[board.state_base(0) + _EMPTY_BY :: _STATES].tolist()):
            return found
        rows = [(server.slot, server.owner) for pool in snapshot.pools for server in pool.servers]
        rows += [(row.slot, row.owner) for row in snapshot.retired_servers]
        for row in rows:
            base = board.state_base(row[0])
            by = cells[base + StateCell.EMPTY_BY]
            if by and cells[base + StateCell.OWNER] == row[1]:
                found[row] = by, Cause("drain", code, "", (*row, by))
        return found

    def _plan_drained(self, tunnels: Iterable[Tunnel], rows: set[Row]) -> None:
        if not rows:
            return
        by_row: dict[Row, list[Tunnel]] = {}
        for tunnel in tunnels:
            row = _server_row(tunnel)
            if row in rows:
                by_row.setdefault(row, []).append(tunnel)
        now = time.monotonic()
        for row, some in by_row.items():
            by, cause = self._drained[row]
            self._plan_once(some, cause, max(0.0, by / NANOSECONDS - now))

    def _plan_removed(self, tunnels: Iterable[Tunnel]) -> None:
        drain = self._drain
        gone: dict[Cause, list[Tunnel]] = {}
        for tunnel in tunnels:
            key = self._what_is_gone(tunnel)
            if key and self._settings(tunnel).on_removed == "paced-close":
                gone.setdefault(Cause("removed", drain.close_code, "", key), []).append(tunnel)
        for cause, some in gone.items():
            self._plan_once(some, cause, drain.spread)
        self._removed.update(gone)

    def _what_is_gone(self, tunnel: Tunnel) -> tuple[int, ...]:
        """The key of the tunnel's server where that is gone, else that of its route; empty: neither is."""
        routes, servers = self._rows
        row = _server_row(tunnel)
        if row not in servers:
            return (0, *row)
        spec = tunnel.route.spec
        return (1, spec.slot, spec.owner) if (spec.slot, spec.owner) not in routes else ()

    def _settings(self, tunnel: Tunnel) -> PoolSpec:
        """Those of the tunnel's pool as it is now; of one that is gone the last ones."""
        plan = self._worker.current
        last = tunnel.server.pool
        pool = plan.pools.get(last.spec.name, last) if plan is not None else last
        return pool.spec

    def is_emptied(self, slot: int, owner: int) -> bool:
        """Whether the tunnels of this server are asked to move, so that none shall come back to it."""
        return (slot, owner) in self._drained

    # --- time ----------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Once a tick: new tunnels are met, what is due is closed, what ended by itself is forgotten."""
        tunnels = self._worker.tunnels
        if tunnels:
            self._meet()
        if self._timetable:
            self._timetable.forget(self._timetable.without(tunnels))
            self._serve()
            self._count()

    def _meet(self) -> None:
        """Holds the new tunnels, which have the highest numbers, against the states."""
        new: list[Tunnel] = []
        for tunnel in reversed(self._worker.tunnels.values()):
            if tunnel.number <= self._met:
                break
            new.append(tunnel)
        if not new:
            return
        self._met = new[0].number
        self._plan_drained(new, set(self._drained))
        self._plan_removed(new)
        leaving = self._leaving
        if leaving is not None:
            late = self._bring_forward(new, leaving)
            self._plan_once(late, leaving.cause, max(0.0, leaving.until - time.monotonic()))

    def _serve(self) -> None:
        """Closes what is due: some now, and others in the next turn of the loop."""
        now = time.monotonic()
        tunnels = self._worker.tunnels
        for _ in range(_AT_ONCE):
            due = self._timetable.next_due(now)
            if due is None:
                return
            number, cause = due
            tunnel = tunnels.get(number)
            if tunnel is not None:
                close_politely(tunnel, cause.code, cause.reason)
        if not self._more:
            self._more = True
            self._worker.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._more = False
        self._serve()
        self._count()

    def _count(self) -> None:
        self._worker.slab.cells[WorkerCell.PACED] = len(self._timetable)


def _server_row(tunnel: Tunnel) -> Row:
    spec = tunnel.server.spec
    return spec.slot, spec.owner
