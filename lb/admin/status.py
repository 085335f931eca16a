"""The whole in one answer, and its parts: workers, listeners, routes."""

from __future__ import annotations

import os
import time

import msgspec
from aiohttp import web

from lb.admin import pools, requests
from lb.admin.answers import json
from lb.admin.attention import problems
from lb.admin.requests import Query
from lb.admin.views import (
    CertificateView,
    ListenerView,
    ReloadView,
    RouteView,
    StatusView,
    UpgradeView,
    WorkerView,
)
from lb.control import processes
from lb.control.control import Control
from lb.control.figures import Figures
from lb.control.rows import WorkerFigures
from lb.master.report import Outcome, WorkerReport
from lb.metrics.app import FRESH, unready
from lb.metrics.overall import loop_lag
from workers.contract.snapshot import ListenerSpec, RouteSpec


class Status:
    """The routes."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def status(self, request: web.Request) -> web.Response:
        """Everything."""
        requests.query(request, Query)
        return json(view(self._control))

    async def workers(self, request: web.Request) -> web.Response:
        """The worker processes."""
        requests.query(request, Query)
        return json(workers(self._control, self._figures()))

    async def listeners(self, request: web.Request) -> web.Response:
        """The listeners."""
        requests.query(request, Query)
        return json(listeners(self._control, self._figures()))

    async def routes(self, request: web.Request) -> web.Response:
        """The routes, in the order in which they are matched."""
        requests.query(request, Query)
        return json(routes(self._control, self._figures()))

    def _figures(self) -> Figures:
        return Figures(self._control.board, self._control.snapshot)


def view(control: Control) -> StatusView:
    """The whole. All of it is of one moment, as far as figures that others write can be."""
    report = control.status
    figures = Figures(control.board, control.snapshot)
    upgrade = report.upgrades.last
    seen = StatusView(
        version=report.version,
        form=report.form,
        pid=report.pid,
        config=report.config,
        state=report.state,
        ready=not unready(control),
        problems=(),
        time=time.time(),
        uptime=_uptime(report.pid, report.uptime),
        generation=control.snapshot.generation,
        workers_wanted=report.workers_wanted,
        reloads_succeeded=report.reloads.succeeded,
        reloads_failed=report.reloads.failed,
        last_reload=None if report.reloads.last is None else reload_view(report.reloads.last),
        upgrades_succeeded=report.upgrades.succeeded,
        upgrades_failed=report.upgrades.failed,
        last_upgrade=None if upgrade is None else msgspec.convert(upgrade, UpgradeView, from_attributes=True),
        restarts=report.restarts,
        keeper_restarts=report.keeper_restarts,
        migrations=_migrations(figures),
        workers=workers(control, figures),
        listeners=listeners(control, figures),
        routes=routes(control, figures),
        pools=pools.views(control, figures),
        control_pid=os.getpid(),
    )
    return msgspec.structs.replace(seen, problems=problems(control, seen, figures))


def _migrations(figures: Figures) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (reason, result), count in figures.migrations.items():
        found.setdefault(reason, {})[result] = count
    return found


def reload_view(outcome: Outcome) -> ReloadView:
    """How a reload ended."""
    return ReloadView(
        ok=outcome.ok,
        generation=outcome.generation,
        changes=outcome.changes,
        error=outcome.error,
        seconds=outcome.seconds,
        at=outcome.at,
    )


def workers(control: Control, figures: Figures) -> tuple[WorkerView, ...]:
    """One per process."""
    seen = {figure.slot: figure for figure in figures.workers()}
    return tuple(_worker(report, seen.get(report.slot)) for report in control.status.workers)


def _worker(report: WorkerReport, figure: WorkerFigures | None) -> WorkerView:
    uptime = _uptime(report.pid, report.uptime)
    # The cells of a slot are of the process before until this one has written them.
    ours = figure if figure is not None and figure.pid == report.pid else None
    lag = loop_lag(report, ours, time.monotonic())
    files = processes.open_files(report.pid)
    return WorkerView(
        slot=report.slot,
        pid=report.pid,
        state=report.state,
        uptime=uptime,
        generation=0 if ours is None else ours.generation,
        connections=0 if ours is None else ours.connections,
        tunnels=0 if ours is None else ours.tunnels,
        crash_safe=0 if ours is None else ours.crash_safe,
        movable=0 if ours is None else ours.movable,
        closing=0 if ours is None else ours.paced,
        keeper_pid=report.keeper_pid,
        accepted=0 if figure is None else figure.accepted,
        requests=0 if figure is None else figure.requests,
        loop_lag=round(lag, 6),
        wedged=lag >= FRESH,
        cpu_seconds=0.0 if figure is None else figure.cpu,
        memory_bytes=processes.resident_memory(report.pid) or 0,
        open_files=-1 if files is None else files,
    )


def _uptime(pid: int, told: float) -> float:
    """Seconds since `pid` was started; what the master told where Linux does not say."""
    started = processes.start_time(pid)
    return told if started is None else round(max(0.0, time.time() - started), 3)


def listeners(control: Control, figures: Figures) -> tuple[ListenerView, ...]:
    """All listeners."""
    return tuple(_listener(spec, figures) for spec in control.snapshot.listeners)


def _listener(spec: ListenerSpec, figures: Figures) -> ListenerView:
    figure = figures.listener(spec)
    certificates = () if spec.tls is None else spec.tls.certificates
    return ListenerView(
        name=spec.name,
        bind=spec.bind,
        tls=spec.tls is not None,
        connections=figure.connections,
        accepted=figure.accepted,
        rejected=figure.rejected,
        rejected_by_reason=figure.rejected_by,
        certificates=tuple(
            CertificateView(name=one.name, hosts=one.hosts, not_after=one.not_after) for one in certificates
        ),
    )


def routes(control: Control, figures: Figures) -> tuple[RouteView, ...]:
    """All routes."""
    return tuple(_route(spec, figures) for spec in control.snapshot.routes)


def _route(spec: RouteSpec, figures: Figures) -> RouteView:
    figure = figures.route(spec)
    return RouteView(
        name=spec.name,
        host=spec.host,
        path=spec.path,
        pool=spec.pool,
        in_flight=figure.in_flight,
        requests=figure.requests,
        tunnels=figure.tunnels,
        client_bytes=figure.client_bytes,
        server_bytes=figure.server_bytes,
        client_messages=figure.client_messages,
        server_messages=figure.server_messages,
        handshakes=figure.handshakes,
        errors=sum(count for (_, status), count in figure.requests_by.items() if 500 <= status <= 599),
        ping_timeouts=figure.ping_timeouts,
    )
