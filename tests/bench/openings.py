"""Load of connections: one for each request, or for each WebSocket handshake."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

from tests.bench import wire
from tests.bench.engine import END, OK, Client, Engine
from tests.harness.websocket import accept_token, handshake_bytes

_BIND_ADDRESS_NO_PORT: Final = 24  # <linux/in.h>; Python has no name for it
_PER_ADDRESS: Final = 10_000  # connections from one source address, which has 28,000 ports at the most
_TYPE: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
# What is awaited.
_CONNECTED: Final = 0
_SECURED: Final = 1
_ANSWERED: Final = 2


class Opening(Client):
    """A connection for one operation: connect, TLS if asked for, ask, read the answer to its end."""

    __slots__ = ("head", "make", "source", "state", "tail")

    def __init__(self, engine: Engine, make: wire.Requests) -> None:
        super().__init__(engine)
        self.make = make
        self.source = ""  # address to connect from
        self.state = _CONNECTED
        self.head = b""
        self.tail = b""
        self.open()

    def open(self) -> None:
        """Begins to connect."""
        engine = self.engine
        engine.busy += 1
        self.started = perf_counter()
        self.head = b""
        self.state = _CONNECTED
        self.socket = connection = RawSocket(socket.AF_INET, _TYPE)
        if self.source:
            # Without this option bind(2) would take the port from all other addresses, too (ip(7)).
            connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            connection.bind((self.source, 0))
        error = connection.connect_ex(("127.0.0.1", engine.options.port))
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
        self.fd = connection.fileno()
        engine.clients[self.fd] = self
        engine.poll.register(self.fd, select.EPOLLOUT)

    def ready(self) -> None:
        """What was awaited has come, or some of it."""
        if self.state == _ANSWERED:
            self.receive()
        elif self.state == _CONNECTED:
            self.connected()
        else:
            self.secure()

    def connected(self) -> None:
        """The connection stands, or was refused."""
        connection, engine = self.socket, self.engine
        assert connection is not None
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise ConnectionError(error, "connect failed")
        engine.poll.modify(self.fd, select.EPOLLIN)
        if engine.tls is None:
            self.ask()
            return
        self.socket = engine.wrap(connection, handshake=False)
        self.state = _SECURED
        self.secure()

    def secure(self) -> None:
        """TLS goes on."""
        assert isinstance(self.socket, ssl.SSLSocket)
        self.socket.do_handshake()
        self.ask()

    def ask(self) -> None:
        """The connection can be used."""
        assert self.socket is not None
        self.state = _ANSWERED
        request = self.make.following()
        self.tail = request.tail
        self.socket.send(request.data)

    def receive(self) -> None:
        """Part of the answer has come, or its end."""
        assert self.socket is not None
        data = self.socket.recv(65_536)
        self.head += data
        if data:
            return
        if not self.head.startswith(OK) or not self.head.endswith(self.tail):
            raise ConnectionError(f"not the answer: {self.head[:60]!r}")
        if len(self.head) - self.head.find(END) != wire.TAIL + 4:
            raise ConnectionError(f"not the answer: {self.head[:60]!r}")
        self.complete()

    def complete(self) -> None:
        """The answer is there and right."""
        self.engine.done(self.started)
        self.close()
        if not self.engine.ending:
            self.open()


class Upgrading(Opening):
    """A WebSocket's handshake instead of a request; closed as soon as it stands."""

    __slots__ = ()

    def receive(self) -> None:
        """Part of the answer has come."""
        assert self.socket is not None
        data = self.socket.recv(4096)
        head = self.head = self.head + data
        if head.startswith(b"HTTP/1.1 101 ") and head.endswith(END) and self.tail in head:
            self.complete()
        elif not data or END in head or len(head) > 65_536:
            raise ConnectionError(f"the handshake was refused: {head[:60]!r}")


class Entering(Upgrading):
    """A WebSocket that is handed on as soon as it stands; then the next one is opened."""

    __slots__ = ("enter", "numbers")

    def __init__(
        self,
        engine: Engine,
        make: wire.Requests,
        numbers: Iterator[int],
        enter: Callable[[RawSocket], None],
    ) -> None:
        self.numbers = numbers
        self.enter = enter
        super().__init__(engine, make)

    def open(self) -> None:
        """Begins to connect, from an address that has ports left."""
        number = next(self.numbers, None)
        if number is not None:
            self.source = f"127.0.1.{number // _PER_ADDRESS}" if number >= _PER_ADDRESS else ""
            super().open()

    def complete(self) -> None:
        """The WebSocket stands."""
        self.engine.done(self.started)
        assert self.socket is not None
        self.engine.poll.unregister(self.fd)
        self.enter(self.socket)
        self.open()


class Connecting(Engine):
    """So many connections at a time, for a request each."""

    def start(self) -> None:
        """The first connections."""
        make = wire.Gets("small", close=True)
        for _ in range(self.options.connections):
            Opening(self, make)


class Handshakes(Engine):
    """So many connections at a time, each to become a WebSocket."""

    def start(self) -> None:
        """The first connections."""
        make = Upgrades()
        for _ in range(self.options.connections):
            Upgrading(self, make)


class Upgrades(wire.Requests):
    """Handshakes, whose keys are 512 in turn."""

    __slots__ = ("_number", "_prepared")

    def __init__(self) -> None:
        made = [handshake_bytes(f"/ws/room-{number:06d}", host="shop.example.com") for number in range(512)]
        self._prepared = [wire.Request(data, accept_token(key).encode()) for data, key in made]
        self._number = 0

    def following(self) -> wire.Request:
        """The next one."""
        self._number = (self._number + 1) % len(self._prepared)
        return self._prepared[self._number]
