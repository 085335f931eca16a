"""Closing an established WebSocket politely: a Close frame to both ends (RFC 6455 section 5.5.1 and 7.1.2).

A frame can be added only between two frames, so each direction is relayed up to the end of the frame that it
is in, then our Close goes out and nothing more: what the other side sends after it would not be read by
anybody. The tunnel ends when both sides have answered with their Close, or after `PATIENCE` seconds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from workers.contract.entries import CLOSE_SEEN_CLIENT, CLOSE_SEEN_SERVER
from workers.core.frames import close_frame
from workers.io.tls import Stream, TlsStream, TlsTruncated

if TYPE_CHECKING:
    from workers.io.pipe import Pipe
    from workers.io.tunnel import Tunnel

PATIENCE: Final = 5.0
_SEEN: Final = {"client": CLOSE_SEEN_CLIENT, "server": CLOSE_SEEN_SERVER}


class Closing:
    """What a tunnel holds while it is being closed."""

    __slots__ = ("dead", "frames", "tunnel", "waiting")

    def __init__(self, tunnel: Tunnel, code: int, reason: str) -> None:
        self.tunnel = tunnel
        # By the pipe that carries it. A frame to a server is masked, as a client's must be (section 5.3).
        self.frames: dict[str, bytes] = {
            "server": close_frame(code, reason, b""),
            "client": close_frame(code, reason, os.urandom(4)),
        }
        self.waiting = {"client", "server"}  # whose own Close has not come
        self.dead: Stream | None = None  # the side that is told nothing, and cut off in the end

    def go_on(self, seen: int) -> None:
        """Goes on where another worker was: `seen` says from which sides nothing is to be waited for."""
        tunnel = self.tunnel
        for pipe in (tunnel.from_client, tunnel.from_server):
            if pipe.closed:
                del self.frames[pipe.name]
            if seen & _SEEN[pipe.name]:
                self.waiting.discard(pipe.name)
        self.begin()

    def give_up(self, name: str) -> None:
        """Begins without the side `name`, which does not answer: nothing more is sent to it."""
        tunnel = self.tunnel
        sink = tunnel.from_server if name == "client" else tunnel.from_client
        self.dead = sink.sink
        self._is_through(name)
        del self.frames[sink.name]
        sink.give_up()
        sink.resume()
        self.begin()

    def begin(self) -> None:
        """Sends what can be sent at once, and waits for the rest."""
        tunnel = self.tunnel
        for pipe in (tunnel.from_server, tunnel.from_client):
            if tunnel.open:
                self._turn(pipe)
        if tunnel.open:
            self.look()

    def _turn(self, pipe: Pipe) -> None:
        """From relaying to closing, in one direction."""
        if pipe.ended:
            self._is_silent(pipe)
            return
        pipe.read_by(lambda: self._on_chunk(pipe))
        self._inject(pipe)

    def _inject(self, pipe: Pipe) -> None:
        """Sends our Close, where the direction stands between two frames; or nothing, where it has carried a
        Close already: nothing may follow that."""
        tracker = pipe.tracker
        assert tracker is not None
        if pipe.name not in self.frames or not tracker.at_boundary:
            return
        frame = self.frames.pop(pipe.name)
        if tracker.close_code is None:
            pipe.inject(frame, last=True)
        else:
            pipe.finish()
            self._is_through(pipe.name)

    def _is_through(self, name: str) -> None:
        """Nothing more is to be waited for from `name`, which a successor shall know, too."""
        self.waiting.discard(name)
        seen = sum(flag for side, flag in _SEEN.items() if side not in self.waiting)
        self.tunnel.worker.keeping.note_closing(self.tunnel, (self.tunnel.code or 0) | seen)

    def _is_silent(self, pipe: Pipe) -> None:
        """Nothing more comes from this side."""
        self.frames.pop(pipe.name, None)
        self._is_through(pipe.name)

    def _on_chunk(self, pipe: Pipe) -> None:
        """Reads on: to the end of the frame before our Close, and after it for the other's."""
        if not self.tunnel.open or pipe.ended:
            return
        before = pipe.name in self.frames
        tracker = pipe.tracker
        assert tracker is not None
        if before and pipe.out:
            pipe.pause()
            return
        relay = pipe.worker.relay
        # Before our Close no byte may be taken beyond the frame's end, since it could not be passed on.
        most = min(tracker.to_boundary, len(relay)) if before else len(relay)
        try:
            size = pipe.receive(most) if before else pipe.discard(most)
        except (BlockingIOError, InterruptedError):
            return
        except TlsTruncated:
            size = 0  # no close_notify: WebSocket's own Close says whether the end was meant
        except OSError:
            self.tunnel.failed(pipe.name)
            return
        if not size:
            pipe.ended = True
            pipe.pause()
            self._is_silent(pipe)
            self.look()
            return
        if before:
            pipe.send(relay[:size])
            if self.tunnel.open:
                self._inject(pipe)
        if self.tunnel.open and ((tracker.close_code is not None and tracker.at_boundary) or tracker.lost):
            self._is_through(pipe.name)
            self.look()
        source = pipe.source
        if isinstance(source, TlsStream) and (source.pending() or source.deferred is not None):
            # The kernel knows nothing of what OpenSSL holds already.
            pipe.worker.loop.call_soon(lambda: self._on_chunk(pipe))

    def may_fail(self, name: str) -> bool:
        """Whether the connection of `name` may fail: the other side was sent a Close in its name, or its own,
        so it knows that nothing more comes. What `name` was still to be sent is dropped then."""
        if name in self.frames:
            return False
        self._is_through(name)
        tunnel = self.tunnel
        source, sink = tunnel.from_client, tunnel.from_server
        if name == "server":
            source, sink = sink, source
        source.ended = True
        source.pause()
        self.frames.pop(sink.name, None)
        sink.give_up()
        self.look()
        if tunnel.open:
            sink.resume()
        return True

    def look(self) -> None:
        """Ends the tunnel where all is said and sent."""
        tunnel = self.tunnel
        unsent = tunnel.from_client.out or tunnel.from_server.out
        if tunnel.open and not self.waiting and not unsent:
            tunnel.close(survivor=self.dead)


