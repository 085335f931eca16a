"""The control process's listening sockets: bound before anything is forked, and kept, so that whoever
connects while the control process is replaced waits a moment and is served."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from lb.master import sockets
from lb.master.failures import BindError

BACKLOG: Final = 128


class Service(NamedTuple):
    """One listening socket; `address` is "unix:/path" or "host:port"."""

    address: str
    socket: socket.socket
    identity: tuple[int, int]  # of the socket's file

    def close(self) -> None:
        """Stops listening and removes the file."""
        self.socket.close()
        path = sockets.parse(self.address).path
        if path is not None:
            sockets.unlink_if_ours(path, self.identity)


class Services(NamedTuple):
    """What the control process serves; `None` is off."""

    metrics: Service | None
    admin: Service | None

    def close(self) -> None:
        """Closes both."""
        for service in self:
            if service is not None:
                service.close()


def open_services(metrics: str | None, admin: str | None) -> Services:
    """Listens on both addresses. Raises `StartError`; nothing is left bound then."""
    first = None if metrics is None else _listen("metrics.listen", metrics, 0o666)
    try:
        second = None if admin is None else _listen("admin.listen", admin, 0o600)
    except BindError:
        if first is not None:
            first.close()
        raise
    return Services(first, second)


def _listen(key: str, address: str, mode: int) -> Service:
    try:
        bound, identity = sockets.listen_alone(sockets.parse(address), BACKLOG, mode)
    except BindError as error:
        raise BindError(f"{key}: {error}") from error
    return Service(address, bound, identity)
