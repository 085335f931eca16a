"""WebSocket as both ends of a tunnel speak it: handshake, frames (RFC 6455), permessage-deflate (RFC 7692).

Small, quick and strict: what an end would have to forgive is an error of whoever stands in between.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Iterator
from typing import Final

from lb.demo.messages import LARGEST

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN: Final = 0x80
COMPRESSED: Final = 0x40  # RSV1
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692 section 7.2.1
EXTENSION: Final = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"


class WireError(ValueError):
    """Bytes that no WebSocket peer may send."""


# --- handshake ---------------------------------------------------------------------------------------


def accept_token(key: str) -> str:
    """Sec-WebSocket-Accept for a key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("ascii") + _GUID).digest()).decode("ascii")


def request(target: str, deflate: bool) -> tuple[bytes, str]:
    """A client's handshake, and its key."""
    key = base64.b64encode(os.urandom(16)).decode("ascii")
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *([f"Sec-WebSocket-Extensions: {EXTENSION}"] if deflate else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"), key


def response(key: str, deflate: bool) -> bytes:
    """A server's 101."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Accept: {accept_token(key)}",
        *([f"Sec-WebSocket-Extensions: {EXTENSION}"] if deflate else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """First line and fields, by their names in lower case."""
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in rest if ":" in line)
    return first, {name.lower(): value.strip() for name, value in pairs}


# --- frames ------------------------------------------------------------------------------------------


def frame(first: int, payload: bytes, masked: bool) -> bytes:
    """One frame; `first` is its first byte: FIN, COMPRESSED, opcode."""
    size, bit = len(payload), 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 1 << 16:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + mask(payload, key)


def fragments(opcode: int, payload: bytes, masked: bool, compressed: bool, pieces: int) -> list[bytes]:
    """A message in so many frames (RFC 6455 section 5.4)."""
    if compressed:
        deflate = zlib.compressobj(1, zlib.DEFLATED, -12, 5)
        payload = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
        payload = payload.removesuffix(_TAIL)
    step = -(-len(payload) // pieces) or 1
    cut = [payload[at : at + step] for at in range(0, len(payload), step)] or [b""]
    firsts = [opcode | (COMPRESSED if compressed else 0)] + [0] * (len(cut) - 1)
    firsts[-1] |= FIN
    return [frame(first, piece, masked) for first, piece in zip(firsts, cut, strict=True)]


def mask(payload: bytes, key: bytes) -> bytes:
    """Masks, or unmasks (RFC 6455 section 5.3)."""
    size = len(payload)
    whole = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")


class FrameReader:
    """Feed it bytes, take messages and control frames."""

    __slots__ = ("_buffer", "_compressed", "_masked", "_message", "_opcode")

    def __init__(self, masked: bool) -> None:
        self._masked = masked  # whether the other side must mask
        self._buffer = bytearray()
        self._message = bytearray()
        self._opcode = 0  # of the message that is not complete yet
        self._compressed = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of what is complete with `data`. Raises `WireError`."""
        self._buffer += data
        while (found := self._frame()) is not None:
            first, payload = found
            if first & 0x08:
                if not first & FIN or len(payload) > 125:
                    raise WireError("a control frame that is cut or too long")
                yield first & 0x0F, payload
            elif self._join(first, payload):
                yield self._opcode, self._whole()
                self._opcode = 0

    def _frame(self) -> tuple[int, bytes] | None:
        """First byte and payload of the next frame, when it is complete."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 0x7F, 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:at], "big")
        if bool(buffer[1] & 0x80) != self._masked or buffer[0] & 0x30:
            raise WireError("no frame begins here")
        if size > 2 * LARGEST and len(buffer) >= at:
            raise WireError(f"a frame of {size} bytes")
        start = at + 4 * self._masked
        if len(buffer) < start + size:
            return None
        first, payload = buffer[0], bytes(buffer[start : start + size])
        if self._masked:
            payload = mask(payload, bytes(buffer[at:start]))
        del buffer[: start + size]
        return first, payload

    def _join(self, first: int, payload: bytes) -> bool:
        """Adds a frame to its message; whether that is complete."""
        opcode = first & 0x0F
        if bool(opcode) == bool(self._opcode) or opcode > BINARY:
            raise WireError(f"a frame of opcode {opcode} inside a message of opcode {self._opcode}")
        if opcode:
            self._opcode = opcode
            self._compressed = bool(first & COMPRESSED)
        self._message += payload
        return bool(first & FIN)

    def _whole(self) -> bytes:
        payload = bytes(self._message)
        self._message.clear()
        if not self._compressed:
            return payload
        try:
            return zlib.decompressobj(-15).decompress(payload + _TAIL)
        except zlib.error as error:
            raise WireError(str(error)) from error
