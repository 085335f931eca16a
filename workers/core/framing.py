"""Where a chunked body ends, found without copying it (RFC 9112 section 7.1).

`ChunkedBody.feed` walks over a piece of the body and leaves in `spans` which parts of it are to be sent on.
Mostly that is one span: the bytes as they came. Chunk extensions are cut out (section 7.1.1 lets a recipient
ignore them, and no two parsers agree on them), and so are trailer fields that would change framing or
routing. With `payload_only` the chunk framing is cut too, for HTTP/1.0 clients.

Everything else is strict: 1 to 15 hexadecimal digits, CRLF and nothing else at each end.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from workers.contract import errors
from workers.contract.errors import ProxyError
from workers.core.heads import Buffer

# Chunk extensions and the trailer section are bounded: they are nobody's payload. In bytes, with CRLF.
MAX_LINE: Final = 4096
MAX_TRAILERS: Final = 16 * 1024
MAX_EXTENSIONS: Final = 64 * 1024  # of a whole body

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15}+)([\t ]*+;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_PLAIN_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15}+)\r\n")
_TRAILER_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[\t\x20-\x7e\x80-\xff]*+\r\n")

# RFC 9110 section 6.5.1: not in trailers what frames, routes or authenticates.
_FORBIDDEN_TRAILERS: Final = frozenset(
    (
        b"authorization", b"connection", b"content-encoding", b"content-length", b"content-range",
        b"content-type", b"cookie", b"expect", b"forwarded", b"host", b"keep-alive", b"proxy-authenticate",
        b"proxy-authorization", b"proxy-connection", b"set-cookie", b"te", b"trailer", b"transfer-encoding",
        b"upgrade", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto",
        b"x-request-id",
    )
)  # fmt: skip


class _State(enum.Enum):
    SIZE = 0  # at a chunk-size line
    DATA = 1  # inside chunk data; `_left` bytes of it and its CRLF remain
    END = 2  # at the CRLF that ends chunk data
    TRAILERS = 3  # after the last chunk
    DONE = 4


class ChunkedBody:
    """Scans one chunked body. Feed until `done`; what follows is not part of it.

    `payload` counts the data bytes seen. `spans` holds, after each `feed`, the (start, end) pairs of the
    piece to send on.
    """

    __slots__ = (
        "_extensions",
        "_left",
        "_payload_only",
        "_refusal",
        "_side",
        "_state",
        "_trailers",
        "payload",
        "spans",
    )

    def __init__(self, *, side: str, payload_only: bool = False) -> None:
        self._state = _State.SIZE
        self._left = 0
        self._trailers = 0
        self._extensions = 0
        self._payload_only = payload_only
        self._side = side
        self._refusal = errors.BAD_CHUNK if side == "client" else errors.BAD_RESPONSE
        self.payload = 0
        self.spans: list[tuple[int, int]] = []

    @property
    def done(self) -> bool:
        """Whether the whole body, trailers included, was seen."""
        return self._state is _State.DONE

    def feed(self, buffer: Buffer, start: int, end: int) -> int:
        """Scans `buffer[start:end]` and returns how far it came: at `done` the end of the body, else `end`
        or, when a line is cut short, the start of that line: the caller keeps `buffer[returned:end]` and
        feeds it again with what follows. Raises `ProxyError` for what is malformed."""
        self.spans.clear()
        position = start
        while self._state is not _State.DONE:
            before = position
            if self._state is _State.DATA:
                position = self._data(position, end)
            elif self._state is _State.SIZE:
                position = self._whole_chunks(buffer, position, end)
                position = self._size(buffer, position, end)
            elif self._state is _State.END:
                position = self._end(buffer, position, end)
            else:
                position = self._trailer(buffer, position, end)
            if position == before:
                break
        return position

    def passed(self, view: memoryview) -> bytes | memoryview:
        """What of `view`, the piece that was fed last, is to be sent on: mostly a part of it as it is."""
        if len(self.spans) == 1:
            start, end = self.spans[0]
            return view[start:end]
        return b"".join([view[start:end] for start, end in self.spans])

    def _data(self, position: int, end: int) -> int:
        take = min(self._left, end - position)
        self._left -= take
        self.payload += take
        self._keep(position, position + take)
        if not self._left:
            self._state = _State.END
        return position + take

    def _whole_chunks(self, buffer: Buffer, start: int, end: int) -> int:
        """Passes over plain chunks that are there in full. Who sends a body byte by byte, each in a chunk of
        its own, pays for it with six times the bytes; here it must not cost much more than other bodies."""
        if self._payload_only:
            return start
        position = start
        match_size = _PLAIN_SIZE.match
        while (match := match_size(buffer, position, end)) is not None:
            size = int(match[1], 16)
            data = match.end()
            after = data + size
            if not size or after + 2 > end or buffer[after] != 0x0D or buffer[after + 1] != 0x0A:
                break  # the last one, an incomplete one, a malformed one: step by step
            self.payload += size
            position = after + 2
        self._keep(start, position)
        return position

    def _size(self, buffer: Buffer, position: int, end: int) -> int:
        match = _SIZE_LINE.match(buffer, position, end)
        if match is None:
            self._incomplete_line(buffer, position, end)
            return position
        self._left = int(match.group(1), 16)
        if match.group(2) is not None:
            self._extended(position, match.end(1), match.end())
        elif not self._payload_only:
            self._keep(position, match.end())
        self._state = _State.DATA if self._left else _State.TRAILERS
        return match.end()

    def _extended(self, start: int, extension: int, end: int) -> None:
        self._extensions += end - start
        if end - start > MAX_LINE or self._extensions > MAX_EXTENSIONS:
            raise self._error("chunk extensions are too long")
        if not self._payload_only:
            self._keep(start, extension)
            self._keep(end - 2, end)

    def _end(self, buffer: Buffer, position: int, end: int) -> int:
        if end - position < 2:
            if end > position and buffer[position] != 0x0D:
                raise self._error("no CRLF after a chunk")
            return position
        if buffer[position] != 0x0D or buffer[position + 1] != 0x0A:
            raise self._error("no CRLF after a chunk")
        if not self._payload_only:
            self._keep(position, position + 2)
        self._state = _State.SIZE
        return position + 2

    def _trailer(self, buffer: Buffer, position: int, end: int) -> int:
        if buffer.startswith(b"\r\n", position, end):
            if not self._payload_only:
                self._keep(position, position + 2)
            self._state = _State.DONE
            return position + 2
        match = _TRAILER_LINE.match(buffer, position, end)
        if match is None:
            self._incomplete_line(buffer, position, end)
            return position
        length = match.end() - position
        self._trailers += length
        if length > MAX_LINE or self._trailers > MAX_TRAILERS:
            raise self._error("trailers are too large")
        # CGI-like servers take X_Forwarded_For for X-Forwarded-For.
        name = match.group(1).lower().replace(b"_", b"-")
        if not self._payload_only and name not in _FORBIDDEN_TRAILERS:
            self._keep(position, match.end())
        return match.end()

    def _incomplete_line(self, buffer: Buffer, position: int, end: int) -> None:
        if buffer.find(b"\n", position, end) >= 0:
            raise self._error("malformed chunk line")
        if end - position >= MAX_LINE:  # its LF is still to come
            raise self._error("chunk line is too long")

    def _keep(self, start: int, end: int) -> None:
        spans = self.spans
        if start == end:
            return
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))

    def _error(self, detail: str) -> ProxyError:
        return ProxyError(self._refusal, side=self._side, detail=detail)
