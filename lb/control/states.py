"""The servers' states on the scoreboard: written here alone, read by the workers.

What checks saw, what the workers saw (ejection) and what the operator wants are kept apart; a worker
combines them (`workers.core.health`). Every change rings the workers' bell, so it reaches them at once.
"""

from __future__ import annotations

import time

from lb.control.events import EventLog
from workers.contract.bells import Bells
from workers.contract.cells import (
    NANOSECONDS,
    Admin,
    CheckResult,
    ControlCell,
    EjectReason,
    Health,
    StateCell,
)
from workers.contract.scoreboard import Scoreboard
from workers.contract.snapshot import ServerSpec, Snapshot


class ServerStates:
    """The only writer of the control area's rows."""

    def __init__(self, board: Scoreboard, bells: Bells, events: EventLog) -> None:
        self._board = board
        self._cells = board.control
        self._bells = bells
        self._events = events

    def adopt(self, snapshot: Snapshot) -> None:
        """A configuration is served from now on: rows that changed hands start from nothing. Operator state
        and health of servers that stay are kept."""
        for pool in snapshot.pools:
            for server in pool.servers:
                base = self._board.state_base(server.slot)
                if self._cells[base + StateCell.OWNER] != server.owner:
                    for cell in range(base, base + StateCell.WIDTH):
                        self._cells[cell] = 0
                    self._cells[base + StateCell.OWNER] = server.owner
        self._ring()

    # --- what is on the board ----------------------------------------------------------------------------

    def get(self, server: ServerSpec, cell: StateCell, offset: int = 0) -> int:
        """One cell of `server`."""
        return int(self._cells[self._board.state_base(server.slot) + cell + offset])

    def health(self, server: ServerSpec) -> Health:
        """What checks say."""
        return Health(self.get(server, StateCell.HEALTH))

    def admin(self, server: ServerSpec) -> Admin:
        """What the operator wants."""
        return Admin(self.get(server, StateCell.ADMIN))

    def weight(self, server: ServerSpec) -> int:
        """The weight that counts: the operator's, else the configured one."""
        given = self.get(server, StateCell.WEIGHT)
        return given - 1 if given else server.weight

    def ejected_until(self, server: ServerSpec) -> float:
        """Monotonic seconds; 0.0 where it is not ejected now."""
        until = self.get(server, StateCell.EJECTED_UNTIL) / NANOSECONDS
        return until if until > time.monotonic() else 0.0

    # --- changes -----------------------------------------------------------------------------------------

    def checked(self, server: ServerSpec, result: CheckResult) -> None:
        """Counts a check; whether it flips the server is told by `set_health`."""
        self._set(server, StateCell.CHECKED_AT, time.monotonic_ns())
        self._set(server, StateCell.LAST_RESULT, result)
        self._cells[self._board.state_base(server.slot) + StateCell.CHECKS + result] += 1

    def set_health(self, pool: str, server: ServerSpec, health: Health, why: str = "") -> None:
        """The checks have changed their mind. A server that comes back starts slowly."""
        before = self.health(server)
        if health is before:
            return
        if health is Health.UP and before is Health.DOWN:
            self._set(server, StateCell.RETURNED, time.monotonic_ns())
        self._set(server, StateCell.HEALTH, health)
        self._changed(server)
        word = health.name.lower()
        text = f"{pool}/{server.name} is {word}" + (f": {why}" if why else "")
        self._events.add(f"server-{word}", text, pool=pool, server=server.name, why=why)

    def set_admin(self, pool: str, server: ServerSpec, admin: Admin, spread: float | None = None) -> None:
        """The operator wants something else. What shall be ready is not left out any longer, either. A server
        that drains is to be empty in `spread` seconds, its tunnels closed politely; `None`: they stay."""
        if admin is Admin.READY:
            self._release(pool, server)
        before = self.admin(server)
        emptied = self._set_empty_by(server, spread if admin is Admin.DRAIN else None)
        if admin is before and not emptied:
            return
        if admin is Admin.READY:
            self._set(server, StateCell.RETURNED, time.monotonic_ns())
        self._set(server, StateCell.ADMIN, admin)
        self._changed(server)
        self._tell_admin(pool, server, admin, spread)

    def _tell_admin(self, pool: str, server: ServerSpec, admin: Admin, spread: float | None) -> None:
        word = admin.name.lower()
        text = f"{pool}/{server.name} is set to {word}"
        fields: dict[str, str | int | float] = {"pool": pool, "server": server.name, "admin": word}
        if admin is Admin.DRAIN and spread is not None:
            text += f", its tunnels are asked to move within {spread:g}s"
            fields["spread"] = spread
        self._events.add("server-admin", text, **fields)

    def _set_empty_by(self, server: ServerSpec, spread: float | None) -> bool:
        """When the server shall have no tunnels any more; whether that is something new."""
        before = self.get(server, StateCell.EMPTY_BY)
        if spread is None:
            self._set(server, StateCell.EMPTY_BY, 0)
            return before != 0
        self._set(server, StateCell.EMPTY_BY, time.monotonic_ns() + int(spread * NANOSECONDS))
        return True

    def empty_by(self, server: ServerSpec) -> float:
        """When the server shall have no tunnels any more, in monotonic seconds; 0.0: they stay."""
        return self.get(server, StateCell.EMPTY_BY) / NANOSECONDS

    def set_weight(self, pool: str, server: ServerSpec, weight: int | None) -> None:
        """The operator wants another weight; `None` goes back to the configured one."""
        cell = 0 if weight is None else weight + 1
        if cell == self.get(server, StateCell.WEIGHT):
            return
        self._set(server, StateCell.WEIGHT, cell)
        self._changed(server)
        now = self.weight(server)
        self._events.add(
            "server-admin",
            f"{pool}/{server.name} has weight {now}",
            pool=pool,
            server=server.name,
            weight=now,
        )

    def eject(self, pool: str, server: ServerSpec, reason: EjectReason, seconds: float, streak: int) -> None:
        """Takes the server out for `seconds`, for the `streak`th time in a row."""
        self._set(server, StateCell.EJECTION_STREAK, streak)
        self._set(server, StateCell.EJECTED_UNTIL, time.monotonic_ns() + int(seconds * NANOSECONDS))
        self._cells[self._board.state_base(server.slot) + StateCell.EJECTIONS + reason] += 1
        self._changed(server)
        word = reason.name.lower()
        self._events.add(
            "server-ejected",
            f"{pool}/{server.name} is ejected for {seconds:g}s: {word.replace('_', ' ')}",
            pool=pool, server=server.name, reason=word, seconds=seconds,
        )  # fmt: skip

    def _release(self, pool: str, server: ServerSpec) -> None:
        """Ends the ejection of `server`, if it is ejected, as its time would: it starts slowly."""
        if not self.ejected_until(server):
            return
        self._set(server, StateCell.EJECTED_UNTIL, time.monotonic_ns())
        self._changed(server)
        text = f"{pool}/{server.name} is back: the operator ended its ejection"
        self._events.add("server-returned", text, pool=pool, server=server.name, by="operator")

    def forgive(self, server: ServerSpec) -> None:
        """The server has behaved for long enough: its next ejection is as short as the first."""
        self._set(server, StateCell.EJECTION_STREAK, 0)

    def _set(self, server: ServerSpec, cell: StateCell, value: int) -> None:
        self._cells[self._board.state_base(server.slot) + cell] = value

    def _changed(self, server: ServerSpec) -> None:
        self._set(server, StateCell.CHANGED_AT, time.monotonic_ns())
        self._ring()

    def _ring(self) -> None:
        self._cells[ControlCell.FLIPS] += 1
        self._bells.ring_workers()
