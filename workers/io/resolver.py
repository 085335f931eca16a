"""Where a server is: an address as it stands, or a name that is resolved without blocking the loop.

The control process resolves names by their TTL, and a new answer comes with a new configuration. Until it
has told anything, a name is looked up in a thread (getaddrinfo, so /etc/hosts and nsswitch apply) when it is
first needed and again every `REFRESH` seconds while it is in use. A failing resolver keeps the last answer.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from workers.contract.snapshot import ServerSpec
from workers.io.sockets import packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.io.worker import Worker

REFRESH: Final = 30.0  # seconds
RETRY: Final = 1.0  # seconds between attempts while there is no answer at all


class Address(NamedTuple):
    """A socket family, and what `connect_ex` takes in it (see `packed`)."""

    family: int
    sockaddr: Any


class Addresses:
    """The addresses of one server. `current()` gives one, turning through all that a name has."""

    __slots__ = ("_found", "_next_lookup", "_running", "_spec", "_turn", "_waiting", "_worker", "error")

    def __init__(self, worker: Worker, spec: ServerSpec) -> None:
        self._worker = worker
        self._spec = spec
        self._found: list[Address] = []
        self._turn = 0
        self._next_lookup = 0.0
        self._running = False
        self._waiting: list[Callable[[], None]] = []
        self.error = ""
        if spec.path is not None:
            self._found = [_address(socket.AF_UNIX, spec.path)]
            self._next_lookup = float("inf")
        elif spec.host is not None:
            self._found = literal(spec.host, spec.port)
            for address in spec.addresses:  # the control process looks up, and again when its TTL is over
                self._found += literal(address, spec.port)
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
        self._look_up()
        self._waiting.append(callback)

    def _look_up(self) -> None:
        """Starts a look-up, unless one runs: one at a time for a server."""
        if not self._running:
            self._running = True
            answer: list[Address | OSError] = []
            self._worker.loop.in_thread(
                lambda: answer.extend(_ask(self._spec.host or "", self._spec.port)),
                lambda: self._answered(answer),
            )

    def _answered(self, answer: list[Address | OSError]) -> None:
        self._running = False
        found = [address for address in answer if isinstance(address, Address)]
        if found:
            self._found = found
            self.error = ""
            self._next_lookup = self._worker.now + REFRESH
        else:
            self.error = str(answer[0]) if answer else "no address"
            self._next_lookup = self._worker.now + RETRY
            self._worker.log.warning(
                "name lookup failed", server=self._spec.name, host=self._spec.host, error=self.error
            )
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()


def _address(family: int, sockaddr: Any) -> Address:
    return Address(family, packed(family, sockaddr))


def _ask(host: str, port: int) -> list[Address | OSError]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return [error]
    return [_address(family, sockaddr) for family, _, _, _, sockaddr in answers]


def literal(host: str, port: int) -> list[Address]:
    """The address of a host that is one already (IPv4 or IPv6); empty for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    if address.version == 4:
        return [_address(socket.AF_INET, (host, port))]
    return [_address(socket.AF_INET6, (host, port, 0, 0))]
