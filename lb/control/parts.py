"""The parts of the control process, made when the first configuration is known."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from lb.admin.app import admin_app
from lb.control.control import Control, LastCheck
from lb.control.discovery import Discoverer
from lb.control.ejection import Ejections
from lb.control.health import HealthChecks
from lb.control.site import Site
from lb.metrics import metrics_app


class Part(Protocol):
    """One that follows the configuration."""

    def adopt(self) -> None:
        """Another configuration is served."""

    async def close(self) -> None:
        """Ends its work."""


class Parts:
    """Health checks, ejections, discovery, and what is served. A fault in one does not stop the others."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._checks = HealthChecks(control)
        self._ejections = Ejections(control)
        self._discoverer = Discoverer(control)
        self._sites: list[Site] = []

    @property
    def _all(self) -> tuple[Part, ...]:
        return self._checks, self._ejections, self._discoverer

    async def serve(self, metrics: socket.socket | None, admin: socket.socket | None) -> None:
        """Begins to work, and to serve on the sockets that there are."""
        self.adopt()
        for make, listening in ((metrics_app, metrics), (admin_app, admin)):
            if listening is not None:
                site = Site(make(self._control), listening, self._control.log)
                self._sites.append(site)
                await site.start()

    def adopt(self) -> None:
        """Another configuration is served."""
        for part in self._all:
            self._call(part.adopt)

    def look(self) -> None:
        """A worker has something to tell."""
        self._ejections.look()

    def last_check(self, pool: str, server: str) -> LastCheck | None:
        """The last active check of a server."""
        return self._checks.last(pool, server)

    def check_problems(self) -> list[str]:
        """Which checks come late."""
        return self._checks.problems()

    def discovery_problems(self) -> list[str]:
        """What discovery can't find now."""
        return self._discoverer.problems()

    async def close(self) -> None:
        """Ends all of it."""
        for site in self._sites:
            await site.close()
        for part in self._all:
            await part.close()

    def _call(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:
            self._control.log.error("fault in the control process, please report it", error=repr(error))
