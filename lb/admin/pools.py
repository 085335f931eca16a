"""Pools and servers: what they are configured to be, what was seen, what the operator wants, what they do."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from lb.admin import requests
from lb.admin.answers import json
from lb.admin.auth import caller
from lb.admin.problems import Refused
from lb.admin.requests import Query
from lb.admin.views import (
    AdminState,
    AdmissionView,
    HealthWord,
    LastCheck,
    PoolView,
    ServerChange,
    ServerView,
)
from lb.control.control import Control
from lb.control.figures import Figures
from lb.control.rows import PoolFigures
from lb.control.serverstate import CHECKED, PoolStanding, standing
from workers.contract.cells import NANOSECONDS, Admin, CheckResult, Health, StateCell
from workers.contract.snapshot import PoolSpec, ServerSpec, Snapshot

_ADMIN: Final[dict[Admin, AdminState]] = {Admin.READY: "ready", Admin.DRAIN: "drain", Admin.MAINT: "maint"}
_ADMIN_OF: Final = {word: admin for admin, word in _ADMIN.items()}
_HEALTH: Final[dict[Health, HealthWord]] = {Health.UNKNOWN: "unknown", Health.UP: "up", Health.DOWN: "down"}
_OK: Final = "ok"


class Pools:
    """The routes."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def list(self, request: web.Request) -> web.Response:
        """All pools, with their servers."""
        requests.query(request, Query)
        return json(views(self._control))

    async def one(self, request: web.Request) -> web.Response:
        """One pool, with its servers."""
        requests.query(request, Query)
        return json(_Pool.look(self._control, self._pool(request)).view(self._control.snapshot))

    async def server(self, request: web.Request) -> web.Response:
        """One server."""
        requests.query(request, Query)
        pool = self._pool(request)
        return json(_Pool.look(self._control, pool).server(_index(request, pool)))

    async def change(self, request: web.Request) -> web.Response:
        """Sets what the operator wants of a server, and answers how it stands then."""
        requests.query(request, Query)
        change = await requests.body(request, ServerChange)
        pool = self._pool(request)
        index = _index(request, pool)
        server = pool.servers[index]
        _check(change)
        asked = msgspec.structs.asdict(change).items()
        wanted = {name: value for name, value in asked if value is not None and value is not False}
        self._control.log.info(
            "server changed", pool=pool.name, server=server.name, by=caller(request), **wanted
        )
        states = self._control.states
        if change.weight is not None:
            states.set_weight(pool.name, server, None if change.weight < 0 else change.weight)
        if change.admin is not None:
            spread = self._control.snapshot.drain.spread if change.spread is None else change.spread
            spread_or_none = None if change.keep_tunnels else spread
            states.set_admin(pool.name, server, _ADMIN_OF[change.admin], spread_or_none)
        return json(_Pool.look(self._control, pool).server(index))

    def _pool(self, request: web.Request) -> PoolSpec:
        name = request.match_info["pool"]
        for pool in self._control.snapshot.pools:
            if pool.name == name:
                return pool
        raise Refused(404, f"there is no pool {name}; /api/v1/pools lists them")


def _check(change: ServerChange) -> None:
    """Raises `Refused` where `change` says something about tunnels that stay as they are."""
    if change.admin != "drain" and (change.spread is not None or change.keep_tunnels):
        raise Refused(422, 'spread and keep_tunnels go with admin = "drain"')
    if change.keep_tunnels and change.spread is not None:
        raise Refused(422, "keep_tunnels leaves the tunnels alone: leave out one of it and spread")


def _index(request: web.Request, pool: PoolSpec) -> int:
    name = request.match_info["server"]
    for index, server in enumerate(pool.servers):
        if server.name == name:
            return index
    raise Refused(404, f"the pool {pool.name} has no server {name}; /api/v1/pools/{pool.name} lists them")


def views(control: Control, figures: Figures | None = None) -> tuple[PoolView, ...]:
    """All pools, in the order of the configuration."""
    figures = figures or Figures(control.board, control.snapshot)
    return tuple(_Pool.look(control, pool, figures).view(control.snapshot) for pool in control.snapshot.pools)


