"""An established WebSocket: two sockets, two directions, and a small record.

This is the hottest loop of the product. A chunk costs one recv into the worker's buffer and one send out of
it; nothing is allocated and nothing is kept, unless the reader is slow: then the rest of the one chunk is
kept, and its writer is read again when it is gone. A tunnel holds nothing but its sockets and the record, so
that it can be moved.
"""

from __future__ import annotations

import socket
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from workers.contract.cells import NANOSECONDS, TUNNEL_SECONDS, RouteCell, ServerCell, WorkerCell
from workers.core.frames import MEDIUM, MESSAGE, WHOLE, FrameTracker
from workers.core.wheel import NEVER
from workers.io.endpoint import has_failed, reset
from workers.io.tls import Stream, TlsStream, TlsTruncated

if TYPE_CHECKING:
    from workers.io.closing import Closing
    from workers.io.listening import Listener
    from workers.io.plan import Route
    from workers.io.response_side import ResponseSide
    from workers.io.server import Server
    from workers.io.worker import Worker

_WORKER_TUNNELS: Final = int(WorkerCell.TUNNELS)
_ROUTE_TUNNELS: Final = int(RouteCell.TUNNELS)
_CLIENT_BYTES: Final = int(RouteCell.CLIENT_BYTES)
_SERVER_BYTES: Final = int(RouteCell.SERVER_BYTES)
# From the cell of a direction's bytes to that of its messages.
_TO_MESSAGES: Final = int(RouteCell.CLIENT_MESSAGES) - _CLIENT_BYTES
_TUNNEL_SUM: Final = int(RouteCell.TUNNEL_SUM)
_TUNNEL: Final = int(RouteCell.TUNNEL)
_SERVER_TUNNELS: Final = int(ServerCell.TUNNELS)


