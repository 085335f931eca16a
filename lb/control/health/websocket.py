"""The WebSocket check (RFC 6455): a full handshake, whose Accept value must answer the key, then a ping that
must be answered. A server whose accept loop lives while its WebSocket side hangs passes a plain HTTP check,
and fails this one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from contextlib import AsyncExitStack
from typing import Final

from lb.control.health.finding import CheckFailed, Finding, broken
from lb.control.health.stream import FAREWELL, Stream
from lb.control.health.target import Target
from workers.contract.cells import CheckResult
from workers.contract.errors import ProxyError
from workers.core.heads import ResponseHead, field_values, parse_response
from workers.core.upgrade import check_response

FRAMES: Final = 32  # that the server may send before its pong
FRAME_BYTES: Final = 64 * 1024  # all of these together

_CLOSE: Final = 8
_PING: Final = 9
_PONG: Final = 10
_OPCODES: Final = frozenset({0, 1, 2, _CLOSE, _PING, _PONG})
_NORMAL: Final = 1000


async def check_websocket(target: Target, stack: AsyncExitStack) -> Finding:
    """Checks once. Raises `CheckFailed` or `NotChecked`."""
    stream = await Stream.open(target)
    stack.push_async_callback(stream.hang_up)
    try:
        await _shake_hands(target, stream)
        await _ping(target, stream)
    except asyncio.IncompleteReadError as error:
        raise CheckFailed(CheckResult.PROTOCOL, f"closed while {target.stage}") from error
    except asyncio.LimitOverrunError as error:
        raise CheckFailed(CheckResult.PROTOCOL, "the head of the answer is too long") from error
    except OSError as error:
        raise broken(error, target.stage) from error
    stack.push_async_callback(_say_goodbye, stream)
    return Finding(CheckResult.OK, "pong")


async def _shake_hands(target: Target, stream: Stream) -> None:
    target.stage = "waiting for the handshake's answer"
    key = base64.b64encode(secrets.token_bytes(16))
    lines = (
        b"GET " + target.spec.path.encode() + b" HTTP/1.1",
        b"Host: " + target.host_field.encode(),
        b"User-Agent: lb-health",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + key,
    )
    await stream.send(b"\r\n".join(lines) + b"\r\n\r\n")
    raw = await stream.reader.readuntil(b"\r\n\r\n")
    try:
        head = parse_response(raw, 0, len(raw))
        assert head is not None  # it ends with an empty line
        if head.status != 101:
            raise CheckFailed(CheckResult.STATUS, f"expected status 101, got {head.status}")
        _check_switch(head, key)
    except ProxyError as error:
        raise CheckFailed(CheckResult.PROTOCOL, f"malformed answer: {error.detail}") from error


def _check_switch(head: ResponseHead, key: bytes) -> None:
    """Section 4.1, second list: 2 to 6. What was not offered must not be used."""
    known = dict(head.known)
    accepts = field_values(head.fields, b"sec-websocket-accept")
    accept = accepts[0] if len(accepts) == 1 else b""
    check_response(key, known.get(b"upgrade", b""), known.get(b"connection", b""), accept)
    for name in (b"sec-websocket-extensions", b"sec-websocket-protocol"):
        if field_values(head.fields, name):
            raise CheckFailed(CheckResult.PROTOCOL, f"101: {name.decode()} was not asked for")


async def _ping(target: Target, stream: Stream) -> None:
    target.stage = "waiting for the pong"
    payload = secrets.token_bytes(8)
    await stream.send(frame(_PING, payload))
    left = FRAME_BYTES
    for _ in range(FRAMES):
        opcode, data = await _read_frame(stream, left)
        left -= len(data)
        if opcode == _PONG and data == payload:
            return
        if opcode == _CLOSE:
            code = int.from_bytes(data[:2], "big") if len(data) >= 2 else "none"
            raise CheckFailed(CheckResult.PROTOCOL, f"closed with code {code} instead of a pong")
    raise CheckFailed(CheckResult.PROTOCOL, f"no pong among the first {FRAMES} frames")


async def _read_frame(stream: Stream, limit: int) -> tuple[int, bytes]:
    """The next frame's opcode and payload."""
    first, second = await stream.reader.readexactly(2)
    if first & 0x70 or first & 0x0F not in _OPCODES or second & 0x80:
        # Sections 5.1 and 5.2: no extension was negotiated, and a server never masks.
        raise CheckFailed(CheckResult.PROTOCOL, f"malformed frame: begins with {first:#04x} {second:#04x}")
    length = second & 0x7F
    if length > 125:
        length = int.from_bytes(await stream.reader.readexactly(2 if length == 126 else 8), "big")
    if length > limit:
        raise CheckFailed(CheckResult.PROTOCOL, f"no pong among the first {FRAME_BYTES} bytes")
    return first & 0x0F, await stream.reader.readexactly(length)


async def _say_goodbye(stream: Stream) -> None:
    """Section 7.1.1: a Close frame, and the server closes the connection first, if it is quick."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(FAREWELL):
            await stream.send(frame(_CLOSE, _NORMAL.to_bytes(2, "big")))
            await stream.reader.read(FRAME_BYTES)
            await stream.reader.read(FRAME_BYTES)


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame with a short payload, masked (section 5.3)."""
    mask = secrets.token_bytes(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked
