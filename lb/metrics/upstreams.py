"""Pools and servers: what goes to the upstreams."""

from __future__ import annotations

import time
from typing import Final, get_args

from lb.admin.views import ServerState
from lb.control.control import Control
from lb.control.figures import Figures
from lb.control.rows import ServerFigures
from lb.control.serverstate import Standing, standing
from lb.metrics.sheet import Sheet
from lb.metrics.traffic import code_label
from workers.contract.snapshot import PoolSpec, RetiredRow, ServerSpec

STATES: Final[tuple[str, ...]] = get_args(ServerState)


def collect_pool(sheet: Sheet, control: Control, figures: Figures, spec: PoolSpec) -> None:
    """One pool, without its servers' traffic: their states belong together."""
    figure = figures.pool(spec)
    sheet.add_histogram("lb_upstream_connect_duration_seconds", figure.connect, spec.name)
    sheet.add("lb_upstream_retries_total", figure.retries, spec.name)
    sheet.add("lb_upstream_queue_length", figure.queued, spec.name)
    if spec.admission is not None:
        results = {"admitted": figure.admitted, "refused": figure.admission_refused}
        sheet.add_each("lb_upstream_admission_total", results, spec.name)
        sheet.add("lb_upstream_admission_queue_length", figure.admission_queued, spec.name)
    if spec.sticky is not None:
        sheet.add_each("lb_sticky_lookups_total", figure.sticky, spec.name)
    stands = standing(control.states, spec, time.monotonic())
    for server, stand in zip(spec.servers, stands.servers, strict=True):
        _collect_state(sheet, spec.name, server.name, stand)


def _collect_state(sheet: Sheet, pool: str, server: str, stand: Standing) -> None:
    for state in STATES:
        sheet.add("lb_upstream_server_state", int(state == stand.state), pool, server, state)
    sheet.add("lb_upstream_server_weight", stand.weight, pool, server)


def collect_server(sheet: Sheet, figures: Figures, pool: PoolSpec, index: int) -> None:
    """One server of `pool`."""
    spec = pool.servers[index]
    figure = figures.server(pool, spec)
    _collect_connections(sheet, pool.name, spec, figure)
    for status, count in figure.responses.items():
        sheet.add("lb_upstream_requests_total", count, pool.name, spec.name, code_label(status))
    sheet.add_each("lb_upstream_errors_total", figure.errors_by, pool.name, spec.name)
    if pool.checks and pool.checks[index] is not None:
        sheet.add_each("lb_upstream_health_checks_total", figures.checks(spec), pool.name, spec.name)
    if pool.eject is not None:
        sheet.add_each("lb_upstream_ejections_total", figures.ejections(spec), pool.name, spec.name)


def _collect_connections(
    sheet: Sheet, pool: str, spec: ServerSpec | RetiredRow, figure: ServerFigures
) -> None:
    kinds = {
        # The cells of two moments may not fit together, and there is no less than none.
        "active": max(0, figure.connections - figure.idle),
        "idle": figure.idle,
        "tunnel": figure.tunnels,
    }
    sheet.add_each("lb_upstream_connections", kinds, pool, spec.name)


def collect_gone_servers(
    sheet: Sheet, figures: Figures, gone: tuple[RetiredRow, ...], named: set[tuple[str, str]]
) -> None:
    """Servers that a reload took away, while something of theirs is still open. One whose name is used again
    (`named`) would be told twice."""
    for row in gone:
        figure = figures.server_row(row)
        if (figure.connections or figure.tunnels) and (row.pool, row.name) not in named:
            named.add((row.pool, row.name))
            _collect_connections(sheet, row.pool, row, figure)
