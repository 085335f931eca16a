"""The access log's lines: one per exchange, and for a WebSocket one when it opens and one when it closes.

Fill an `Exchange` or a `TunnelEnd` (by position is cheapest) and hand it to the `LineFormat` that the
configuration names. The result is one finished line with its line feed, at most `MAX_LINE` bytes long, so
that a write of it to a pipe is never torn. Values too long for that are cut and end in "...".

What comes from the wire is bytes and is escaped here: a line holds no control character, in either format,
whatever a client sends. The common line takes one pass of C code and a check of the result; only a line that
fails the check is made again with care.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

MAX_LINE: Final = 4096  # PIPE_BUF

_MILLISECONDS: Final = tuple(f".{number:03d}Z" for number in range(1000))
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Exchange(msgspec.Struct, frozen=True, gc=False):
    """An exchange that ended, or (`event` "websocket_open") a tunnel that opened. Names are empty where
    there are none."""

    now: float  # Unix time of the end, seconds
    client: str  # address without port
    method: bytes
    target: bytes
    host: bytes
    protocol: str
    status: int
    sent: int  # bytes to the client, heads and framing included
    received: int  # bytes from the client
    duration: float  # seconds; of a tunnel that opened, the handshake's
    route: str
    pool: str
    server: str
    upstream_time: float | None  # the server's part of `duration`; None where none was asked
    attempts: int
    reason: str  # a refusal's stable word (workers.contract.errors)
    request_id: bytes
    user_agent: bytes
    referer: bytes
    event: str = "request"


class TunnelEnd(msgspec.Struct, frozen=True, gc=False):
    """A tunnel that ended. `request_id` ties it to the line of its opening, so that a tunnel need not keep
    the rest of its head for days."""

    now: float
    client: str
    target: bytes
    host: bytes
    protocol: str
    sent: int  # bytes to the client since the 101
    received: int
    duration: float  # seconds since the 101
    route: str
    pool: str
    server: str
    request_id: bytes
    close_code: int | None  # of the first Close frame; None without one
    closed_by: str  # "client", "server", "lb", or "none" where a connection just broke
    messages_sent: int
    messages_received: int


class LineFormat(NamedTuple):
    """One format of the access log."""

    exchange: Callable[[Exchange], bytes]
    tunnel_end: Callable[[TunnelEnd], bytes]


def line_format(name: str) -> LineFormat:
    """The format called `name` in the configuration: "json" or "combined". Raises `KeyError` for others."""
    return {
        "json": LineFormat(_json_exchange, _json_tunnel_end),
        "combined": LineFormat(_combined_exchange, _combined_tunnel_end),
    }[name]


def agent_and_referer(fields: bytes) -> tuple[bytes, bytes]:
    """User-Agent and Referer in a raw field block (each line begins with CRLF), empty where absent."""
    lower = fields.lower()
    return _field(fields, lower, b"\r\nuser-agent:"), _field(fields, lower, b"\r\nreferer:")


def _field(fields: bytes, lower: bytes, name: bytes) -> bytes:
    start = lower.find(name)
    if start < 0:
        return b""
    start += len(name)
    end = lower.find(b"\r", start)
    return fields[start:].strip() if end < 0 else fields[start:end].strip()


# --- JSON: one object a line, in UTF-8; bytes that are no UTF-8 are shown as \xHH --------------------


class _ExchangeLine(msgspec.Struct, gc=False):
    time: str
    event: str
    client: str
    method: str
    target: str
    host: str
    protocol: str
    status: int
    bytes_sent: int
    bytes_received: int
    duration: float
    route: str
    pool: str
    server: str
    upstream_time: float | None
    attempts: int
    reason: str
    request_id: str
    user_agent: str
    referer: str


class _TunnelEndLine(msgspec.Struct, gc=False):
    time: str
    event: str
    client: str
    target: str
    host: str
    protocol: str
    bytes_sent: int
    bytes_received: int
    duration: float
    route: str
    pool: str
    server: str
    request_id: str
    close_code: int | None
    closed_by: str
    messages_sent: int
    messages_received: int


_encode: Final = msgspec.json.Encoder().encode
_json_second: tuple[int, str] = (-1, "")


def _rfc3339(now: float) -> str:
    """UTC with milliseconds; the date is made once a second."""
    global _json_second
    second = int(now)
    known, prefix = _json_second
    if known != second:
        prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _json_second = (second, prefix)
    return prefix + _MILLISECONDS[int((now - second) * 1000)]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


# fmt: off
def _json_exchange(r: Exchange) -> bytes:
    upstream = r.upstream_time
    try:
        record = _ExchangeLine(
            _rfc3339(r.now), r.event, r.client, r.method.decode(), r.target.decode(), r.host.decode(),
            r.protocol, r.status, r.sent, r.received, int(r.duration * 1e6) / 1e6, r.route, r.pool, r.server,
            None if upstream is None else int(upstream * 1e6) / 1e6, r.attempts, r.reason,
            r.request_id.decode(), r.user_agent.decode(), r.referer.decode(),
        )
    except UnicodeDecodeError:
        record = _ExchangeLine(
            _rfc3339(r.now), r.event, r.client, _text(r.method), _text(r.target), _text(r.host),
            r.protocol, r.status, r.sent, r.received, int(r.duration * 1e6) / 1e6, r.route, r.pool, r.server,
            None if upstream is None else int(upstream * 1e6) / 1e6, r.attempts, r.reason,
            _text(r.request_id), _text(r.user_agent), _text(r.referer),
        )
    line = _encode(record) + b"\n"
    if line.isascii() and len(line) <= MAX_LINE and b"\x7f" not in line:
        return line
    return _with_care(record)


def _json_tunnel_end(r: TunnelEnd) -> bytes:
    return _with_care(_TunnelEndLine(
        _rfc3339(r.now), "websocket_close", r.client, _text(r.target), _text(r.host), r.protocol,
        r.sent, r.received, int(r.duration * 1e6) / 1e6, r.route, r.pool, r.server, _text(r.request_id),
        r.close_code, r.closed_by, r.messages_sent, r.messages_received,
    ))
# fmt: on


def _with_care(record: _ExchangeLine | _TunnelEndLine) -> bytes:
    """The line of a record that may be too long, or hold what a terminal would obey."""
    values = msgspec.structs.asdict(record)
    limit = MAX_LINE // 2
    while True:
        line = _encode(values)
        if not line.decode().isprintable():
            text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
            line = text.replace("\x7f", "\\u007f").encode()
        if len(line) < MAX_LINE:
            return line + b"\n"
        for name, value in values.items():
            if isinstance(value, str) and len(value) > limit:
                values[name] = value[:limit] + "..."
        limit //= 2


# --- combined: as Apache and nginx write it, escaped as nginx does (\xHH) ----------------------------
# A tunnel's lines are GET requests with status 101 and words at their end, which readers of the format skip.

_COMBINED: Final = b'%b - - [%b] "%b %b %b" %d %d "%b" "%b"%b\n'
# What may not stand in a line as it is, but for the quote, which is counted.
_UNSAFE: Final = bytes(range(0x20)) + b"\\" + bytes(range(0x7F, 0x100))
_ESCAPES: Final = {code: f"\\x{code:02X}" for code in b'"' + _UNSAFE}
_combined_second: tuple[int, bytes] = (-1, b"")


def _common_time(now: float) -> bytes:
    """`22/Nov/2026:21:24:04 +0000`; made once a second."""
    global _combined_second
    second = int(now)
    known, text = _combined_second
    if known != second:
        moment = datetime.fromtimestamp(second, UTC)
        month = _MONTHS[moment.month - 1]  # the name that strftime would give is the locale's
        text = moment.strftime(f"%d/{month}/%Y:%H:%M:%S +0000").encode()
        _combined_second = (second, text)
    return text


def _combined(
    ends: tuple[bytes, bytes, bytes, bytes],
    method: bytes,
    target: bytes,
    status: int,
    sent: int,
    referer: bytes,
    agent: bytes,
) -> bytes:
    client, when, protocol, tail = ends
    return _COMBINED % (
        client, when, method, target, protocol, status, sent, referer or b"-", agent or b"-", tail
    )  # fmt: skip


def _combined_exchange(r: Exchange) -> bytes:
    event = b"" if r.event == "request" else b" " + r.event.encode()
    ends = r.client.encode() or b"-", _common_time(r.now), r.protocol.encode(), event
    line = _combined(ends, r.method, r.target, r.status, r.sent, r.referer, r.user_agent)
    if line.count(b'"') == 6 and len(line.translate(None, _UNSAFE)) + 1 == len(line) <= MAX_LINE:
        return line
    limit = MAX_LINE // 2
    while True:
        values = [_escaped(value, limit) for value in (r.method, r.target, r.referer, r.user_agent)]
        line = _combined(ends, values[0], values[1], r.status, r.sent, values[2], values[3])
        if len(line) <= MAX_LINE:
            return line
        limit //= 2


def _combined_tunnel_end(r: TunnelEnd) -> bytes:
    code = "-" if r.close_code is None else str(r.close_code)
    words = (
        f"websocket_close duration={r.duration:.3f} received={r.received} code={code} by={r.closed_by}"
        f" messages={r.messages_sent}/{r.messages_received}"
    )
    # fmt: off
    return _combined_exchange(Exchange(
        r.now, r.client, b"GET", r.target, r.host, r.protocol, 101, r.sent, r.received, r.duration,
        r.route, r.pool, r.server, None, 1, "", r.request_id, b"", b"", words,
    ))
    # fmt: on


def _escaped(value: bytes, limit: int) -> bytes:
    clipped = value if len(value) <= limit else value[:limit] + b"..."
    return clipped.decode("latin-1").translate(_ESCAPES).encode()
