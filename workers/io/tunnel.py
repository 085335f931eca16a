"""An established WebSocket: two sockets, two directions (`pipe`), and a small record, so that it can move."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from workers.contract.cells import NANOSECONDS, TUNNEL_SECONDS, RouteCell, ServerCell, WorkerCell
from workers.contract.native import add, observe
from workers.contract.snapshot import WebSocketSpec
from workers.core.wheel import NEVER, Timed
from workers.io.endpoint import reset, sever
from workers.io.ping import Pings
from workers.io.pipe import Pipe, TlsPipe
from workers.io.tls import Stream, TlsStream

if TYPE_CHECKING:
    from workers.io.closing import Closing
    from workers.io.listening import Listener
    from workers.io.plan import Route
    from workers.io.response_side import ResponseSide
    from workers.io.server import Server
    from workers.io.worker import Worker

_add: Final = add
_observe: Final = observe
_TUNNEL_BOUNDS: Final = tuple([int(bound * NANOSECONDS) for bound in TUNNEL_SECONDS])
_WORKER_TUNNELS: Final = int(WorkerCell.TUNNELS)
_MOVABLE: Final = int(WorkerCell.MOVABLE)
_ROUTE_TUNNELS: Final = int(RouteCell.TUNNELS)
_TUNNEL_SUM: Final = int(RouteCell.TUNNEL_SUM)
_TUNNEL: Final = int(RouteCell.TUNNEL)
_SERVER_TUNNELS: Final = int(ServerCell.TUNNELS)


class Tunnel(Timed):
    """See the module. `seen` is when a byte passed last, on the worker's coarse clock; `started` is exact.
    Both are monotonic, in seconds."""

    __slots__ = (
        "address", "client", "closer", "closing", "code", "entry", "from_client",
        "from_server", "gauge", "host", "listener", "logged", "movable", "number", "open", "pings",
        "request_id", "route", "seen", "server", "server_sock", "settings", "shared", "started", "target",
        "worker",
    )  # fmt: skip

    def __init__(
        self,
        worker: Worker,
        client: Stream,
        server_sock: Stream,
        route: Route,
        server: Server,
        listener: Listener,
        settings: WebSocketSpec,
        *,
        address: str,
        host: bytes,
        target: bytes,
        request_id: bytes,
        started: float,
    ) -> None:
        self.worker = worker
        self.route = route
        self.server = server
        self.listener = listener
        self.settings = settings
        self.address = address
        self.host = host
        self.target = target
        self.request_id = request_id
        self.started = started
        self.seen = worker.now
        self.closer = ""
        self.closing: Closing | None = None  # while our own Close frames are on their way
        self.code: int | None = None  # that we close with
        self.number = worker.next_tunnel()
        self.gauge = self.route.tunnels_place(self.server)
        self.logged = False
        self.open = True
        self.entry = -1  # on the ledger
        self.shared = False  # whether another process has, or had, duplicates of its sockets
        self.deadline = NEVER
        self.due = NEVER
        self.client = client
        self.server_sock = server_sock
        plain = not isinstance(client, TlsStream) and not isinstance(server_sock, TlsStream)
        self.movable = plain  # whether another worker could have it
        client_pipe = TlsPipe if isinstance(client, TlsStream) else Pipe
        server_pipe = TlsPipe if isinstance(server_sock, TlsStream) else Pipe
        self.from_client = client_pipe(self, "client", client, server_sock)
        self.from_server = server_pipe(self, "server", server_sock, client)
        ping = self.settings.ping
        self.pings = Pings(self, ping) if ping is not None and self.settings.inspect else None

    @property
    def close_code(self) -> int | None:
        """The code of the first Close frame; `None` without one."""
        if self.code is not None:
            return self.code
        for pipe in (self.from_client, self.from_server):
            if pipe.name == self.closer and pipe.tracker is not None and pipe.tracker.close_code is not None:
                return pipe.tracker.close_code
        codes = [pipe.tracker.close_code for pipe in (self.from_client, self.from_server) if pipe.tracker]
        return next((code for code in codes if code is not None), None)

    @property
    def crash_safe(self) -> bool:
        """Whether it outlives its worker with every byte that is in flight."""
        shelved = all(pipe.shelf >= 0 or not pipe.out for pipe in (self.from_client, self.from_server))
        return self.settings.crash_safe and self.worker.keeping.holds(self) and shelved

    def begin(self, early: bytes, rest: bytes) -> None:
        """Starts relaying; `early` and `rest` are what client and server sent behind their heads."""
        self.appear()
        self.worker.keeping.opened(self)
        for pipe, data in ((self.from_server, rest), (self.from_client, early)):
            if self.open:
                pipe.resume()
                pipe.push(data)

    def appear(self) -> None:
        """Counts it among the tunnels that are there."""
        self._count(1)
        self.worker.tunnels[self.number] = self
        self.set_deadline()

    def vanish(self) -> None:
        """The opposite: it ends here, or another worker has it. Its sockets are open still and to be closed
        now, and watched by nobody."""
        self.open = False
        worker = self.worker
        worker.wheel.drop(self)
        if self.shared:
            self.from_client.detach()
            self.from_server.detach()
        else:
            worker.loop.forget(self.from_client.source_fd)
            worker.loop.forget(self.from_server.source_fd)
            self.from_client.reading = self.from_server.reading = False
        del worker.tunnels[self.number]
        self._count(-1)
        self.server.end()
        self.listener.closed()

    def forget(self) -> None:
        """Lets go of what would hold it in memory: the pipes know the tunnel, and it them, a circle that only
        the collector would find."""
        for pipe in (self.from_client, self.from_server):
            pipe.on_chunk = None
            pipe.tell()
            del pipe.tunnel
        self.closing = self.pings = None

    def stay(self) -> None:
        """It can't be handed over any more: it is about to end."""
        if self.movable:
            self.movable = False
            self.worker.slab.cells[_MOVABLE] -= 1

    def _count(self, change: int) -> None:
        cells = self.worker.slab.cells
        places = self.route.base + _ROUTE_TUNNELS, self.server.base + _SERVER_TUNNELS, self.gauge
        _add(cells, change, _WORKER_TUNNELS, *places)
        if self.movable:
            cells[_MOVABLE] += change

    # --- time ----------------------------------------------------------------------------------------

    def set_deadline(self) -> None:
        """Arms the wheel for the next of its limits."""
        settings = self.settings
        deadline = NEVER
        if settings.idle is not None:
            deadline = self.seen + settings.idle
        if settings.max_age is not None:
            deadline = min(deadline, self.started + settings.max_age)
        self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        if self.pings is not None and self.pings.due < deadline:
            deadline = self.pings.due
        if deadline != NEVER:
            self.worker.wheel.arm(self, deadline)

    def on_deadline(self) -> None:
        """Idle, too old, or to be pinged; or our Close was not answered."""
        if self.closing is not None:
            self.close(survivor=self.closing.dead)
            return
        settings = self.settings
        now = self.worker.now
        if settings.idle is not None and now >= self.seen + settings.idle:
            self.worker.pacer.idle(self)
            return
        if self.pings is not None and now >= self.pings.due:
            self.pings.look(now)
            if self._ending:
                return
        if settings.max_age is None or now < self.started + settings.max_age:
            self.set_deadline()
            return
        self.worker.pacer.too_old(self, settings.max_age)
        if not self._ending:
            # It may be silent before its turn comes.
            self._arm(NEVER if settings.idle is None else self.seen + settings.idle)

    # --- the end -------------------------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        """Whether it has ended, or is about to: our Close is on its way."""
        return not self.open or self.closing is not None

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
        self.vanish()
        if self.entry >= 0:
            # The keeper has duplicates, so closing alone would say nothing to anybody.
            for stream in (self.client, self.server_sock):
                sever(stream, failed=stream is survivor)
            self.worker.keeping.release(self)
        elif survivor is not None:
            reset(survivor)
        self.client.close()
        self.server_sock.close()
        self._count_end()
        if self.logged and self.worker.journal is not None:
            self.worker.journal.tunnel(self)
        self.forget()

    def _count_end(self) -> None:
        cells = self.worker.slab.cells
        nanoseconds = int((time.monotonic() - self.started) * NANOSECONDS)
        base = self.route.base
        _observe(cells, base + _TUNNEL_SUM, base + _TUNNEL, _TUNNEL_BOUNDS, nanoseconds)
        self.route.count_close(self.closer or "none", self.close_code)


def open_tunnel(exchange: ResponseSide, head: bytes, rest: bytes) -> None:
    """Turns an exchange whose 101 was checked into a tunnel. `head` is the 101 for the client, `rest` what
    the server sent behind its own."""
    client = exchange.client
    server = exchange.server
    assert server is not None
    client.write(head)
    upstream = exchange.upstream
    if client.fd < 0 or upstream is None:
        return  # the client left just now; that has ended the exchange
    early = client.held
    unsent = client.out
    exchange.sent += len(head)
    route, request = exchange.route, exchange.head
    tunnel = Tunnel(
        exchange.worker, client.release(), upstream.release(), route, server, client.listener,
        route.spec.websocket, address=client.address, host=request.host, target=request.target,
        request_id=exchange.request_id, started=time.monotonic(),
    )  # fmt: skip
    tunnel.logged = exchange.tunnel_opened()
    if unsent:
        tunnel.from_server.shift += len(unsent)
        tunnel.from_server.keep(unsent)
    tunnel.begin(early, rest)
