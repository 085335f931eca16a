"""The loop of a load generator: connections in closed loops, what they measured, and what went wrong."""

from __future__ import annotations

import select
import socket
import ssl
from _socket import socket as RawSocket
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

PATIENCE: Final = 10.0  # seconds that anything may take before it is an error
OK: Final = b"HTTP/1.1 200 "
END: Final = b"\r\n\r\n"
RECORD: Final = 16_384  # bytes of a TLS record at most (RFC 8446 section 5.1)


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


class Client:
    """One connection of a load."""

    __slots__ = ("engine", "fd", "socket", "started")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fd = -1
        self.socket: RawSocket | None = None
        self.started = 0.0  # when the operation began, or was due

    def ready(self) -> None:
        """The connection is readable, or writable where that was waited for."""
        raise NotImplementedError

    def use(self, connection: RawSocket, events: int = select.EPOLLIN) -> None:
        """Watches a connection, which is this client's from now on."""
        connection.setblocking(False)
        self.socket = connection
        self.fd = connection.fileno()
        self.engine.clients[self.fd] = self
        self.engine.poll.register(self.fd, events)

    def await_room(self, *, wanted: bool) -> None:
        """Also waits until it is writable, or no longer."""
        self.engine.poll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    def close(self) -> None:
        """Closes the connection."""
        connection, self.socket = self.socket, None
        if connection is not None:
            self.engine.clients.pop(self.fd, None)
            connection.close()


class Engine:
    """Clients that are called when they are readable, their latencies and errors."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}  # by descriptor
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

    def wrap(self, connection: RawSocket, *, handshake: bool) -> ssl.SSLSocket:
        """TLS on a connection, which is taken over."""
        assert self.tls is not None
        plain: Any = connection  # a raw socket has all that is asked of it
        return self.tls.wrap_socket(
            plain, server_hostname="shop.example.com", do_handshake_on_connect=handshake
        )

    # --- what happened ---------------------------------------------------------------------------

    def done(self, started: float) -> float:
        """An operation has ended well; returns now."""
        now = perf_counter()
        self.latencies.append(now - started)
        self.busy -= 1
        return now

    def failed(self, what: str) -> None:
        """An operation has ended badly."""
        self.errors[what] += 1
        self.busy -= 1

    # --- the loop --------------------------------------------------------------------------------

    def turn(self, timeout: float) -> None:
        """Waits for events once, and calls those that these are for."""
        clients = self.clients
        for fd, _ in self.poll.poll(timeout, 512):
            client = clients.get(fd)
            if client is None:
                continue
            try:
                client.ready()
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except OSError as error:
                self.lost(client, error)

    def lost(self, client: Client, error: OSError) -> None:
        """A connection broke."""
        self.failed(f"{type(error).__name__}: {error}")
        client.close()

    def run(self, seconds: float) -> float:
        """Turns for `seconds`, then until all that had begun has ended; returns how long that took."""
        began = perf_counter()
        deadline = began + seconds
        while perf_counter() < deadline and self.clients:
            self.turn(min(0.05, seconds))
        self.ending = True
        self.settle()
        return perf_counter() - began

    def settle(self) -> None:
        """Turns until all that has begun has ended, or nothing has for too long."""
        deadline, ended = perf_counter() + PATIENCE, len(self.latencies)
        while self.busy > 0 and self.clients:
            self.turn(0.05)
            if len(self.latencies) > ended:
                deadline, ended = perf_counter() + PATIENCE, len(self.latencies)
            elif perf_counter() > deadline:
                break
        if self.busy > 0:
            self.errors[f"no answer within {PATIENCE:.0f} s"] += self.busy
            self.busy = 0


def receiver(connection: RawSocket) -> Callable[[int], bytes]:
    """What reads from an open connection. For TLS it is OpenSSL's object itself, to which an end without
    close_notify is an `OSError`: `SSLSocket` makes three calls of each."""
    if isinstance(connection, ssl.SSLSocket):
        return connection._sslobj.read  # type: ignore[attr-defined,no-any-return]
    return connection.recv


def sender(connection: RawSocket) -> Callable[[bytes | memoryview], int]:
    """What writes to an open connection; see `receiver`."""
    if isinstance(connection, ssl.SSLSocket):
        return connection._sslobj.write  # type: ignore[attr-defined,no-any-return]
    return connection.send


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
