"""Where WebSocket frames begin and end in a stream of bytes (RFC 6455 section 5.2), and no more.

The relay asks for three things: whether the stream stands between two frames, how many messages went by,
and which status code a Close frame carried. Payload is never looked at, apart from those two bytes, and
nothing is judged: reserved bits, unknown opcodes and unmasked client frames are the two ends' own affair.
"""

from __future__ import annotations

from typing import Final

NO_STATUS: Final = 1005  # section 7.4.1: a Close frame without a code
OTHER_STATUS: Final = 0

_CLOSE: Final = -1
_EXTENDED: Final = 0
# By the first byte: -1 for Close, 1 for what ends a message (FIN on a data frame), 0 for the rest.
_KINDS: Final = tuple(
    _CLOSE if first & 0x0F == 8 else int(first >= 0x80 and first & 0x0F < 8) for first in range(256)
)
# By the second byte: the size of the whole frame, or 0 where the length is an extended one.
_SIZES: Final = tuple(
    _EXTENDED if second & 0x7F > 125 else 2 + (second >> 7) * 4 + (second & 0x7F) for second in range(256)
)
# The size of a frame, by its second byte, for a test that needs no call: see `Pipe.on_readable`. Never equal
# to a number of bytes received where the length is an extended one.
WHOLE: Final = tuple(size or -1 for size in _SIZES)
# By the second byte: the size of the head where 16 bits of length follow; else so little that, with any such
# length added, it is no number of bytes received.
MEDIUM: Final = tuple(4 + (second >> 7) * 4 if second & 0x7F == 126 else -(1 << 16) for second in range(256))
# By the second byte: the size of the head where 64 bits of length follow, else 0.
_LARGE: Final = tuple(10 + (second >> 7) * 4 if second & 0x7F == 127 else 0 for second in range(256))
# By the first byte: whether it begins a message that ends in the same frame (FIN on text or binary).
MESSAGE: Final = tuple(first & 0x8F in (0x81, 0x82) for first in range(256))
_FOR_EVER: Final = 1 << 80
_LONGEST_HEAD: Final = 16  # 2, 8 of length, 4 of mask, 2 of status code


