"""What happened a second between two statuses: the API has counters, whoever watches takes differences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lb.admin.views import RouteView, ServerView, StatusView, WorkerView

_SHORTEST: Final = 0.01  # seconds; nothing can be said about less


class Rates:
    """The differences from `before` to `now`. Without `before`, or where that was of another master, whose
    counters began anew, nothing is known and every rate is `None`."""

    def __init__(self, before: StatusView | None, now: StatusView) -> None:
        if before is None or before.pid != now.pid or before.uptime > now.uptime:
            before = now
        seconds = now.time - before.time
        self._seconds = seconds if seconds >= _SHORTEST else 0.0
        self._now = now
        self._before = before
        self._routes = {route.name: route for route in before.routes}
        self._workers = {(worker.slot, worker.pid): worker for worker in before.workers}
        self._servers = {(server.pool, server.name): server for server in _servers(before)}

    def requests(self) -> float | None:
        """Requests over all routes."""
        return self._over_routes("requests")

    def errors(self) -> float | None:
        """Requests answered with 5xx, over all routes."""
        return self._over_routes("errors")

    def messages(self) -> float | None:
        """WebSocket messages in both directions; routes that don't inspect frames count none."""
        return self._over_routes("client_messages", "server_messages")

    def bytes(self) -> float | None:
        """Bytes through WebSockets in both directions."""
        return self._over_routes("client_bytes", "server_bytes")

    def migrations(self) -> float | None:
        """Tunnels that changed hands and live on."""
        if not self._seconds:
            return None
        return max(0, _moved(self._now) - _moved(self._before)) / self._seconds

    def worker(self, worker: WorkerView, field: str) -> float | None:
        """How fast the counter `field` of `worker` grows."""
        return self._grown(worker, self._workers.get((worker.slot, worker.pid)), field)

    def server(self, server: ServerView, field: str) -> float | None:
        """How fast the counter `field` of `server` grows."""
        return self._grown(server, self._servers.get((server.pool, server.name)), field)

    def _over_routes(self, *fields: str) -> float | None:
        if not self._seconds:
            return None
        # One by one: a route that a reload removed takes its count with it.
        grown = (
            self._grown(route, before, field)
            for route in self._now.routes
            if (before := self._routes.get(route.name)) is not None
            for field in fields
        )
        return sum(rate for rate in grown if rate is not None)

    def _grown(
        self,
        now: RouteView | ServerView | WorkerView,
        before: RouteView | ServerView | WorkerView | None,
        field: str,
    ) -> float | None:
        if before is None or not self._seconds:
            return None
        difference: float = getattr(now, field) - getattr(before, field)
        return max(0.0, difference) / self._seconds


def _moved(view: StatusView) -> int:
    return sum(results.get("ok", 0) for results in view.migrations.values())


def _servers(view: StatusView) -> Iterable[ServerView]:
    return (server for pool in view.pools for server in pool.servers)