class _Pool(NamedTuple):
    """A pool at one moment."""

    spec: PoolSpec
    control: Control
    figures: Figures
    standing: PoolStanding
    now: float

    @classmethod
    def look(cls, control: Control, spec: PoolSpec, figures: Figures | None = None) -> _Pool:
        """As the workers see it."""
        now = time.monotonic()
        figures = figures or Figures(control.board, control.snapshot)
        return cls(spec, control, figures, standing(control.states, spec, now), now)

    def view(self, snapshot: Snapshot) -> PoolView:
        """The answer."""
        spec = self.spec
        figures = self.figures.pool(spec)
        return PoolView(
            name=spec.name,
            balance=spec.balance,
            servers=tuple(self.server(index) for index in range(len(spec.servers))),
            usable=self.standing.usable,
            panic=self.standing.panic,
            queued=figures.queued,
            retries=figures.retries,
            routes=tuple(route.name for route in snapshot.routes if route.pool == spec.name),
            admission=_admission(spec, figures),
        )

    def server(self, index: int) -> ServerView:
        """The answer for one server."""
        spec = self.spec.servers[index]
        seen = self.standing.servers[index]
        figures = self.figures.server(self.spec, spec)
        checks = self.figures.checks(spec)
        ejected = seen.known.ejected_until
        return ServerView(
            name=spec.name,
            pool=self.spec.name,
            address=_address(spec),
            addresses=spec.addresses,
            state=seen.state,
            admin=_ADMIN[Admin(seen.known.admin)],
            health=_HEALTH[Health(seen.known.health)],
            why=self._why(index),
            since=self._unix(self.control.states.get(spec, StateCell.CHANGED_AT) / NANOSECONDS),
            ejected_until=self._unix(ejected) if ejected > self.now else 0.0,
            weight=spec.weight,
            effective_weight=seen.weight,
            backup=spec.backup,
            max_connections=spec.max_connections,
            active=figures.active,
            tunnels=figures.tunnels,
            connections=figures.connections,
            idle=figures.idle,
            requests=figures.requests,
            errors=figures.errors,
            retries=figures.retries,
            checks_ok=checks.get(_OK, 0),
            checks_failed=sum(count for result, count in checks.items() if result != _OK),
            ejections=sum(self.figures.ejections(spec).values()),
            last_check=self._last_check(spec),
            tunnels_by_worker={
                str(slot): count for slot, count in self.figures.tunnels_by_worker(spec).items()
            },
            empty_by=self._unix(self.control.states.empty_by(spec)),
        )

    def _unix(self, monotonic: float) -> float:
        """A time of the monotonic clock as Unix time; 0 stays 0."""
        return round(time.time() - self.now + monotonic, 3) if monotonic else 0.0

    def _why(self, index: int) -> str:
        """Why the server is in its state. The checks know more of a failure than the board has room for."""
        seen = self.standing.servers[index]
        last = self._last_check(self.spec.servers[index])
        if seen.state == "down" and last is not None and last.result != _OK:
            return f"its checks fail: {last.detail}"
        return seen.why

    def _last_check(self, spec: ServerSpec) -> LastCheck | None:
        """What the checks say; else, right after the control process was replaced, what is on the board."""
        last = self.control.last_check(self.spec.name, spec.name)
        if last is not None:
            return LastCheck(
                result=last.result.name.lower(), detail=last.detail, at=last.at, seconds=last.seconds
            )
        at = self.control.states.get(spec, StateCell.CHECKED_AT) / NANOSECONDS
        if not at:
            return None
        result = CheckResult(self.control.states.get(spec, StateCell.LAST_RESULT))
        return LastCheck(result=result.name.lower(), detail=CHECKED[result], at=self._unix(at), seconds=0.0)


def _admission(spec: PoolSpec, figures: PoolFigures) -> AdmissionView | None:
    if spec.admission is None:
        return None
    return AdmissionView(
        rate=spec.admission.rate,
        burst=spec.admission.burst,
        queue=spec.admission.queue,
        waiting=figures.admission_queued,
        admitted=figures.admitted,
        refused=figures.admission_refused,
    )


def _address(spec: ServerSpec) -> str:
    if spec.path is not None:
        return f"unix:{spec.path}"
    host = spec.host or ""
    return f"[{host}]:{spec.port}" if ":" in host else f"{host}:{spec.port}"
