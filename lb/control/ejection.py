"""Passive ejection: the workers count what goes wrong on a server, and here alone it is decided that the
server is left out for a while. One decision for all workers keeps `max_percent` true whatever their number.

A worker counts on the scoreboard that a threshold was reached (`ServerCell.ERRORS_IN_A_ROW` and the two
after it) and rings. That an ejection is over they all know by the clock, so none stays out when this process
is gone; what is done here at the end is to tell it, and in time to forget it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator
from typing import Final

from lb.control.control import Control
from workers.contract.cells import NANOSECONDS, Admin, EjectReason, Health, ServerCell, StateCell
from workers.contract.snapshot import EjectSpec, PoolSpec, ServerSpec

REFUSAL_EVERY: Final = 10.0  # seconds between two events that tell of refused ejections in a pool

# In the order of EjectReason.
_COUNTERS: Final = (
    ServerCell.ERRORS_IN_A_ROW,
    ServerCell.GATEWAY_FAILURES,
    ServerCell.CONNECT_FAILURES,
)

Key = tuple[int, int]  # slot and owner
Counts = tuple[int, ...]  # in the order of EjectReason


def most_ejected(servers: int, max_percent: int) -> int:
    """How many of a pool's servers may be ejected at the same time.

    At least one where there are several: `max_percent = 10` of five servers would switch ejection off, which
    nobody means who has set it up. Never the only one: to leave nothing helps nobody.
    """
    if servers < 2 or max_percent <= 0:
        return 0
    return max(1, servers * max_percent // 100)


def ejection_seconds(spec: EjectSpec, streak: int) -> float:
    """How long the `streak`th ejection in a row lasts."""
    return min(spec.duration * streak, spec.max_duration)


class Ejections:
    """Decides on ejections, and tells when they are over."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._seen: dict[Key, Counts] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._refused: dict[str, float] = {}  # when it was told, by pool

    def adopt(self) -> None:
        """`control.snapshot` was replaced. What the workers counted before is no news: it was for the
        settings of before, or for the control process before this one. Ejections that last go on."""
        counts = self._count()
        self._seen = {key: self._seen.get(key, now) for key, now in counts.items()}
        names = {pool.name for pool, _ in self._pools()}
        self._refused = {name: at for name, at in self._refused.items() if name in names}
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for pool in self._control.snapshot.pools:
            for server in pool.servers:
                if self._control.states.get(server, StateCell.EJECTION_STREAK):
                    self._wait(pool, server)

    def look(self) -> None:
        """A worker rang: ejects the servers that newly reached a threshold."""
        counts = self._count()
        for pool, spec in self._pools():
            for server in pool.servers:
                key = (server.slot, server.owner)
                now = counts[key]
                before = self._seen.get(key, now)
                self._seen[key] = now
                reason = next((why for why in EjectReason if now[why] > before[why]), None)
                if reason is not None:
                    self._decide(pool, spec, server, reason)

    async def close(self) -> None:
        """Stops the timers; what is ejected comes back by the workers' clocks."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # --- what the workers counted ------------------------------------------------------------------------

    def _pools(self) -> Iterator[tuple[PoolSpec, EjectSpec]]:
        for pool in self._control.snapshot.pools:
            if pool.eject is not None:
                yield pool, pool.eject

    def _count(self) -> dict[Key, Counts]:
        """The counters of every server that may be ejected, summed over the workers.

        By columns, which are read in C, and most of which hold nothing but zeros: with many workers and
        servers a cell at a time takes too long for a loop that serves checks and scrapes."""
        owners = {server.slot: server.owner for pool, _ in self._pools() for server in pool.servers}
        totals = {slot: [0] * len(_COUNTERS) for slot in owners}
        end = max(owners, default=-1) + 1
        for slab in self._control.board.slabs():
            if not slab.used:
                continue
            begin, stop = slab.server_base(0), slab.server_base(end)
            for index, cell in enumerate(_COUNTERS):
                column = slab.cells[begin + cell : stop : int(ServerCell.WIDTH)].tolist()
                if not any(column):
                    continue
                for slot, count in enumerate(column):
                    if count and slab.cells[slab.server_base(slot) + ServerCell.OWNER] == owners.get(slot):
                        totals[slot][index] += count
        return {(slot, owners[slot]): tuple(total) for slot, total in totals.items()}

    # --- decisions ---------------------------------------------------------------------------------------

    def _decide(self, pool: PoolSpec, spec: EjectSpec, server: ServerSpec, reason: EjectReason) -> None:
        states = self._control.states
        if states.ejected_until(server):
            return  # what was under way when it was ejected has failed, too
        objection = self._objection(pool, spec, server)
        if objection:
            self._refuse(pool, server, reason, objection)
            return
        streak = states.get(server, StateCell.EJECTION_STREAK) + 1
        seconds = ejection_seconds(spec, streak)
        states.eject(pool.name, server, reason, seconds, streak)
        self._wait(pool, server)
        self._control.log.warning(
            "server is ejected",
            pool=pool.name,
            server=server.name,
            reason=reason.name.lower(),
            seconds=seconds,
            streak=streak,
        )

    def _objection(self, pool: PoolSpec, spec: EjectSpec, server: ServerSpec) -> str:
        """Why `server` may not be ejected; empty where it may."""
        states = self._control.states
        ejected = sum(1 for other in pool.servers if states.ejected_until(other))
        allowed = most_ejected(len(pool.servers), spec.max_percent)
        if ejected >= allowed:
            of = f"{ejected} of {len(pool.servers)} servers"
            return f"{of} are ejected, and max_percent = {spec.max_percent} allows {allowed}"
        if not any(self._usable(other) for other in pool.servers if other is not server):
            return "no other server of the pool can be used"
        return ""

    def _usable(self, server: ServerSpec) -> bool:
        states = self._control.states
        return (
            states.admin(server) is Admin.READY
            and states.health(server) is not Health.DOWN
            and states.weight(server) > 0
            and not states.ejected_until(server)
        )

    def _refuse(self, pool: PoolSpec, server: ServerSpec, reason: EjectReason, objection: str) -> None:
        word = reason.name.lower()
        self._control.log.warning(
            "ejection refused", pool=pool.name, server=server.name, reason=word, why=objection
        )
        now = time.monotonic()
        if now - self._refused.get(pool.name, float("-inf")) < REFUSAL_EVERY:
            return
        self._refused[pool.name] = now
        self._control.events.add(
            "ejection-refused",
            f"{pool.name}/{server.name} stays though it fails ({word.replace('_', ' ')}): {objection}",
            pool=pool.name, server=server.name, reason=word, why=objection,
        )  # fmt: skip

    # --- the end of an ejection --------------------------------------------------------------------------

    def _wait(self, pool: PoolSpec, server: ServerSpec) -> None:
        """Until the ejection is over, or, where it is, until it may be forgotten."""
        states = self._control.states
        cell = states.get(server, StateCell.EJECTED_UNTIL)
        until = cell / NANOSECONDS
        if until > time.monotonic():
            self._set_timer(server, until, functools.partial(self._returned, pool, server, cell))
        else:
            after = until + self._probation(pool, server)
            self._set_timer(server, after, functools.partial(self._forgive, server))

    def _probation(self, pool: PoolSpec, server: ServerSpec) -> float:
        """A server that stays well for as long as it was out starts over."""
        streak = self._control.states.get(server, StateCell.EJECTION_STREAK)
        return ejection_seconds(pool.eject, streak) if pool.eject else 0.0

    def _set_timer(self, server: ServerSpec, at: float, what: Callable[[], None]) -> None:
        key = (server.slot, server.owner)
        former = self._timers.pop(key, None)
        if former is not None:
            former.cancel()
        delay = max(0.0, at - time.monotonic())
        self._timers[key] = asyncio.get_running_loop().call_later(delay, what)

    def _returned(self, pool: PoolSpec, server: ServerSpec, cell: int) -> None:
        """The ejection whose end is `cell` is over."""
        states = self._control.states
        if states.ejected_until(server) or states.get(server, StateCell.EJECTED_UNTIL) != cell:
            # The loop's clock is coarser than the cells', and may be early; or the operator has ended the
            # ejection before its time, which was told.
            self._wait(pool, server)
            return
        self._control.events.add(
            "server-returned",
            f"{pool.name}/{server.name} is back after its ejection",
            pool=pool.name,
            server=server.name,
        )
        self._control.log.info("server is back after its ejection", pool=pool.name, server=server.name)
        self._wait(pool, server)

    def _forgive(self, server: ServerSpec) -> None:
        del self._timers[(server.slot, server.owner)]
        self._control.states.forgive(server)
