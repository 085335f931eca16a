"""A scriptable raw upstream server: a test says in a function what one connection does."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from tests.harness.client import Head, parse_head

Handler = Callable[["Connection"], None]


@dataclass
class Request:
    """One complete request as it arrived; `raw` is every byte of it."""

    head: Head
    body: bytes
    raw: bytes
    connection: int

    @property
    def target(self) -> str:
        """The request target."""
        return self.head.first_line.split(b" ")[1].decode("latin-1")

    @property
    def method(self) -> str:
        """The method."""
        return self.head.first_line.split(b" ")[0].decode("latin-1")


class Connection:
    """One accepted connection, handed to the handler; `number` counts from 0."""

    def __init__(self, upstream: Upstream, accepted: socket.socket, number: int) -> None:
        self.upstream = upstream
        self.socket = accepted
        self.number = number
        self.buffer = bytearray()

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        self.socket.sendall(data)

    def receive(self, limit: int = 65536) -> bytes:
        """What comes next; empty at the end."""
        if self.buffer:
            data = bytes(self.buffer[:limit])
            del self.buffer[:limit]
            return data
        return self.socket.recv(limit)

    def read_exactly(self, count: int) -> bytes:
        """Reads `count` bytes; raises `ConnectionError` when the peer closes before."""
        while len(self.buffer) < count:
            if not self._fill():
                raise ConnectionError(f"the connection ended at {len(self.buffer)} of {count} bytes")
        return self._take(count)

    def read_head(self) -> Head | None:
        """The next request head; `None` when the peer closed before the first byte of it."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if not self._fill():
                return None
        return parse_head(self._take(end + 4))

    def read_request(self) -> Request | None:
        """The next complete request, recorded in `upstream.requests`; `None` at the end.

        What can't be parsed is recorded in `upstream.malformed`, and ends the connection.
        """
        try:
            head = self.read_head()
            if head is None:
                return None
            body, raw = self._read_body(head)
        except (AssertionError, ValueError) as error:
            self.upstream.malformed.append(f"{error}: {bytes(self.buffer)!r}")
            return None
        if body is None:
            return None
        request = Request(head, body, head.raw + raw, self.number)
        with self.upstream.lock:
            self.upstream.requests.append(request)
        return request

    def _read_body(self, head: Head) -> tuple[bytes | None, bytes]:
        if head.get("transfer-encoding") is not None:
            assert head.get("content-length") is None, "Transfer-Encoding with Content-Length"
            return self._read_chunks()
        count = int(head.get("content-length") or 0)
        while len(self.buffer) < count:
            if not self._fill():
                return None, b""
        body = self._take(count)
        return body, body

    def _read_chunks(self) -> tuple[bytes | None, bytes]:
        body, raw = bytearray(), bytearray()
        while True:
            line = self._line()
            if line is None:
                return None, b""
            raw += line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            while len(self.buffer) < size + 2:
                if not self._fill():
                    return None, b""
            data = self._take(size + 2)
            assert data.endswith(b"\r\n"), "a chunk does not end in CRLF"
            raw += data
            body += data[:-2]
        while (line := self._line()) != b"\r\n":
            if line is None:
                return None, b""
            raw += line
        return bytes(body), bytes(raw + b"\r\n")

    def _line(self) -> bytes | None:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if not self._fill():
                return None
        return self._take(end + 2)

    def _fill(self) -> bool:
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def wait_closed(self) -> None:
        """Reads until the peer is gone."""
        while self.receive():
            pass

    def reset(self) -> None:
        """Closes with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Closes in order, however many threads hold the socket."""
        self.socket.close()


def reply(body: bytes = b"ok", status: str = "200 OK", headers: dict[str, str] | None = None) -> bytes:
    """A well-formed response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def answer(connection: Connection) -> None:
    """The default handler: keep-alive, each request is answered with its method, target and body."""
    while (request := connection.read_request()) is not None:
        echo = f"{connection.upstream.name} {request.method} {request.target} ".encode("latin-1")
        body = b"" if request.method == "HEAD" else echo + request.body
        connection.send(reply(body))


class Upstream:
    """Listens, and runs `handler` in a thread for each connection until it returns.

    Everything that arrived is kept: `requests` (complete ones), `malformed`, and `accepted` connections.
    """

    def __init__(
        self,
        handler: Handler = answer,
        *,
        name: str = "up",
        path: str | None = None,
        receive_buffer: int | None = None,
        port: int = 0,
    ) -> None:
        self.handler = handler
        self.name = name
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.malformed: list[str] = []
        self.accepted = 0
        self.errors: list[str] = []
        self._open: set[Connection] = set()
        self._threads: list[threading.Thread] = []
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(path or ("127.0.0.1", port))
        self._listener.listen(512)
        self._accepting = threading.Thread(target=self._accept, name=f"upstream-{name}", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The TCP port."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def address(self) -> str:
        """The address as a configuration names it."""
        return f"unix:{self.path}" if self.path else f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            if self.path is None:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                connection = Connection(self, accepted, self.accepted)
                self.accepted += 1
                self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            self.handler(connection)
        except OSError:
            pass  # the peer went away: what the handler says about that is the test's business
        except Exception as error:  # a bug in a test's handler must not pass for an upstream failure
            self.errors.append(repr(error))
        finally:
            with self.lock:
                self._open.discard(connection)
            connection.close()

    def open_connections(self) -> int:
        """How many connections are open (idle ones too)."""
        with self.lock:
            return len(self._open)

    def stop_listening(self) -> None:
        """New connections are refused from now on; those that are open live on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)
        self._listener.close()

    def close(self) -> None:
        """Ends everything; raises `AssertionError` when a handler failed."""
        self.stop_listening()
        with self.lock:
            connections, threads = list(self._open), list(self._threads)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        assert not self.errors, f"upstream handler failed: {self.errors}"