def close_politely(tunnel: Tunnel, code: int, reason: str) -> None:
    """Closes `tunnel` with a Close frame to both ends; at once and without one where frames are not
    followed (`websocket.inspect = false`, or bytes that are no WebSocket)."""
    if not tunnel.open or tunnel.closing is not None:
        return
    trackers = (tunnel.from_client.tracker, tunnel.from_server.tracker)
    if any(tracker is None or tracker.lost for tracker in trackers):
        tunnel.stop()
        return
    closing = _begin(tunnel, code, reason)
    if closing is not None:
        closing.go_on(0)


def close_half_dead(tunnel: Tunnel, dead: str, code: int, reason: str) -> None:
    """Closes a tunnel whose side `dead` ("client" or "server") does not answer: the other one is told with a
    Close frame, that one is cut off. Frames have to be followed."""
    closing = _begin(tunnel, code, reason)
    if closing is not None:
        closing.give_up(dead)


def close_on(tunnel: Tunnel, code: int, seen: int) -> None:
    """Goes on closing what another worker closed; `seen` says whose answers have come (CLOSE_SEEN_*)."""
    if tunnel.from_client.tracker is None:
        tunnel.stop()
        return
    closing = _begin(tunnel, code, "", seen)
    if closing is not None:
        closing.go_on(seen)


def _begin(tunnel: Tunnel, code: int, reason: str, seen: int = 0) -> Closing | None:
    """Makes it a tunnel that is being closed; `None` where it ended in the attempt."""
    if tunnel.pings is not None:
        tunnel.pings.stop()
        if not tunnel.open:
            return None
    tunnel.closer = tunnel.closer or "lb"
    tunnel.code = code
    tunnel.stay()
    closing = Closing(tunnel, code, reason)
    tunnel.closing = closing
    tunnel.worker.wheel.drop(tunnel)
    tunnel.worker.wheel.arm(tunnel, tunnel.worker.now + PATIENCE)
    tunnel.worker.keeping.note_closing(tunnel, code | seen)
    return closing
