"""Load of WebSockets: echoes, one frame to many, and tunnels that do nothing."""

from __future__ import annotations

import socket
import ssl
import time
from _socket import socket as RawSocket
from time import perf_counter
from typing import Final

from tests.bench import wire
from tests.bench.engine import PATIENCE, RECORD, Client, Engine, receiver, sender
from tests.bench.openings import Entering, Upgrades

_REST: Final = 0.02  # seconds between two bursts
_AT_A_TIME: Final = 64  # WebSockets that are being opened
_CHUNK: Final = 65_536


class Echo(Client):
    """A WebSocket on which one message is sent after the other, each when the last has come back."""

    __slots__ = ("chunk", "got", "message", "messages", "number", "receive", "send", "unsent")

    def __init__(
        self, engine: Engine, connection: RawSocket, messages: list[wire.Message], number: int
    ) -> None:
        super().__init__(engine)
        self.receive = receiver(connection)
        self.send = sender(connection)
        self.messages = messages
        self.number = number % len(messages)
        self.message = messages[self.number]  # of which the echo is awaited
        size = len(self.message.echo) + 1  # one more, so that a byte too many is noticed
        self.chunk = min(_CHUNK, max(size, RECORD) if engine.tls else size)
        self.got = 0
        self.unsent: bytes | memoryview = b""
        self.use(connection)

    def begin(self, started: float) -> None:
        """Sends the next message."""
        self.started = started
        self.engine.busy += 1
        self._next()

    def _next(self) -> None:
        self.number = (self.number + 1) % len(self.messages)
        self.message = self.messages[self.number]
        data = self.message.data
        try:
            sent = self.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        if sent != len(data):
            self.unsent = memoryview(data)[sent:]
            self.await_room(wanted=True)

    def _go_on(self) -> None:
        """There may be room for the rest of a message."""
        try:
            sent = self.send(self.unsent)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        self.unsent = self.unsent[sent:]
        if not self.unsent:
            self.await_room(wanted=False)

    def ready(self) -> None:
        """Part of an echo has come, or there is room again for the rest of a message."""
        if self.unsent:
            self._go_on()
        engine = self.engine
        data = self.receive(self.chunk)
        if data != self.message.echo and not self._completed_by(data):
            return
        now = perf_counter()
        engine.latencies.append(now - self.started)
        if engine.ending:
            engine.busy -= 1
            return
        self.started = now
        self._next()

    def _completed_by(self, data: bytes) -> bool:
        """Whether `data` is the rest of the echo. Raises `ConnectionError` where it isn't part of it."""
        echo = self.message.echo
        if not data or not echo.startswith(data, self.got):
            raise ConnectionError(f"{len(data)} wrong bytes" if data else "closed")
        self.got += len(data)
        if self.got < len(echo):
            return False
        self.got = 0
        return True


class Tunnels(Engine):
    """Echoes on every tunnel in a closed loop."""

    def prepare(self) -> None:
        """Opens the tunnels and lets each echo one message, so that all of them are in use."""
        options = self.options
        messages = wire.messages(options.size, 8 if options.size > 4096 else 64)
        self.tunnels: list[Echo] = []
        numbers = iter(range(options.first, options.first + options.connections))
        requests = Upgrades()

        def enter(connection: RawSocket) -> None:
            self.tunnels.append(Echo(self, connection, messages, len(self.tunnels)))

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
        frame = wire.frame_head(self.options.size, masked=False) + b"f" * self.options.size
        self.message = wire.Message(b"", frame)
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
            tunnel.message = self.message
        self.busy = len(self.tunnels)
        self.ending = True  # a frame is not answered
        self.trigger.sendall(b"GET /fan/%d HTTP/1.1\r\nHost: bench\r\n\r\n" % self.options.size)
        self.settle()
        took = perf_counter() - began
        self.trigger.recv(65_536)
        return took
