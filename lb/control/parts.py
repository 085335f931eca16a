"""The parts of the control process, made when the first configuration is known."""

from __future__ import annotations

import importlib
import importlib.util
import socket
from typing import Any

from aiohttp import web

from lb.control.control import Control, LastCheck
from lb.control.site import Site


def _make(module: str, name: str, control: Control) -> Any:
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ModuleNotFoundError:
        return None
    made = getattr(importlib.import_module(module), name, None)
    return None if made is None else made(control)


class Parts:
    """Health checks, ejections, discovery, and what is served."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._checks = _make("lb.control.health", "HealthChecks", control)
        self._ejections = _make("lb.control.ejection", "Ejections", control)
        self._discoverer = _make("lb.control.discovery", "Discoverer", control)
        self._sites: list[Site] = []

    async def serve(self, metrics: socket.socket | None, admin: socket.socket | None) -> None:
        """Begins to work and to serve."""
        self.adopt()
        for listening, module, name in (
            (metrics, "lb.metrics", "metrics_app"),
            (admin, "lb.admin.app", "admin_app"),
        ):
            if listening is not None:
                app = _make(module, name, self._control) or _stand_in()
                site = Site(app, listening)
                self._sites.append(site)
                await site.start()

    def adopt(self) -> None:
        """Another configuration is served."""
        for part in (self._checks, self._ejections, self._discoverer):
            if part is not None:
                part.adopt()

    def look(self) -> None:
        """A worker has something to tell."""
        if self._ejections is not None:
            self._ejections.look()

    def last_check(self, pool: str, server: str) -> LastCheck | None:
        """The last active check of a server."""
        if self._checks is None:
            return None
        check: LastCheck | None = self._checks.last(pool, server)
        return check

    async def close(self) -> None:
        """Ends all of it."""
        for site in self._sites:
            await site.close()
        for part in (self._checks, self._ejections, self._discoverer):
            if part is not None:
                await part.close()


def _stand_in() -> web.Application:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app
