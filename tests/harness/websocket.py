"""WebSocket by hand, for both ends: handshake and frames (RFC 6455), so that a test may also do it wrong."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from dataclasses import dataclass
from typing import Protocol

from tests.harness.client import Address, Head, RawClient, Response
from tests.harness.upstream import Connection, reply

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Reader(Protocol):
    """What frames are read from."""

    def read_exactly(self, count: int) -> bytes:
        """Reads `count` bytes."""


@dataclass(frozen=True)
class Frame:
    """One frame, unmasked."""

    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int | None:
        """The status code of a Close frame."""
        return int.from_bytes(self.payload[:2], "big") if self.opcode == CLOSE and self.payload else None


def accept_token(key: str) -> str:
    """Sec-WebSocket-Accept for `key` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()


def frame(payload: bytes, opcode: int = BINARY, *, masked: bool = False) -> bytes:
    """One final frame; a client's must be `masked`."""
    length = len(payload)
    bit = 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, bit | length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + _mask(payload, mask)


def close_frame(code: int, *, masked: bool = False) -> bytes:
    """A Close frame with `code`."""
    return frame(struct.pack("!H", code), CLOSE, masked=masked)


def read_frame(reader: Reader) -> Frame:
    """The next frame."""
    first, second = reader.read_exactly(2)
    length = second & 0x7F
    if length == 126:
        length = int.from_bytes(reader.read_exactly(2), "big")
    elif length == 127:
        length = int.from_bytes(reader.read_exactly(8), "big")
    mask = reader.read_exactly(4) if second & 0x80 else b""
    payload = reader.read_exactly(length)
    return Frame(first & 0x0F, _mask(payload, mask) if mask else payload)


def _mask(payload: bytes, mask: bytes) -> bytes:
    length = len(payload)
    key = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")


def handshake_bytes(
    target: str = "/", *, host: str = "test.example", headers: dict[str, str] | None = None
) -> tuple[bytes, str]:
    """A client's handshake request, and its key."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), key


def connect(
    address: Address, target: str = "/", *, headers: dict[str, str] | None = None, timeout: float = 30.0
) -> RawClient:
    """An open WebSocket on a connection of its own."""
    client = RawClient(address, timeout=timeout)
    try:
        upgrade(client, target, headers=headers)
    except BaseException:
        client.close()
        raise
    return client


def upgrade(client: RawClient, target: str = "/", *, headers: dict[str, str] | None = None) -> Response:
    """Opens a WebSocket on `client`, whose 101 must be right."""
    request, key = handshake_bytes(target, headers=headers)
    client.send(request)
    response = client.read_response()
    assert response.status == 101, response
    assert (response.header("upgrade") or "").lower() == "websocket"
    assert (response.header("connection") or "").lower() == "upgrade"
    assert response.header("sec-websocket-accept") == accept_token(key)
    return response


def accept(connection: Connection, head: Head, headers: dict[str, str] | None = None) -> None:
    """Answers a handshake with the right 101."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Accept: {accept_token(head.get('sec-websocket-key') or '')}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    connection.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def serve_echo(connection: Connection) -> None:
    """A handler: WebSockets are echoed frame by frame, other requests answered with the server's name."""
    name = connection.upstream.name
    while (head := connection.read_head()) is not None:
        if head.get("upgrade") is None:
            connection.send(reply(name.encode()))
            continue
        accept(connection, head, {"X-Server": name})
        echo_frames(connection)
        return


def echo_frames(connection: Connection) -> None:
    """Echoes frames until a Close, which is answered in kind."""
    while True:
        received = read_frame(connection)
        opcode = PONG if received.opcode == PING else received.opcode
        connection.send(frame(received.payload, opcode))
        if received.opcode == CLOSE:
            return
