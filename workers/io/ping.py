"""Dead peers: a side that is silent for `websocket.ping` seconds is asked for a sign of life.

A Ping goes out between two frames, and the Pong that answers it is taken out again, so neither end sees
anything of the other's. While such a Pong is awaited, its direction is read frame by frame: each frame is
looked at (MSG_PEEK) before it is taken. TLS can't be looked into, so there up to 16 bytes are held back.

Nothing is noted per chunk. When its time comes a side's position is compared with what it was; the time of
the last byte is the tunnel's, whichever side it came from. So where one side talks and the other one is
silent, that one is asked after one to two times `ping`.
"""

from __future__ import annotations

import os
import socket
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, cast

from workers.contract.cells import NANOSECONDS, PING_SECONDS, RouteCell
from workers.core.ping import PAYLOAD, PEEKED, frame_size, ping_frame, pong_size
from workers.core.wheel import NEVER
from workers.io.closing import close_half_dead
from workers.io.ping_side import Side
from workers.io.tls import TlsStream, TlsTruncated

if TYPE_CHECKING:
    from workers.io.pipe import Pipe
    from workers.io.sockets import Socket
    from workers.io.tunnel import Tunnel

_PING_SUM: Final = int(RouteCell.PING_SUM)
_PING: Final = int(RouteCell.PING)
_TIMEOUTS: Final = int(RouteCell.PING_TIMEOUTS)
# A Pong that has come in part is looked at again after a moment, so often; it would wake us all the time.
_MOMENT: Final = 0.02
_MOMENTS: Final = 25


