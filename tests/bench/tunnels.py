"""Load of WebSockets: echoes, one frame to many, and tunnels that do nothing."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator
from time import perf_counter

from tests.bench import wire
from tests.bench.engine import PATIENCE, Engine
from tests.bench.openings import Entering, handshakes

_REST = 0.02  # seconds between two bursts
_AT_A_TIME = 64  # WebSockets that are being opened


class Echo:
    """A WebSocket on which one message is sent after the other, each when the last has come back."""

    __slots__ = (
        "echo",
        "engine",
        "following",
        "got",
        "note",
        "receive",
        "send",
        "socket",
        "started",
        "unsent",
    )

    def __init__(self, engine: Engine, connection: socket.socket, messages: Iterator[wire.Message]) -> None:
        self.engine = engine
        self.socket = connection
        self.receive = connection.recv
        self.send = connection.send
        self.following = messages.__next__
        self.note = engine.latencies.append
        self.got = 0
        self.unsent: bytes | memoryview = b""
        self.started = 0.0
        self.echo = b""
        engine.watch(connection, self.readable)

    def begin(self, started: float) -> None:
        """Sends the next message."""
        data, self.echo = self.following()
        self.started = started
        self.engine.busy += 1
        self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            sent = self.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        if sent != len(data):
            self.unsent = memoryview(data)[sent:]
            self.engine.poll.modify(self.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        elif self.unsent:
            self.unsent = b""
            self.engine.poll.modify(self.socket.fileno(), select.EPOLLIN)

    def readable(self) -> None:
        """Part of an echo has come, or there is room again for the rest of a message."""
        if self.unsent:
            self._write(self.unsent)
        data = self.receive(65_536)
        if data != self.echo:
            if not data or not self.echo.startswith(data, self.got):
                raise ConnectionError(f"{len(data)} wrong bytes" if data else "closed")
            self.got += len(data)
            if self.got < len(self.echo):
                return
            self.got = 0
        now = perf_counter()
        self.note(now - self.started)
        if self.engine.ending:
            self.engine.busy -= 1
            return
        self.started = now
        data, self.echo = self.following()
        self._write(data)


class Tunnels(Engine):
    """Echoes on every tunnel in a closed loop."""

    def prepare(self) -> None:
        """Opens the tunnels and lets each echo one message, so that all of them are in use."""
        options = self.options
        messages = wire.messages(options.size, 8 if options.size > 4096 else 64)
        self.tunnels: list[Echo] = []
        numbers = iter(range(options.first, options.first + options.connections))
        requests = handshakes()

        def enter(connection: socket.socket) -> None:
            self.tunnels.append(Echo(self, connection, messages))

        for _ in range(min(_AT_A_TIME, options.connections)):
            Entering(self, requests, numbers, enter)
        self.settle()
        if len(self.tunnels) < options.connections:
            self.errors["a WebSocket did not come to stand"] += options.connections - len(self.tunnels)
        if not self.errors:  # one message each, all at a time, so that each is in use
            self.ending = True
            self.start_all()
            self.settle()
        if self.errors:
            raise ConnectionError(f"the WebSockets can't be opened: {dict(self.errors.most_common(3))}")

    def start(self) -> None:
        """The first message on every tunnel."""
        self.start_all()

    def start_all(self) -> None:
        """A message on every tunnel."""
        for tunnel in self.tunnels:
            tunnel.begin(perf_counter())


class Fan(Tunnels):
    """One frame to every tunnel, again and again, with a rest between."""

    def start(self) -> None:
        """Connects to the server itself, which is told when to send."""
        self.trigger = socket.create_connection(("127.0.0.1", self.options.server_port), PATIENCE)
        self.frame = wire.frame_head(self.options.size, masked=False) + b"f" * self.options.size
        self.bursts: list[float] = []

    def run(self, seconds: float) -> float:
        """Bursts for `seconds`."""
        began = perf_counter()
        while perf_counter() < began + seconds and not self.errors:
            self.bursts.append(self._burst())
            time.sleep(_REST)
        self.trigger.close()
        return perf_counter() - began

    def _burst(self) -> float:
        began = perf_counter()
        for tunnel in self.tunnels:
            tunnel.started = began
            tunnel.echo = self.frame
        self.busy = len(self.tunnels)
        self.ending = True  # a frame is not answered
        self.trigger.sendall(b"GET /fan/%d HTTP/1.1\r\nHost: bench\r\n\r\n" % self.options.size)
        self.settle()
        took = perf_counter() - began
        self.trigger.recv(65_536)
        return took
