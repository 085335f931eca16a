"""One end of a tunnel: it sends numbered messages, checks what comes, and notices how the tunnel ends."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from lb.demo import wire
from lb.demo.messages import END, MESSAGE, Incoming, Side, Tally, Terms, message

READ: Final = 256 * 1024  # bytes at a time
HALF_AFTER: Final = 5  # messages that an end sends before it ends its direction and no more
FRAGMENTED_EVERY: Final = 8  # messages, one of which goes in three frames
PING_EVERY: Final = 32
NORMAL: Final = 1000
_MAX_HEAD: Final = 16 * 1024
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


class Phase(enum.Enum):
    """Where an end stands."""

    CONNECTING = enum.auto()
    SHAKING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()  # a Close was sent, or all there was to send: what is left is to go away
    CLOSED = enum.auto()


class Crowd(Protocol):
    """All the ends of a process."""

    tally: Tally

    def watch(self, end: End, events: int) -> None:
        """Asks for readiness."""

    def opened(self, end: End) -> None:
        """A tunnel is open."""

    def gone(self, end: End) -> None:
        """An end was closed."""


class End:
    """A client's end, or a server's. What the event loop calls begins with `on_`."""

    __slots__ = (
        "_armed",
        "_crowd",
        "_eof",
        "_head",
        "_incoming",
        "_key",
        "_out",
        "_pong",
        "_reader",
        "close_code",
        "ended",
        "fd",
        "last",
        "phase",
        "sent",
        "side",
        "socket",
        "terms",
    )

    def __init__(self, crowd: Crowd, connection: socket.socket, side: Side, terms: Terms) -> None:
        self._crowd = crowd
        self.socket = connection
        self.fd = connection.fileno()
        self.side: Side = side
        self.terms = terms
        self.phase = Phase.CONNECTING if side == "c" else Phase.SHAKING
        self.sent = 0  # messages
        self.ended = False  # we have said that all is sent
        self.last = 0.0  # when the last message came, monotonic
        self._head = b""
        self._key = ""
        self._out = bytearray()
        self._eof = False
        self.close_code: int | None = None  # that the other side sent
        self._pong: bytes | None = None  # that must come
        self._reader = wire.FrameReader(masked=side == "s")
        self._incoming = Incoming(terms, "c" if side == "s" else "s", crowd.tally)
        self._armed = -1
        self._arm()

    @property
    def alive(self) -> bool:
        """Whether it is not closed."""
        return self.phase is not Phase.CLOSED

    @property
    def idle(self) -> bool:
        """Whether the next message may be sent: all before it is with the kernel."""
        return self.phase is Phase.OPEN and not self.ended and not self._out

    @property
    def slow(self) -> bool:
        """Whether this end reads when it is told to, `terms.read` bytes a second, and not at once."""
        return self.terms.slow == self.side and self.phase is Phase.OPEN and not self.ended

    @property
    def expects(self) -> bool:
        """Whether the other end should be sending."""
        return self.phase is Phase.OPEN and not self._incoming.ended

    # --- readiness -------------------------------------------------------------------------------

    def _arm(self) -> None:
        events = 0 if self._eof or self.slow else _IN
        flooding = self.terms.profile == "flood" and self.idle
        if self._out or flooding or self.phase is Phase.CONNECTING:
            events |= _OUT
        if events != self._armed:
            self._armed = events
            self._crowd.watch(self, events)

    def on_ready(self, events: int) -> None:
        """Does what readiness allows."""
        self._guarded(self._on_ready, events)

    def on_turn(self) -> None:
        """It is this end's turn to send."""
        if self.idle:
            self._guarded(self.send_next)

    def on_allowance(self, limit: int) -> None:
        """A `slow` end may read so many bytes."""
        self._guarded(self._read, limit)

    def _guarded(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except OSError:
            self._closed("reset")
        except (wire.WireError, msgspec.ValidationError):
            self._crowd.tally.corrupt += self.phase is Phase.OPEN
            self._closed("garbled")
        if self.phase is not Phase.CLOSED:
            self._arm()

    def _on_ready(self, events: int) -> None:
        if events & _OUT:
            self._on_writable()
        if events & ~_OUT and self.phase is not Phase.CLOSED:
            self._read(READ)

    def _on_writable(self) -> None:
        if self.phase is Phase.CONNECTING:
            number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, "connect")
            request, self._key = wire.request(self.terms.target(), self.terms.deflate)
            self.phase = Phase.SHAKING
            self._send(request)
        elif self._out:
            self._flush()
        elif self.idle:
            self.send_next()

    def _read(self, limit: int) -> None:
        try:
            data = self.socket.recv(limit)
        except BlockingIOError:
            return
        if not data:
            self._on_eof()
        elif self.phase is Phase.SHAKING:
            self._shake(data)
        else:
            self._take(data)

    # --- handshake -------------------------------------------------------------------------------

    def _shake(self, data: bytes) -> None:
        head, found, rest = (self._head + data).partition(b"\r\n\r\n")
        if not found:
            self._head = head
            if len(head) > _MAX_HEAD:
                raise wire.WireError("a head without an end")
            return
        self._head = b""
        first, fields = wire.parse_head(head)
        if self.side == "s" and "sec-websocket-key" not in fields:
            body = first.split(" ")[1].encode("latin-1")
            self._send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            if rest:
                self._shake(rest)
            return
        if self.side == "s":
            self.terms = Terms.parse(first.split(" ")[1])
            self._incoming.terms = self.terms
            self._send(wire.response(fields["sec-websocket-key"], self.terms.deflate))
        elif fields.get("sec-websocket-accept") != wire.accept_token(self._key) or " 101 " not in first:
            raise wire.WireError("no 101")
        self.phase = Phase.OPEN
        self.last = time.monotonic()
        self._crowd.opened(self)
        if rest:
            self._take(rest)

    # --- messages --------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        for opcode, payload in self._reader.feed(data):
            if opcode == wire.PING:
                if not (self.ended and self.terms.half == self.side):
                    self._send(wire.frame(wire.FIN | wire.PONG, payload, self.side == "c"))
            elif opcode == wire.PONG:
                self._on_pong(payload)
            elif opcode == wire.CLOSE:
                self._on_close(payload)
            elif self.phase is Phase.OPEN:
                self._incoming.take(payload)
                self._crowd.tally.longest = max(self._crowd.tally.longest, self.pause(time.monotonic()))
                self.last = time.monotonic()
                if self._incoming.ended:
                    self._on_end()

    def pause(self, now: float) -> float:
        """For how long the next message is overdue; 0.0 where nobody can say when it should come."""
        if not self.expects or self.terms.profile == "flood" or self.terms.slow:
            return 0.0
        return max(0.0, now - self.last - 1 / self.terms.rate)

    def _on_pong(self, payload: bytes) -> None:
        if payload != self._pong:
            self._crowd.tally.corrupt += 1
        self._pong = None

    def send_next(self) -> None:
        """Sends the next message; only where `idle`."""
        masked = self.side == "c"
        if self.sent % PING_EVERY == PING_EVERY - 1 and self._pong is None:
            self._pong = b"%d" % self.sent
            self._out += wire.frame(wire.FIN | wire.PING, self._pong, masked)
        pieces = 3 if self.sent % FRAGMENTED_EVERY == FRAGMENTED_EVERY - 1 else 1
        payload = message(self.terms, self.side, self.sent, MESSAGE)
        opcode = wire.TEXT if self.sent % 2 else wire.BINARY
        frames = wire.fragments(opcode, payload, masked, self.terms.deflate, pieces)
        self.sent += 1
        self._crowd.tally.sent += 1
        self._send(b"".join(frames))
        if self.terms.half == self.side and self.sent == HALF_AFTER:
            self._finish()

    def _finish(self) -> None:
        if self.phase is not Phase.OPEN or self.ended:
            return
        self.ended = True
        last = message(self.terms, self.side, self.sent, END)
        self._send(wire.frame(wire.FIN | wire.BINARY, last, self.side == "c"))
        if self._incoming.ended:
            self._on_end()

    def on_stop(self) -> None:
        """Sends no more, and says so to the other end. The tunnel ends when both have."""
        self._guarded(self._finish)

    def _on_end(self) -> None:
        """The other end has sent all that it will, and all of it has come."""
        if not self.ended:
            if not self.terms.half:
                self._finish()
        elif self.terms.half:
            self.phase = Phase.CLOSING
            self._leave_when_flushed()
        elif self.side == "c":
            self._say_close(NORMAL)

    # --- the end ---------------------------------------------------------------------------------

    def _say_close(self, code: int) -> None:
        self.phase = Phase.CLOSING
        payload = code.to_bytes(2, "big") if code != 1005 else b""
        self._send(wire.frame(wire.FIN | wire.CLOSE, payload, self.side == "c"))

    def _on_close(self, payload: bytes) -> None:
        self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
        if self.phase is Phase.OPEN:
            self._say_close(self.close_code)

    def _leave_when_flushed(self) -> None:
        if self._out:
            return
        if self.terms.half:
            self._closed("eof")
        else:  # RFC 6455 section 7.1.1: the server ends first, and reads what is still on its way
            self.socket.shutdown(socket.SHUT_WR)

    def _on_eof(self) -> None:
        self._eof = True
        if self.phase is Phase.OPEN and self.terms.half and self._incoming.ended:
            return  # the other direction goes on
        self._closed("eof")

    def _closed(self, how: str) -> None:
        """Leaves, and writes down how it came to that."""
        if self.phase is Phase.CLOSED:
            return
        tally = self._crowd.tally
        if self.phase in (Phase.CONNECTING, Phase.SHAKING):
            tally.refused += self.side == "c"
        elif how == "eof" and self._complete():
            tally.finished += 1
        else:
            tally.closed[str(self.close_code or how)] += 1
        self.phase = Phase.CLOSED
        self._crowd.gone(self)
        self.socket.close()

    def _complete(self) -> bool:
        agreed = self.close_code is None if self.terms.half else self.close_code == NORMAL
        return self.ended and self._incoming.ended and agreed

    def abandon(self) -> None:
        """Closes without an account: the process ends."""
        self.phase = Phase.CLOSED
        self.socket.close()

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        self._out += data
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = self.socket.send(self._out)
            del self._out[:sent]
        if self._out:
            return
        if self.phase is Phase.CLOSING and (self.side == "s" or self.terms.half):
            self._leave_when_flushed()
        elif self.ended and self.terms.half == self.side and self.phase is Phase.OPEN:
            self.socket.shutdown(socket.SHUT_WR)
