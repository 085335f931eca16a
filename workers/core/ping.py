"""Pings of our own, and the pongs that answer them (RFC 6455 section 5.5): bytes, and no more."""

from __future__ import annotations

from typing import Final

PAYLOAD: Final = 8  # bytes that nobody else has reason to send
LONGEST: Final = 14  # bytes of such a frame: 2, 4 of mask, the payload
PEEKED: Final = 16  # enough to know the size of any frame, and our pong

_PING: Final = 0x89
_PONG: Final = 0x8A
_MASKED: Final = 0x80 | PAYLOAD


def ping_frame(payload: bytes, mask: bytes) -> bytes:
    """A Ping with `payload`; `mask` has four random bytes where a client sends it, and is empty where a
    server does (section 5.1)."""
    if not mask:
        return bytes((_PING, PAYLOAD)) + payload
    return bytes((_PING, _MASKED)) + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def pong_size(data: bytes, payload: bytes) -> int:
    """The size of the Pong with `payload` that `data` begins with: 0 where it begins with something else, -1
    where only more bytes can tell. `data` begins with a frame and is not empty."""
    if data[0] != _PONG:
        return 0
    if len(data) == 1:
        return -1
    if data[1] == _MASKED:
        size = LONGEST
        mask = data[2:6]
        body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data[6:LONGEST]))
    elif data[1] == PAYLOAD:
        size = LONGEST - 4
        body = data[2:size]
    else:
        return 0
    if not payload.startswith(body):
        return 0
    return size if len(data) >= size else -1


def frame_size(data: bytes) -> int:
    """The size of the frame that `data` begins with; 0 where its head is not complete."""
    if len(data) < 2:
        return 0
    length = data[1] & 0x7F
    head = 2
    if length > 125:
        head += 2 if length == 126 else 8
        if len(data) < head:
            return 0
        length = int.from_bytes(data[2:head], "big")
    return head + (data[1] >> 7) * 4 + length