class FrameTracker:
    """Follows one direction of a tunnel.

    Feed it every byte that passes, in order, in chunks of any size. `messages` counts the messages that
    passed to their end. `close_code` is `None` until a Close frame came: then its code (1000-1015,
    3000-4999), 1005 where it had none, or 0 for any other; of several Close frames the first counts. Once
    `lost` is set the stream can't be followed as WebSocket, and no figure changes any more.
    """

    __slots__ = ("_ends_message", "_head", "at_boundary", "close_code", "left", "lost", "messages")

    def __init__(self) -> None:
        self.messages: int = 0
        self.close_code: int | None = None
        self.lost: bool = False
        # Whether the stream stands between two frames: the only place where a frame may be added.
        self.at_boundary: bool = True
        # Bytes of the current frame that are still to come. A smaller chunk may be taken off without `feed`.
        self.left: int = 0
        self._ends_message: int = 0  # what `messages` grows by when they have come
        self._head: bytes = b""  # the beginning of a frame, too short to know its size

    @property
    def to_boundary(self) -> int:
        """How many bytes may be taken without going beyond the current frame: the rest of it, or one byte
        where its head is not complete. To be asked only between `feed`s."""
        return self.left or 1

    @property
    def head(self) -> bytes:
        """The beginning of a frame whose size is not known yet."""
        return self._head

    @property
    def ends_message(self) -> int:
        """1 where a message ends with the frame that the stream is in, else 0."""
        return self._ends_message

    def resume(self, left: int, head: bytes, ends_message: int = 1) -> None:
        """Makes a new tracker go on where another one stood: `left` bytes before a frame's end, or behind the
        `head` of one."""
        self.left = left
        self._ends_message = ends_message if left else 0
        self._head = head
        self.at_boundary = not (left or head)

    def lose(self) -> None:
        """The stream can't be followed any more."""
        self.lost = True
        self.at_boundary = False
        self.left = _FOR_EVER  # so that `feed` needs no test of its own
        self._ends_message = 0
        self._head = b""

    def feed(self, buffer: bytes | bytearray | memoryview, start: int, end: int) -> None:
        """Takes `buffer[start:end]`, the next bytes of the stream; the buffer isn't kept."""
        if self.at_boundary and end - start > _LONGEST_HEAD and _LARGE[buffer[start + 1]]:
            # The beginning of a long message, or the whole of it: often enough to be worth a short way.
            left = int.from_bytes(buffer[start + 2 : start + 10], "big") + _LARGE[buffer[start + 1]]
            left -= end - start
            if MESSAGE[buffer[start]] and 0 <= left < 1 << 62:
                self.left = left
                self._ends_message = 1
                self.at_boundary = not left
                if not left:
                    self.messages += 1
                return
        self._feed(buffer, start, end)
        self.at_boundary = not (self.left or self._head or self.lost)

    def _feed(self, buffer: bytes | bytearray | memoryview, start: int, end: int) -> None:
        left = self.left
        if left:
            start += left
            if start > end:
                self.left = start - end
                return
            self.left = 0
            self.messages += self._ends_message
        elif self._head:
            start = self._resume(buffer, start, end)
        while start < end:
            if end - start > 1:
                kind = _KINDS[buffer[start]]
                size = _SIZES[buffer[start + 1]]
                if not size or kind < 0:
                    size = self._long(buffer, start, end)
                    kind = max(0, kind)
                if size:
                    start += size
                    if start <= end:
                        self.messages += kind
                        continue
                    self.left = start - end
                    self._ends_message = kind
                    return
            if not self.lost:
                self._head = bytes(buffer[start:end])
            return

    def _long(self, buffer: bytes | bytearray | memoryview, start: int, end: int) -> int:
        """The size of a frame with an extended length, or of a Close frame, whose code is taken too.
        0 where more bytes are needed, or where the length is none (`lost`)."""
        first = buffer[start]
        masked = buffer[start + 1] & 0x80
        length = buffer[start + 1] & 0x7F
        payload = start + 2
        if length > 125:
            payload += 2 if length == 126 else 8
            if payload > end:
                return 0
            length = int.from_bytes(buffer[start + 2 : payload], "big")
            if length >> 63:  # "the most significant bit MUST be 0"
                self.lose()
                return 0
        if masked:
            payload += 4
        if first & 0x0F == 8 and self.close_code is None:
            if length >= 2 and payload + 2 > end:
                return 0
            self.close_code = _status(buffer, payload, length, masked)
        return payload + length - start

    def _resume(self, buffer: bytes | bytearray | memoryview, start: int, end: int) -> int:
        """Goes on with a head that was cut. Returns where the frame after it starts, at most `end`."""
        kept = len(self._head)
        joined = self._head + bytes(buffer[start : min(end, start + _LONGEST_HEAD)])
        size = 0
        if len(joined) > 1:
            size = _SIZES[joined[1]]
            if not size or _KINDS[joined[0]] < 0:
                size = self._long(joined, 0, len(joined))
        if not size:
            # Still too short, so all of the chunk is in `joined` (or the stream is lost).
            self._head = b"" if self.lost else joined
            return end
        self._head = b""
        kind = max(0, _KINDS[joined[0]])
        start += size - kept
        if start <= end:
            self.messages += kind
            return start
        self.left = start - end
        self._ends_message = kind
        return end


def close_frame(code: int, reason: str, mask: bytes) -> bytes:
    """A whole Close frame with `code` and `reason` (at most 123 bytes of UTF-8); `mask` has four random bytes
    where a client sends it, and is empty where a server does (section 5.1)."""
    payload = code.to_bytes(2, "big") + reason.encode()
    if not mask:
        return bytes((0x88, len(payload))) + payload
    masked = bytes([byte ^ mask[index % 4] for index, byte in enumerate(payload)])
    return bytes((0x88, 0x80 | len(payload))) + mask + masked


def _status(buffer: bytes | bytearray | memoryview, payload: int, length: int, masked: int) -> int:
    if not length:
        return NO_STATUS
    if length < 2:
        return OTHER_STATUS
    code = buffer[payload] << 8 | buffer[payload + 1]
    if masked:
        code ^= buffer[payload - 4] << 8 | buffer[payload - 3]
    return code if 1000 <= code <= 1015 or 3000 <= code <= 4999 else OTHER_STATUS