class Pipe:
    """One direction of a tunnel. `out` is what the sink did not take; the source is paused meanwhile."""

    __slots__ = (
        "bytes", "cell", "ended", "name", "on_chunk", "out", "reading", "sink", "sink_fd", "source",
        "source_fd", "told", "told_bytes", "told_messages", "tracker", "tunnel", "worker",
    )  # fmt: skip

    def __init__(self, tunnel: Tunnel, name: str, source: Stream, sink: Stream, *, inspect: bool) -> None:
        self.tunnel = tunnel
        self.worker = tunnel.worker
        self.name = name  # whose words these are: "client" or "server"
        self.source = source
        self.sink = sink
        self.source_fd = source.fileno()
        self.sink_fd = sink.fileno()
        self.tracker = FrameTracker() if inspect else None
        self.cell = tunnel.route.base + (_CLIENT_BYTES if name == "client" else _SERVER_BYTES)
        self.bytes = 0
        # What the route's cells have of it. They are brought up to date once a tick: to count in them with
        # each small chunk would cost a tenth of relaying it.
        self.told = True  # all
        self.told_bytes = 0
        self.told_messages = 0
        self.out = b""
        self.on_chunk: Callable[[], None] | None = None  # what reads while the tunnel is being closed
        self.reading = False
        self.ended = False  # whether the source has sent its end

    def on_readable(self) -> None:
        """Relays one chunk."""
        if self.out:
            self.pause()
            return
        worker = self.worker
        try:
            size = self.source.recv_into(worker.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except TlsTruncated:
            size = 0  # no close_notify: WebSocket's own Close says whether the end was meant
        except OSError:
            self.tunnel.broken(self.name)
            return
        if size == 0:
            self._end()
            return
        self.bytes += size
        if self.told:
            self.told = False
            worker.untold.append(self)
        tunnel = self.tunnel
        tunnel.seen = worker.now
        tracker = self.tracker
        if tracker is not None:
            buffer = worker.buffer
            second = buffer[1]
            if tracker.left > size:
                tracker.left -= size  # the middle of a long message
            elif (
                (size == WHOLE[second] or size == (buffer[2] << 8 | buffer[3]) + MEDIUM[second])
                and tracker.at_boundary
                and MESSAGE[buffer[0]]
            ):
                tracker.messages += 1  # nearly always: one message of less than 64 KiB and nothing else
            else:
                tracker.feed(buffer, 0, size)
                if tracker.close_code is not None and not tunnel.closer:
                    tunnel.closer = self.name
        view = worker.view
        try:
            sent = self.sink.send(view[:size])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            tunnel.sink_failed(self)
            return
        if sent < size:
            self.keep(bytes(view[sent:size]))

    def push(self, data: bytes) -> None:
        """Relays bytes that were read before the tunnel began."""
        if not data:
            return
        self.count(data, len(data))
        if self.out:
            self.out += data
        else:
            self.keep(data)

    def count(self, data: bytes | bytearray, size: int) -> None:
        """Takes the first `size` bytes of `data` into the figures; `on_readable` has that written out."""
        self.bytes += size
        if self.told:
            self.told = False
            self.worker.untold.append(self)
        tracker = self.tracker
        if tracker is not None:
            tracker.feed(data, 0, size)
            if tracker.close_code is not None and not self.tunnel.closer:
                self.tunnel.closer = self.name

    def tell(self) -> None:
        """Brings the route's cells up to date."""
        cells = self.worker.slab.cells
        cell = self.cell
        cells[cell] += self.bytes - self.told_bytes
        self.told_bytes = self.bytes
        messages = self.messages
        if messages != self.told_messages:
            cells[cell + _TO_MESSAGES] += messages - self.told_messages
            self.told_messages = messages
        self.told = True

    def keep(self, rest: bytes) -> None:
        """The kernel takes no more: the rest waits for it."""
        self.out = rest
        self.worker.loop.add_writer(self.sink_fd, self._on_writable)

    def _on_writable(self) -> None:
        try:
            if self.out:
                self.out = self.out[self.sink.send(self.out) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.tunnel.sink_failed(self)
            return
        self.tunnel.seen = self.worker.now
        if self.out:
            return
        self.worker.loop.remove_writer(self.sink_fd)
        tunnel = self.tunnel
        if tunnel.closing is not None:
            tunnel.closing.look()
            if not tunnel.open:
                return
        if tunnel.both_ended():
            tunnel.close()
        elif self.ended:
            self._pass_end()
        else:
            self.resume()

    def resume(self) -> None:
        """Reads the source (again)."""
        if not self.reading and not self.ended:
            self.reading = True
            self.worker.loop.add_reader(self.source_fd, self.on_chunk or self.on_readable)

    @property
    def messages(self) -> int:
        """WebSocket messages that passed; 0 where they are not looked at."""
        return self.tracker.messages if self.tracker is not None else 0

    def pause(self) -> None:
        """Leaves the source alone until the sink has taken what there is, or for good after its end; a reset
        of it is still heard of."""
        if self.reading:
            self.reading = False
            self.worker.loop.mute_reader(self.source_fd, self._on_hangup)

    def _on_hangup(self) -> None:
        tunnel = self.tunnel
        if tunnel.open and not self.reading and has_failed(self.source):
            tunnel.failed(self.name)

    def abandon(self) -> None:
        """Ends the tunnel at once."""
        self.tunnel.broken(self.name)

    def _end(self) -> None:
        self.ended = True
        tunnel = self.tunnel
        if not tunnel.closer:
            tunnel.closer = self.name
        if tunnel.both_ended():
            tunnel.close()  # which says it to both
            return
        self.pause()  # a reader left armed after the end spins
        if not self.out:
            self._pass_end()

    def _pass_end(self) -> None:
        """The source said all it has to say: the sink shall know."""
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:  # close_notify, sent in part
            self.worker.loop.add_writer(self.sink_fd, self._on_writable)
            return
        except OSError:
            self.tunnel.sink_failed(self)

    def close(self) -> None:
        """Unregisters what this direction watches."""
        self.reading = False
        self.worker.loop.remove_reader(self.source_fd)
        self.worker.loop.remove_writer(self.sink_fd)


class TlsPipe(Pipe):
    """A direction whose source is TLS: the kernel knows nothing of what OpenSSL holds already."""

    __slots__ = ()

    source: TlsStream

    def on_readable(self) -> None:
        super().on_readable()
        while self.reading and not self.out and self.source.deferred is not None:
            super().on_readable()

    def resume(self) -> None:
        super().resume()
        if self.reading and self.source.pending():
            self.worker.loop.call_soon(self._on_held)

    def _on_held(self) -> None:
        if self.reading and self.source.pending():
            (self.on_chunk or self.on_readable)()


class Tunnel:
    """See the module. `seen` is when a byte passed last, on the worker's coarse clock."""

    __slots__ = (
        "address", "client", "closer", "closing", "code", "deadline", "due", "from_client", "from_server",
        "gauge", "host", "listener", "logged", "number", "open", "request_id", "route", "seen", "server",
        "server_sock", "started", "target", "worker",
    )  # fmt: skip

    def __init__(self, exchange: ResponseSide, server: Server) -> None:
        client = exchange.client
        upstream = exchange.upstream
        assert upstream is not None
        self.worker: Worker = exchange.worker
        self.route: Route = exchange.route
        self.server = server
        self.listener: Listener = client.listener
        self.address = client.address
        self.target = exchange.head.target
        self.host = exchange.head.host
        self.request_id = exchange.request_id
        self.started = time.monotonic()
        self.seen = self.worker.now
        self.closer = ""
        self.closing: Closing | None = None  # while our own Close frames are on their way
        self.code: int | None = None  # that we close with
        self.number = self.worker.next_tunnel()
        self.gauge = self.route.tunnels_place(server)
        self.logged = False
        self.open = True
        self.deadline = NEVER
        self.due = NEVER
        inspect = self.route.spec.websocket.inspect
        self.client: Stream = client.release()
        self.server_sock: Stream = upstream.release()
        client_pipe = TlsPipe if isinstance(self.client, TlsStream) else Pipe
        server_pipe = TlsPipe if isinstance(self.server_sock, TlsStream) else Pipe
        self.from_client = client_pipe(self, "client", self.client, self.server_sock, inspect=inspect)
        self.from_server = server_pipe(self, "server", self.server_sock, self.client, inspect=inspect)

    @property
    def close_code(self) -> int | None:
        """The code of the first Close frame; `None` without one."""
        if self.code is not None:
            return self.code
        for pipe in (self.from_client, self.from_server):
            if pipe.name == self.closer and pipe.tracker is not None and pipe.tracker.close_code is not None:
                return pipe.tracker.close_code
        codes = (pipe.tracker.close_code for pipe in (self.from_client, self.from_server) if pipe.tracker)
        return next((code for code in codes if code is not None), None)

    def begin(self, early: bytes, rest: bytes) -> None:
        """Starts relaying; `early` and `rest` are what client and server sent behind their heads."""
        self._count(1)
        self.worker.tunnels[self.number] = self
        self._set_deadline()
        for pipe, data in ((self.from_server, rest), (self.from_client, early)):
            if self.open:
                pipe.resume()
                pipe.push(data)

    def _count(self, change: int) -> None:
        cells = self.worker.slab.cells
        cells[_WORKER_TUNNELS] += change
        cells[self.route.base + _ROUTE_TUNNELS] += change
        cells[self.server.base + _SERVER_TUNNELS] += change
        cells[self.gauge] += change

    # --- time ----------------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        spec = self.route.spec.websocket
        deadline = NEVER
        if spec.idle is not None:
            deadline = self.seen + spec.idle
        if spec.max_age is not None:
            deadline = min(deadline, self.started + spec.max_age)
        if deadline != NEVER:
            self.worker.wheel.arm(self, deadline)

    def on_deadline(self) -> None:
        """Idle, or too old; or our Close was not answered."""
        if self.closing is not None:
            self.close()
            return
        spec = self.route.spec.websocket
        now = self.worker.now
        if (spec.idle is not None and now >= self.seen + spec.idle) or (
            spec.max_age is not None and now >= self.started + spec.max_age
        ):
            self.stop()
            return
        self._set_deadline()

    # --- the end -------------------------------------------------------------------------------------

    def both_ended(self) -> bool:
        """Whether both sides have sent their ends, and all before them was passed on."""
        client, server = self.from_client, self.from_server
        return client.ended and server.ended and not (client.out or server.out)

    def sink_failed(self, pipe: Pipe) -> None:
        """The sink of `pipe` does not take bytes any more: its owner is gone."""
        self.failed("server" if pipe.name == "client" else "client")

    def failed(self, name: str) -> None:
        """The connection of `name` failed, which ends the tunnel if `name` had not said its Close."""
        if self.closing is None or not self.closing.may_fail(name):
            self.broken(name)

    def broken(self, name: str) -> None:
        """The connection of `name` failed: the other side must not take that for an end."""
        if not self.open:
            return
        if not self.closer:
            self.closer = "none"
        self.close(survivor=self.server_sock if name == "client" else self.client)

    def stop(self) -> None:
        """The load balancer ends it: an end to both sides."""
        if self.open:
            self.closer = self.closer or "lb"
            self.close()

    def close(self, survivor: Stream | None = None) -> None:
        """Ends the tunnel; `survivor` is the side that is told by a reset that this is no proper end."""
        self.open = False
        worker = self.worker
        worker.wheel.drop(self)
        self.from_client.close()
        self.from_server.close()
        if survivor is not None:
            reset(survivor)
        self.client.close()
        self.server_sock.close()
        del worker.tunnels[self.number]
        self._count(-1)
        self._count_end()
        self.server.end()
        self.listener.closed()
        if self.logged and worker.journal is not None:
            worker.journal.tunnel(self)
        # The pipes know the tunnel, and it them: a circle that only the collector would find.
        for pipe in (self.from_client, self.from_server):
            pipe.on_chunk = None
            pipe.tell()
            del pipe.tunnel
        self.closing = None

    def _count_end(self) -> None:
        cells = self.worker.slab.cells
        seconds = time.monotonic() - self.started
        base = self.route.base
        cells[base + _TUNNEL_SUM] += int(seconds * NANOSECONDS)
        cells[base + _TUNNEL + bisect_left(TUNNEL_SECONDS, seconds)] += 1
        self.route.count_close(self.closer or "none", self.close_code)


def open_tunnel(exchange: ResponseSide, head: bytes, rest: bytes) -> None:
    """Turns an exchange whose 101 was checked into a tunnel. `head` is the 101 for the client, `rest` what
    the server sent behind its own."""
    client = exchange.client
    server = exchange.server
    assert server is not None
    client.write(head)
    if client.fd < 0 or exchange.upstream is None:
        return  # the client left just now; that has ended the exchange
    early = client.held
    unsent = client.out
    exchange.sent += len(head)
    tunnel = Tunnel(exchange, server)
    tunnel.logged = exchange.tunnel_opened()
    if unsent:
        tunnel.from_server.keep(unsent)
    tunnel.begin(early, rest)
