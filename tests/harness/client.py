"""A raw HTTP/1.1 client: sends any bytes, and reads responses strictly enough to notice a bad one."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

Address = tuple[str, int] | str

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e\x80-\xff \t]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(;[^\r\n]*)?\r\n")
_NO_BODY = frozenset((204, 304))


class ProtocolError(AssertionError):
    """The peer sent what RFC 9112 does not allow, or ended in the middle of a message."""


@dataclass
class Head:
    """A parsed message head: the first line and the fields in their order and spelling."""

    raw: bytes
    first_line: bytes
    fields: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """The values of every field called `name`."""
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of the only field called `name`; raises `ProtocolError` where it is repeated."""
        values = self.all(name)
        if len(values) > 1:
            raise ProtocolError(f"{name} is repeated: {values}")
        return values[0] if values else None


@dataclass
class Response:
    """One final response, with the interim (1xx) heads that came before it."""

    status: int
    head: Head
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[Head] = field(default_factory=list)
    close_delimited: bool = False

    def header(self, name: str) -> str | None:
        """The value of the only field called `name`."""
        return self.head.get(name)

    @property
    def text(self) -> str:
        """The body as Latin-1 text."""
        return self.body.decode("latin-1")


def parse_head(raw: bytes) -> Head:
    """Parses a head that ends in an empty line. Raises `ProtocolError`."""
    first, *lines = raw[:-4].split(b"\r\n")
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise ProtocolError(f"bad field line {line!r} in {raw!r}")
        fields.append((match[1].decode("latin-1"), match[2].decode("latin-1")))
    return Head(raw, first, fields)


class RawClient:
    """One client connection. Every blocking call ends after `timeout` seconds with `TimeoutError`."""

    def __init__(
        self,
        address: Address,
        *,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else _family(address[0])
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.settimeout(timeout)
        self.socket: socket.socket = plain
        self.buffer = bytearray()
        try:
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            plain.connect(address)
            if family != socket.AF_UNIX:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self.socket = tls.wrap_socket(plain, server_hostname=server_name)
        except BaseException:
            plain.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        self.socket.sendall(data)

    def close(self) -> None:
        """Closes in order (FIN)."""
        self.socket.close()

    def reset(self) -> None:
        """Closes with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """Says that nothing more will be sent; reading goes on."""
        self.socket.shutdown(socket.SHUT_WR)

    def request(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        host: str = "test.example",
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Sends one well-formed request and reads the response."""
        self.send(request_bytes(target, method=method, host=host, headers=headers, body=body))
        return self.read_response(method)

    def read_response(self, method: str = "GET") -> Response:
        """Reads interim heads and one final response. Raises `ProtocolError`, `TimeoutError`."""
        interim: list[Head] = []
        while True:
            head = self.read_head()
            status = status_of(head)
            if status >= 200 or status == 101:
                break
            interim.append(head)
        response = Response(status, head, interim=interim)
        if method != "HEAD" and status not in _NO_BODY and status != 101:
            self._read_body(response)
        return response

    def read_head(self) -> Head:
        """Reads up to and with the empty line."""
        return parse_head(self.read_until(b"\r\n\r\n"))

    def _read_body(self, response: Response) -> None:
        coding = response.header("transfer-encoding")
        length = response.header("content-length")
        if coding is not None:
            if length is not None or coding.lower() != "chunked":
                raise ProtocolError(f"ambiguous framing: {response.head.raw!r}")
            self._read_chunks(response)
        elif length is not None:
            if not length.isascii() or not length.isdigit():
                raise ProtocolError(f"bad Content-Length {length!r}")
            response.body = self.read_exactly(int(length))
        else:
            response.close_delimited = True
            response.body = self.read_to_end()

    def _read_chunks(self, response: Response) -> None:
        body = bytearray()
        while True:
            line = self.read_until(b"\r\n")
            match = _CHUNK.fullmatch(line)
            if match is None:
                raise ProtocolError(f"bad chunk line {line!r}")
            size = int(match[1], 16)
            if size == 0:
                break
            body += self.read_exactly(size)
            if self.read_exactly(2) != b"\r\n":
                raise ProtocolError("a chunk does not end in CRLF")
        response.body = bytes(body)
        while (line := self.read_until(b"\r\n")) != b"\r\n":
            response.trailers += parse_head(b"\r\n" + line + b"\r\n").fields

    def read_until(self, marker: bytes) -> bytes:
        """Reads up to and with `marker`."""
        start = 0
        while (found := self.buffer.find(marker, start)) < 0:
            start = max(0, len(self.buffer) - len(marker))
            self._fill(f"before {marker!r}")
        return self._take(found + len(marker))

    def read_exactly(self, count: int) -> bytes:
        """Reads `count` bytes."""
        while len(self.buffer) < count:
            self._fill(f"{len(self.buffer)} of {count} bytes")
        return self._take(count)

    def read_to_end(self) -> bytes:
        """Everything up to a clean end; a RST raises `ConnectionResetError`."""
        while data := self.socket.recv(65536):
            self.buffer += data
        return self._take(len(self.buffer))

    def read_until_closed(self) -> bytes:
        """Everything up to the end, however that comes (FIN or RST)."""
        try:
            return self.read_to_end()
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            return self._take(len(self.buffer))

    def _fill(self, where: str) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ProtocolError(f"the connection ended {where}: {bytes(self.buffer)[:500]!r}")
        self.buffer += data

    def _take(self, count: int) -> bytes:
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data


def status_of(head: Head) -> int:
    """The status code of a response head. Raises `ProtocolError`."""
    match = _STATUS_LINE.fullmatch(head.first_line)
    if match is None:
        raise ProtocolError(f"bad status line {head.first_line!r}")
    return int(match[2])


def request_bytes(
    target: str = "/",
    *,
    method: str = "GET",
    host: str = "test.example",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """A well-formed request; a body gets a Content-Length unless `headers` frame it."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    framed = any(name.lower() in ("content-length", "transfer-encoding") for name in headers or {})
    if body is not None and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")


@contextlib.contextmanager
def open_clients(address: Address, number: int, timeout: float = 30.0) -> Iterator[list[RawClient]]:
    """`number` connections, closed at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawClient(address, timeout=timeout)) for _ in range(number)]


def fetch(
    address: Address,
    target: str = "/",
    *,
    method: str = "GET",
    host: str = "test.example",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 30.0,
) -> Response:
    """One request on a connection of its own."""
    with RawClient(address, timeout=timeout) as client:
        return client.request(target, method=method, host=host, headers=headers, body=body)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
