"""Where a server is: an address as it stands, or a name that is resolved without blocking the loop.

A name is looked up in the loop's thread pool (getaddrinfo, so /etc/hosts and nsswitch apply) when it is
first needed and again every `REFRESH` seconds while it is in use. A failing resolver keeps the last answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from workers.contract.snapshot import ServerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.io.worker import Worker

REFRESH: Final = 30.0  # seconds
RETRY: Final = 1.0  # seconds between attempts while there is no answer at all


class Address(NamedTuple):
    """A socket family and what `connect` takes in it."""

    family: int
    sockaddr: Any


class Addresses:
    """The addresses of one server. `current()` gives one, turning through all that a name has."""

    __slots__ = ("_found", "_next_lookup", "_spec", "_task", "_turn", "_waiting", "_worker", "error")

    def __init__(self, worker: Worker, spec: ServerSpec) -> None:
        self._worker = worker
        self._spec = spec
        self._found: list[Address] = []
        self._turn = 0
        self._next_lookup = 0.0
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[Callable[[], None]] = []
        self.error = ""
        if spec.path is not None:
            self._found = [Address(socket.AF_UNIX, spec.path)]
            self._next_lookup = float("inf")
        elif spec.host is not None:
            self._found = literal(spec.host, spec.port)
            if self._found:
                self._next_lookup = float("inf")

    def current(self) -> Address | None:
        """The address to connect to next, or `None` while there is none (see `wait`)."""
        found = self._found
        if self._worker.now >= self._next_lookup:
            self._look_up()
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        self._turn += 1
        return found[self._turn % len(found)]

    def wait(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once the running look-up has ended, whatever came of it."""
        if self._task is None:
            self._look_up()
        self._waiting.append(callback)

    def _look_up(self) -> None:
        if self._task is None:
            self._task = self._worker.start_task(self._resolve())

    async def _resolve(self) -> None:
        try:
            answers = await self._worker.loop.getaddrinfo(
                self._spec.host or "", self._spec.port, type=socket.SOCK_STREAM
            )
            self._found = [Address(family, sockaddr) for family, _, _, _, sockaddr in answers]
            self.error = ""
            self._next_lookup = self._worker.now + REFRESH
        except OSError as error:
            self.error = str(error)
            self._next_lookup = self._worker.now + RETRY
            self._worker.log.warning(
                "name lookup failed", server=self._spec.name, host=self._spec.host, error=error
            )
        finally:
            self._task = None
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                callback()

    def close(self) -> None:
        """Ends a running look-up."""
        if self._task is not None:
            self._task.cancel()


def literal(host: str, port: int) -> list[Address]:
    """The address of a host that is one already (IPv4 or IPv6); empty for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    if address.version == 4:
        return [Address(socket.AF_INET, (host, port))]
    return [Address(socket.AF_INET6, (host, port, 0, 0))]
