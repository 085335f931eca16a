"""The command socket: JSON lines over a Unix socket, for the master's own user and root alone."""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

import msgspec

from lb.master import places, sockets
from lb.master.loop import READ, WRITE, Loop, Timer
from lb.master.report import Reply, Request

MAX_CLIENTS: Final = 16
MAX_REQUEST: Final = 4096
_READ_TIMEOUT: Final = 5.0
_SILENT_AFTER: Final = 0.5  # without a request; ours send it as they connect
_WRITE_TIMEOUT: Final = 5.0
_ACCEPT_PAUSE: Final = 1.0
_BACKLOG: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)

Respond = Callable[[Reply], None]
Serve = Callable[[Request, Respond], None]

_decoder = msgspec.json.Decoder(Request)


def open_socket(config: pathlib.Path, pid_file: pathlib.Path | None) -> tuple[pathlib.Path, socket.socket]:
    """Binds the command socket of this instance and listens on it. Raises `StartError`."""
    if pid_file is not None:
        path = places.beside_pid_file(pid_file)
    else:
        places.make_folder(places.folder())
        path = places.default()
        if path.exists() and sockets.answers(str(path)):
            path = places.second(config)
    bound, _ = sockets.bind_unix(str(path), mode=0o600)
    bound.listen(_BACKLOG)
    return path, bound


class CommandServer:
    """Serves the command socket from the master's loop. Clients are few, their requests small, and none
    can hold the master up; `serve` gets each request with the function to answer it by, at any time."""

    def __init__(
        self,
        loop: Loop,
        listening: socket.socket,
        path: pathlib.Path,
        serve: Serve,
        identity: tuple[int, int] | None = None,
    ) -> None:
        """`identity` is that of the socket's file, where that is not as fresh as the socket."""
        self._loop = loop
        self._listening = listening
        self._path = path
        self.identity = identity or _identity(path)
        self._trusted = (0, os.geteuid())
        self._serve = serve
        self._clients: set[_Client] = set()
        self.resume()

    def close(self) -> None:
        """Removes the socket and ends what is still connected: a waiting `lb stop` sees it is done."""
        self._loop.forget(self._listening.fileno())
        self._listening.close()
        sockets.unlink_if_ours(str(self._path), self.identity)
        for client in list(self._clients):
            client.close()

    def waiting(self, command: str) -> list[int] | None:
        """The connections of those who wait for the end of `command`; `None` while somebody else is being
        served. Who is silent is not: an execve closes the connection, as its timeout would."""
        clients = [client for client in self._clients if not client.silent]
        if any(client.command != command for client in clients):
            return None
        return [client.fd for client in clients]

    def adopt(self, connection: socket.socket, command: str) -> Respond:
        """Takes over somebody who has asked a predecessor of this process for `command`."""
        client = _Client(self._loop, connection, self._serve, self._clients.discard)
        self._clients.add(client)
        client.wait(command)
        return client.respond

    def pause(self) -> None:
        """Until `resume`, those who connect wait, be it for a successor of this process."""
        self._loop.forget(self._listening.fileno())

    def resume(self) -> None:
        """Serves whoever connects."""
        if self._listening.fileno() >= 0:
            self._loop.watch(self._listening.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptors: the socket would stay ready and the loop spin.
            self._loop.forget(self._listening.fileno())
            self._loop.later(_ACCEPT_PAUSE, self.resume)
            return
        if len(self._clients) >= MAX_CLIENTS or _uid(connection) not in self._trusted:
            connection.close()
            return
        self._clients.add(_Client(self._loop, connection, self._serve, self._clients.discard))


def _identity(path: pathlib.Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _uid(connection: socket.socket) -> int:
    """Who connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


class _Client:
    """One connection: a request line in, a reply line out, closed."""

    __slots__ = (
        "_asked",
        "_connection",
        "_forget",
        "_loop",
        "_pending",
        "_received",
        "_serve",
        "_since",
        "_timer",
        "command",
    )

    def __init__(
        self, loop: Loop, connection: socket.socket, serve: Serve, forget: Callable[[_Client], None]
    ) -> None:
        connection.setblocking(False)
        self._loop = loop
        self._connection: socket.socket | None = connection
        self.command = ""  # that it waits for the end of
        self._serve = serve
        self._forget = forget
        self._received = b""
        self._asked = False
        self._since = time.monotonic()
        self._pending = b""
        self._timer: Timer = loop.later(_READ_TIMEOUT, self.close)
        loop.watch(connection.fileno(), READ, self._read)

    @property
    def fd(self) -> int:
        """Its connection."""
        return -1 if self._connection is None else self._connection.fileno()

    @property
    def silent(self) -> bool:
        """Whether it has connected and doesn't say what for."""
        return not self._asked and time.monotonic() - self._since > _SILENT_AFTER

    def wait(self, command: str) -> None:
        """From here on, `respond` is all that is left to do for it."""
        assert self._connection is not None
        self._asked = True
        self.command = command
        self._timer.cancel()
        self._loop.watch(self._connection.fileno(), READ, self._wait)

    def close(self) -> None:
        """Ends the connection; a reply that comes later is dropped."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._timer.cancel()
        self._loop.forget(connection.fileno())
        connection.close()
        self._forget(self)

    def _read(self, _events: int) -> None:
        if self._connection is None:
            return
        try:
            data = self._connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > MAX_REQUEST:
            self.close()
        elif b"\n" in self._received:
            self._request(self._received.partition(b"\n")[0])

    def _request(self, line: bytes) -> None:
        if self._connection is None:
            return
        self.wait("")
        try:
            request = _decoder.decode(line)
        except msgspec.MsgspecError as error:
            self.respond(Reply(error=f"the request is malformed: {error}"))
            return
        self.command = request.command
        self._serve(request, self.respond)

    def _wait(self, _events: int) -> None:
        """The client left, or says more than it may, before it was answered."""
        self.close()

    def respond(self, reply: Reply) -> None:
        """Sends the reply and closes."""
        if self._connection is None:
            return
        self.command = ""
        self._pending = msgspec.json.encode(reply) + b"\n"
        self._timer.cancel()
        self._timer = self._loop.later(_WRITE_TIMEOUT, self.close)
        self._write(WRITE)

    def _write(self, _events: int) -> None:
        if self._connection is None:
            return
        try:
            sent = self._connection.send(self._pending)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._pending = self._pending[sent:]
        if not self._pending:
            self.close()
            return
        self._loop.watch(self._connection.fileno(), WRITE, self._write)
