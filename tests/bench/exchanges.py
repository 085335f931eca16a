"""Load of HTTP requests: one after the other on kept connections, and at a fixed rate."""

from __future__ import annotations

import re
import select
import ssl
from collections import deque
from time import perf_counter
from typing import Final

from tests.bench import wire
from tests.bench.engine import END, OK, RECORD, Client, Engine, receiver, sender

_MUCH: Final = 65_536  # bytes of a body
_LITTLE: Final = 4096  # that a small answer has at most, with its head
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


class Exchange(Client):
    """A connection on which one request follows the other."""

    __slots__ = (
        "chunk",
        "left",
        "make",
        "piece",
        "receive",
        "send",
        "size",
        "tail",
        "unsent",
    )

    def __init__(self, engine: Engine, make: wire.Requests) -> None:
        super().__init__(engine)
        self.make = make
        self.size = wire.SIZES[engine.options.kind]
        small = self.size < _LITTLE // 2
        self.chunk = (RECORD if engine.tls else _LITTLE) if small else _MUCH
        self.piece = b""  # of a head, or the last bytes of a body
        self.left = -1  # bytes of the body that are still to come; -1: the head is not complete
        self.unsent = b""
        self.tail = b""
        self.open()

    def open(self) -> None:
        """Connects, which blocks. Raises `OSError`."""
        connection = self.engine.connect()
        self.receive = receiver(connection)
        self.send = sender(connection)
        self.use(connection)

    def begin(self, started: float) -> None:
        """Sends a request that was due at `started`."""
        request = self.make.following()
        self.tail = request.tail
        self.started = started
        self.engine.busy += 1
        self._write(request.data)

    def _write(self, data: bytes) -> None:
        try:
            sent = self.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        if sent != len(data):
            self.unsent = data[sent:]
            self.await_room(wanted=True)
        elif self.unsent:
            self.unsent = b""
            self.await_room(wanted=False)

    def ready(self) -> None:
        """Part of an answer has come, or there is room again for the rest of a request."""
        if self.unsent:
            self._write(self.unsent)
        if self.left > _MUCH:
            self._skip()
            return
        data = self.receive(self.chunk)
        if self.left < 0:
            whole = len(data) - data.find(END) == self.size + 4
            if whole and data.startswith(OK) and data.endswith(self.tail):
                self.complete()
                return
            data = self._head(self.piece + data, ended=not data)
            if self.left < 0:
                return
        self._body(data)

    def _skip(self) -> None:
        """Takes much of a body without an object for it; its end is looked at."""
        assert self.socket is not None
        scratch = self.engine.scratch
        got = self.socket.recv_into(scratch, min(len(scratch), self.left - _MUCH // 2))
        if not got:
            raise ConnectionError("closed in the middle of an answer")
        self.left -= got

    def _head(self, data: bytes, *, ended: bool) -> bytes:
        head, end, body = data.partition(END)
        if not end:
            if ended:
                raise ConnectionError("closed before the answer")
            self.piece = data
            return b""
        length = _LENGTH.search(head + b"\r\n")
        if not head.startswith(OK) or length is None or int(length[1]) != self.size:
            raise ConnectionError(f"not the answer: {head[:60]!r}")
        self.left = self.size
        self.piece = b""
        return body

    def _body(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("closed in the middle of an answer")
        self.left -= len(data)
        self.piece = (self.piece + data)[-wire.TAIL :] if len(data) < wire.TAIL else data[-wire.TAIL :]
        if self.left > 0:
            return
        if self.left < 0 or self.piece != self.tail:
            raise ConnectionError("the answer is not to this request")
        self.left = -1
        self.piece = b""
        self.complete()

    def complete(self) -> None:
        """The answer is there and right."""
        now = self.engine.done(self.started)
        if not self.engine.ending:
            self.begin(now)


class Paced(Exchange):
    """An exchange that waits for its turn."""

    __slots__ = ("idle",)

    def __init__(self, engine: Engine, make: wire.Requests, idle: deque[Paced]) -> None:
        self.idle = idle
        super().__init__(engine, make)

    def complete(self) -> None:
        """The answer is there and right."""
        self.engine.done(self.started)
        self.idle.append(self)


class ClosedLoop(Engine):
    """Each connection has one request under way at any time."""

    def prepare(self) -> None:
        """Connects."""
        make = wire.Gets(self.options.kind, routes=self.options.routes)
        self.exchanges = [Exchange(self, make) for _ in range(self.options.connections)]

    def start(self) -> None:
        """The first request on every connection."""
        for exchange in self.exchanges:
            exchange.begin(perf_counter())


class OpenLoop(Engine):
    """Requests at a fixed rate, whatever becomes of them; latency counts from when each was due."""

    def prepare(self) -> None:
        """Connects."""
        make = wire.Gets(self.options.kind, routes=self.options.routes)
        self.idle: deque[Paced] = deque()
        for _ in range(self.options.connections):
            self.idle.append(Paced(self, make, self.idle))

    def lost(self, client: Client, error: OSError) -> None:
        """A connection broke: another one takes its place. One that was idle owed nothing."""
        assert isinstance(client, Paced)
        if client in self.idle:
            self.idle.remove(client)
        else:
            self.failed(f"{type(error).__name__}: {error}")
        client.close()
        client.left, client.piece, client.unsent = -1, b"", b""
        client.open()
        self.idle.append(client)

    def run(self, seconds: float) -> float:
        """As for any engine."""
        rate = self.options.rate
        began = due = perf_counter()
        end = began + seconds
        sent, wanted = 0, round(rate * seconds)
        while sent < wanted:
            now = perf_counter()
            while due <= now and self.idle and sent < wanted:
                self._begin(due)
                sent += 1
                due = began + sent / rate
            # select(2) waits to the microsecond, epoll(7) in Python to the millisecond.
            select.select([self.poll], [], [], max(0.0, due - perf_counter()) if self.idle else 0.05)
            self.turn(0)
            if perf_counter() > end + 10:
                self.errors["requests were due that no connection was free for"] += 1
                break
        super().run(0)
        return perf_counter() - began

    def _begin(self, due: float) -> None:
        exchange = self.idle.popleft()
        try:
            exchange.begin(due)
        except OSError as error:
            self.lost(exchange, error)