class Pings:
    """What a tunnel holds whose route has `ping`; `due` is when `look` is to be called."""

    __slots__ = ("_sides", "_tunnel", "due", "every")

    def __init__(self, tunnel: Tunnel, every: float) -> None:
        self._tunnel = tunnel
        self.every = every
        self.due = tunnel.worker.now + every
        client, server = tunnel.from_client, tunnel.from_server
        self._sides = (Side(client, server, self.due), Side(server, client, self.due))

    def look(self, now: float) -> None:
        """Asks who was silent for too long; ends the tunnel where one that was asked is still silent."""
        for side in self._sides:
            if now >= side.due:
                self._look_at(side, now)
                if not self._tunnel.open or self._tunnel.closing is not None:
                    return
        self.due = min(side.due for side in self._sides)

    def stop(self) -> None:
        """Asks nobody any more, and gives back what it holds: the tunnel is about to be closed."""
        for side in self._sides:
            side.due = NEVER
            self._forget(side)

    # --- when its time has come ----------------------------------------------------------------------

    def _look_at(self, side: Side, now: float) -> None:
        side.due = now + self.every
        source = side.source
        if not side.can_answer:
            side.due = NEVER
            self._forget(side)
        elif source.total != side.total or side.held or side.moments:
            # It lives. What became of our Pong, if it comes at all, is of no interest any more.
            side.total = source.total
            self._forget(side)
            if not source.out:
                side.due = self._tunnel.seen + self.every
                if side.due <= now:
                    side.due = now + self.every
                    self._ask(side)
        elif source.out:
            self._forget(side)  # it is us who don't read what it says
        elif side.awaited:
            if not (side.speaks or side.reads()):
                self._give_up(side)
        elif not side.wanted:  # which waits for the end of a frame that is not its own
            self._ask(side)

    def _give_up(self, side: Side) -> None:
        tunnel = self._tunnel
        tunnel.worker.slab.cells[tunnel.route.base + _TIMEOUTS] += 1
        tunnel.worker.log.info(
            "no answer to a ping", side=side.source.name, route=tunnel.route.name, client=tunnel.address,
            server=tunnel.server.spec.name,
        )  # fmt: skip
        close_half_dead(tunnel, side.source.name, 1001, "the other side does not answer")

    # --- asking --------------------------------------------------------------------------------------

    def _ask(self, side: Side) -> None:
        tracker = side.sink.tracker
        assert tracker is not None
        if tracker.at_boundary:
            self._send(side)
        else:
            side.wanted = True
            side.sink.read_by(lambda: self._read(side.sink))

    def _send(self, side: Side) -> None:
        side.wanted = False
        side.due = self._tunnel.worker.now + self.every
        side.awaited = os.urandom(PAYLOAD)
        # A frame to a server is masked, as a client's must be.
        frame = ping_frame(side.awaited, os.urandom(4) if side.source.name == "server" else b"")
        side.sent_at = time.monotonic_ns()
        side.source.read_by(lambda: self._read(side.source))
        side.sink.inject(frame)
        if self._tunnel.open:
            side.reads()

    def _answered(self, side: Side) -> None:
        nanoseconds = time.monotonic_ns() - side.sent_at
        tunnel = self._tunnel
        cells = tunnel.worker.slab.cells
        base = tunnel.route.base
        cells[base + _PING_SUM] += nanoseconds
        cells[base + _PING + bisect_left(PING_SECONDS, nanoseconds / NANOSECONDS)] += 1
        side.awaited = b""
        side.moments = 0
        side.total = side.source.total
        side.due = tunnel.worker.now + self.every
        self._let_go(side.source)

    def _forget(self, side: Side) -> None:
        """Nothing is asked of it, and no answer awaited: what it held back goes on as it is."""
        side.awaited = b""
        side.moments = 0
        side.wanted = False
        held, side.held = side.held, b""
        if held:
            self._relay(side.source, held)
        if self._tunnel.open:
            self._let_go(side.source)
            self._let_go(side.sink)

    def _let_go(self, pipe: Pipe) -> None:
        """Gives the direction back to the relay, where neither side needs it any more."""
        if pipe.on_chunk is not None and not any(
            (side.awaited and side.source is pipe) or (side.wanted and side.sink is pipe)
            for side in self._sides
        ):
            pipe.read_by(None)

    # --- reading frame by frame ----------------------------------------------------------------------

    def _read(self, pipe: Pipe) -> None:
        """Reads in place of the relay: no further than to the end of a frame."""
        tunnel = self._tunnel
        if not tunnel.open or pipe.ended:
            return
        if pipe.out:
            pipe.pause()
            return
        tracker = pipe.tracker
        assert tracker is not None
        try:
            if not tracker.at_boundary:
                self._pass_on(pipe, tracker.to_boundary)
            elif isinstance(pipe.source, TlsStream):
                self._unwrap(pipe, pipe.source)
            else:
                self._peek(pipe, cast("Socket", pipe.source))
        except (BlockingIOError, InterruptedError):
            return
        except TlsTruncated:
            self._ends(pipe)
            return
        except OSError:
            tunnel.broken(pipe.name)
            return
        source = pipe.source
        if (
            tunnel.open
            and pipe.reading
            and isinstance(source, TlsStream)
            and (source.pending() or source.deferred is not None)
        ):
            # The kernel knows nothing of what OpenSSL holds already.
            pipe.worker.loop.call_soon(pipe.on_chunk or pipe.on_readable)

    def _side_of(self, pipe: Pipe) -> Side:
        """The side whose words `pipe` carries."""
        return self._sides[0] if self._sides[0].source is pipe else self._sides[1]

    def _pass_on(self, pipe: Pipe, most: int) -> None:
        relay = pipe.worker.relay
        size = pipe.receive(min(most, len(relay)))
        if not size:
            self._ends(pipe)
            return
        self._tunnel.seen = pipe.worker.now
        pipe.send(relay[:size])
        self._at_end_of(pipe)

    def _relay(self, pipe: Pipe, data: bytes) -> None:
        """Passes on what was taken before."""
        self._tunnel.seen = pipe.worker.now
        pipe.count(data, len(data))
        pipe.send(data)
        self._at_end_of(pipe)

    def _at_end_of(self, pipe: Pipe) -> None:
        """After a piece of a frame: a Ping may go out behind it."""
        tracker = pipe.tracker
        assert tracker is not None
        for side in self._sides:
            if side.wanted and side.sink is pipe and self._tunnel.open:
                if not side.can_answer:
                    self._forget(side)
                elif tracker.at_boundary:
                    self._send(side)
                    self._let_go(pipe)

    def _ends(self, pipe: Pipe) -> None:
        """The end came: the relay finds it, too, and knows what to do. (It is told at each read.)"""
        for side in self._sides:
            self._forget(side)
        if self._tunnel.open:
            pipe.on_readable()

    def _peek(self, pipe: Pipe, source: Socket) -> None:
        """Between two frames: takes our Pong, or passes the next frame on."""
        side = self._side_of(pipe)
        head = source.recv(PEEKED, socket.MSG_PEEK)
        if not head:
            self._ends(pipe)
            return
        size = pong_size(head, side.awaited) if side.awaited else 0
        if size > 0:
            pipe.swallow(size)
            self._answered(side)
        elif size < 0 and side.moments < _MOMENTS:
            side.moments += 1
            pipe.pause()
            pipe.worker.loop.call_later(_MOMENT, lambda: self._after_moment(pipe))
        else:
            self._pass_on(pipe, frame_size(head) or len(head))

    def _after_moment(self, pipe: Pipe) -> None:
        if self._tunnel.open and not pipe.out:
            pipe.resume()

    def _unwrap(self, pipe: Pipe, source: TlsStream) -> None:
        """The same under TLS: what is looked at has to be taken; what may be our Pong is held back."""
        side = self._side_of(pipe)
        room = bytearray(PEEKED - len(side.held))
        size = source.recv_into(room)
        if not size:
            self._ends(pipe)
            return
        data = side.held + bytes(room[:size])
        side.held = b""
        tunnel = self._tunnel
        tracker = pipe.tracker
        assert tracker is not None
        while data and tunnel.open:
            ours = pong_size(data, side.awaited) if side.awaited and tracker.at_boundary else 0
            if ours < 0:
                side.held = data
                return
            size = ours or frame_size(data) or len(data)
            piece, data = data[:size], data[size:]
            if ours:
                pipe.count(piece, size)
                pipe.shift -= size
                self._answered(side)
            else:
                self._relay(pipe, piece)
