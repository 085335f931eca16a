"""The loop of a load generator: connections in closed loops, what they measured, and what went wrong."""

from __future__ import annotations

import select
import socket
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

PATIENCE: Final = 10.0  # seconds that anything may take before it is an error
OK: Final = b"HTTP/1.1 200 "
END: Final = b"\r\n\r\n"


@dataclass
class Options:
    """What a load generator is to do."""

    mode: str
    port: int
    connections: int
    seconds: float = 1.0
    tls: bool = False
    kind: str = "small"
    size: int = 64
    rate: float = 0.0
    routes: int = 1
    server_port: int = 0
    first: int = 0  # number of the first connection, of which the source address follows


class Engine:
    """Connections that are called when they are readable, their latencies and errors."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.poll = select.epoll()
        self.ready: dict[int, Callable[[], None]] = {}
        self.latencies = array("d")
        self.errors: Counter[str] = Counter()
        self.scratch = memoryview(bytearray(1 << 18))  # for bytes that nobody looks at
        self.ending = False
        self.busy = 0  # operations that have begun and not ended
        self.tls = _context() if options.tls else None

    # --- what each kind of load defines ----------------------------------------------------------

    def prepare(self) -> None:
        """Opens the connections that are there from the start; blocks. Raises `OSError`."""

    def start(self) -> None:
        """Begins the first operations."""

    def reset(self) -> None:
        """Forgets what was measured."""
        del self.latencies[:]
        self.errors.clear()
        self.ending = False

    # --- connections -----------------------------------------------------------------------------

    def connect(self) -> socket.socket:
        """A connection that stands, with TLS where asked for; it blocks. Raises `OSError`."""
        connection = socket.socket()
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", self.options.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection if self.tls is None else self.wrap(connection, handshake=True)

    def wrap(self, connection: socket.socket, *, handshake: bool) -> ssl.SSLSocket:
        """TLS on a connection."""
        assert self.tls is not None
        return self.tls.wrap_socket(
            connection, server_hostname="shop.example.com", do_handshake_on_connect=handshake
        )

    def watch(
        self, connection: socket.socket, callback: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        """Calls `callback` from now on, at `events` on a connection that was not watched."""
        connection.setblocking(False)
        self.ready[connection.fileno()] = callback
        self.poll.register(connection.fileno(), events)

    def forget(self, connection: socket.socket) -> None:
        """Closes a connection."""
        self.ready.pop(connection.fileno(), None)
        connection.close()

    # --- what happened ---------------------------------------------------------------------------

    def done(self, started: float) -> float:
        """An operation has ended well; returns now."""
        now = time.perf_counter()
        self.latencies.append(now - started)
        self.busy -= 1
        return now

    def failed(self, what: str) -> None:
        """An operation has ended badly."""
        self.errors[what] += 1
        self.busy -= 1

    # --- the loop --------------------------------------------------------------------------------

    def turn(self, timeout: float) -> None:
        """Waits for events once, and calls back."""
        get = self.ready.get
        for fd, _ in self.poll.poll(timeout, 512):
            callback = get(fd)
            if callback is None:
                continue
            try:
                callback()
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except OSError as error:
                self.lost(fd, error)

    def lost(self, fd: int, error: OSError) -> None:
        """A connection broke."""
        owner: Any = getattr(self.ready.get(fd), "__self__", None)
        self.failed(f"{type(error).__name__}: {error}")
        if owner is not None:
            self.forget(owner.socket)

    def run(self, seconds: float) -> float:
        """Turns for `seconds`, then until all that had begun has ended; returns how long that took."""
        began = time.perf_counter()
        deadline = began + seconds
        while time.perf_counter() < deadline and self.ready:
            self.turn(min(0.05, seconds))
        self.ending = True
        self.settle()
        return time.perf_counter() - began

    def settle(self) -> None:
        """Turns until all that has begun has ended, or nothing has for too long."""
        deadline, ended = time.perf_counter() + PATIENCE, len(self.latencies)
        while self.busy > 0 and self.ready:
            self.turn(0.05)
            if len(self.latencies) > ended:
                deadline, ended = time.perf_counter() + PATIENCE, len(self.latencies)
            elif time.perf_counter() > deadline:
                break
        if self.busy > 0:
            self.errors[f"no answer within {PATIENCE:.0f} s"] += self.busy
            self.busy = 0


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def percentile(ordered: array[float], share: float) -> float:
    """The value below which `share` of the `ordered` values lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(engine: Engine, seconds: float) -> dict[str, Any]:
    """What an engine measured, in milliseconds."""
    ordered = array("d", sorted(engine.latencies))
    found: dict[str, Any] = {
        "operations": len(ordered),
        "seconds": seconds,
        "errors": dict(engine.errors.most_common(5)),
        "failed": sum(engine.errors.values()),
    }
    if ordered:
        found["p50_ms"] = 1000 * percentile(ordered, 0.50)
        found["p99_ms"] = 1000 * percentile(ordered, 0.99)
        found["max_ms"] = 1000 * ordered[-1]
    return found
