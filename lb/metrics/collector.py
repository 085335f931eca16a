"""A collector for prometheus_client over the scoreboard and what the control process knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from lb.control.control import Control
from lb.control.figures import Figures
from lb.metrics.overall import collect_overall, collect_workers
from lb.metrics.sheet import Sheet
from lb.metrics.traffic import (
    collect_certificates,
    collect_gone_routes,
    collect_listener,
    collect_route,
    collect_tunnels,
)
from lb.metrics.upstreams import collect_gone_servers, collect_pool, collect_server


class ScoreboardCollector(Collector):
    """Reads at scrape time; it asks no worker, so it answers with every worker wedged."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterable[Metric]:
        """All metrics, at once."""
        sheet = Sheet()
        for _ in self.steps(sheet):
            pass
        return sheet.metrics()

    def describe(self) -> Iterable[Metric]:
        """All metrics, without samples."""
        return Sheet().metrics()

    def steps(self, sheet: Sheet) -> Iterator[None]:
        """Fills `sheet` in small steps, so that an event loop may do something else between two."""
        control = self._control
        snapshot = control.snapshot
        figures = Figures(control.board, snapshot)
        collect_overall(sheet, control)
        collect_workers(sheet, control, figures)
        collect_certificates(sheet, snapshot)
        yield
        for listener in snapshot.listeners:
            collect_listener(sheet, figures, listener)
        yield
        for route in snapshot.routes:
            collect_route(sheet, figures, route)
            yield
        collect_gone_routes(
            sheet, figures, snapshot.retired_routes, {route.name for route in snapshot.routes}
        )
        collect_tunnels(sheet, figures)
        for pool in snapshot.pools:
            collect_pool(sheet, control, figures, pool)
            for index in range(len(pool.servers)):
                collect_server(sheet, figures, pool, index)
                yield
        named = {(pool.name, server.name) for pool in snapshot.pools for server in pool.servers}
        collect_gone_servers(sheet, figures, snapshot.retired_servers, named)


def registry(control: Control) -> CollectorRegistry:
    """A registry of its own with nothing else in it, for prometheus_client's own tools."""
    own = CollectorRegistry(auto_describe=False)
    own.register(ScoreboardCollector(control))
    return own
