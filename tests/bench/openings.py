"""Load of connections: one for each request, or for each WebSocket handshake."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator

from tests.bench import wire
from tests.bench.engine import END, OK, Engine
from tests.harness.websocket import accept_token, handshake_bytes

_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; Python has no name for it
_PER_ADDRESS = 10_000  # connections from one source address, which has 28,000 ports at the most


class Opening:
    """A connection for one operation: connect, TLS if asked for, ask, read the answer to its end."""

    __slots__ = ("engine", "head", "make", "socket", "source", "started", "tail")

    def __init__(self, engine: Engine, make: wire.Requests) -> None:
        self.engine = engine
        self.make = make
        self.source = ""  # address to connect from
        self.open()

    def open(self) -> None:
        """Begins to connect."""
        self.engine.busy += 1
        self.started = time.perf_counter()
        self.head = b""
        self.socket = socket.socket()
        if self.source:
            # Without this option bind(2) would take the port from all other addresses, too (ip(7)).
            self.socket.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            self.socket.bind((self.source, 0))
        self.socket.setblocking(False)
        error = self.socket.connect_ex(("127.0.0.1", self.engine.options.port))
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
        self.engine.watch(self.socket, self.connected, select.EPOLLOUT)

    def connected(self) -> None:
        """The connection stands, or was refused."""
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise ConnectionError(error, "connect failed")
        fd = self.socket.fileno()
        self.engine.poll.modify(fd, select.EPOLLIN)
        if self.engine.tls is None:
            self.ask()
            return
        self.socket = self.engine.wrap(self.socket, handshake=False)
        self.engine.ready[fd] = self.handshake
        self.handshake()

    def handshake(self) -> None:
        """TLS goes on."""
        assert isinstance(self.socket, ssl.SSLSocket)
        self.socket.do_handshake()
        self.ask()

    def ask(self) -> None:
        """The connection can be used."""
        self.engine.ready[self.socket.fileno()] = self.readable
        data, self.tail = self.make()
        self.socket.send(data)

    def readable(self) -> None:
        """Part of the answer has come, or its end."""
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
        self.engine.forget(self.socket)
        if not self.engine.ending:
            self.open()


class Upgrading(Opening):
    """A WebSocket's handshake instead of a request; closed as soon as it stands."""

    __slots__ = ()

    def readable(self) -> None:
        """Part of the answer has come."""
        data = self.socket.recv(65_536)
        self.head += data
        if self.head.startswith(b"HTTP/1.1 101 ") and self.head.endswith(END) and self.tail in self.head:
            self.complete()
        elif not data or END in self.head or len(self.head) > 65_536:
            raise ConnectionError(f"the handshake was refused: {self.head[:60]!r}")


class Entering(Upgrading):
    """A WebSocket that is handed on as soon as it stands; then the next one is opened."""

    __slots__ = ("enter", "numbers")

    def __init__(
        self,
        engine: Engine,
        make: wire.Requests,
        numbers: Iterator[int],
        enter: Callable[[socket.socket], None],
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
        self.engine.poll.unregister(self.socket.fileno())
        self.enter(self.socket)
        self.open()


class Connecting(Engine):
    """So many connections at a time, for a request each."""

    opening: type[Opening] = Opening

    def start(self) -> None:
        """The first connections."""
        make = self.requests()
        for _ in range(self.options.connections):
            self.opening(self, make)

    def requests(self) -> wire.Requests:
        """What is asked on each."""
        return wire.requests("small", close=True)


class Handshakes(Connecting):
    """So many connections at a time, each to become a WebSocket."""

    opening = Upgrading

    def requests(self) -> wire.Requests:
        """What is asked on each."""
        return handshakes()


def handshakes() -> wire.Requests:
    """Makes the next handshake at each call; the keys are 512 in turn."""
    prepared = [handshake_bytes(f"/ws/room-{number:06d}", host="shop.example.com") for number in range(512)]
    requests = [wire.Request(data, accept_token(key).encode()) for data, key in prepared]
    turn = iter(range(1 << 62))
    return lambda: requests[next(turn) % len(requests)]
