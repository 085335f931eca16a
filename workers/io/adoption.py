"""A tunnel as a record, and a record as a tunnel again: in another worker, or in its own worker's successor.

An adopted tunnel is counted on the rows that it was counted on before. Where this worker's configuration has
them no more, or not yet, stand-ins take their place: enough of a route, a server or a listener to count on,
and nothing that a new connection could find. Tunnels share them, and so does nobody else: they belong to the
plan that they were made beside, and end with it and with the tunnels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from workers.contract.cells import ListenerCell, RouteCell, ServerCell
from workers.contract.entries import EntryCell
from workers.contract.snapshot import ListenerSpec, PoolSpec, RouteSpec, ServerSpec
from workers.contract.tunnels import VERSION, StreamRecord, TunnelRecord
from workers.core.frames import FrameTracker
from workers.io import records
from workers.io.listening import Listener
from workers.io.plan import Route
from workers.io.pool import Pool
from workers.io.server import Server
from workers.io.sockets import Socket, adopted
from workers.io.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.io.pipe import Pipe
    from workers.io.plan import Plan
    from workers.io.worker import Worker

# What a client sent is told in the log when a tunnel ends; in a record it is cut to what a message can carry.
MAX_TARGET: Final = 32 * 1024
MAX_FIELD: Final = 1024
# Stand-ins that are remembered, so that the next tunnel can share them.
MAX_STAND_INS: Final = 256

_BASES: Final = int(EntryCell.CLIENT_READ)

Row = tuple[int, int]  # slot and owner
Bytes = bytes | memoryview


class NotAdopted(ValueError):
    """The record is none that this code can make a tunnel of; the text says why."""


# --- from a tunnel to a record -----------------------------------------------------------------------


def describe(tunnel: Tunnel) -> TunnelRecord:
    """The record of a live tunnel, with its place on this worker's ledger."""
    record = records.identity(tunnel)
    area = tunnel.worker.keeping.area
    bases: tuple[int, int, int, int] | None = None
    serial = 0
    if tunnel.entry >= 0:
        at = area.entry(tunnel.entry)
        client_read, client_written, server_read, server_written = area.cells[at + _BASES : at + _BASES + 4]
        bases = (client_read, client_written, server_read, server_written)
        serial = area.serial(tunnel.entry)
    return msgspec.structs.replace(
        record,
        host=record.host[:MAX_FIELD],
        target=record.target[:MAX_TARGET],
        request_id=record.request_id[:MAX_FIELD],
        bases=bases,
        entry=tunnel.entry,
        serial=serial,
        client=_stream(tunnel.from_client),
        server=_stream(tunnel.from_server),
    )


def _stream(pipe: Pipe) -> StreamRecord:
    stream = StreamRecord() if pipe.tracker is None else followed(pipe.tracker)
    return msgspec.structs.replace(
        stream, position=pipe.total, shift=pipe.shift, ended=pipe.ended, waiting=len(pipe.out)
    )


def followed(tracker: FrameTracker) -> StreamRecord:
    """Where a stream stands among its frames."""
    return StreamRecord(
        messages=tracker.messages,
        left=0 if tracker.lost else tracker.left,
        ends_message=tracker.ends_message,
        head=tracker.head,
        close_code=tracker.close_code,
        lost=tracker.lost,
    )


# --- and back ----------------------------------------------------------------------------------------


def adopt(
    worker: Worker, record: TunnelRecord, client_fd: int, server_fd: int, waiting: tuple[Bytes, Bytes]
) -> Tunnel:
    """A tunnel as `record` says, on these descriptors, which are its own from now on; `waiting` is what the
    server and the client are still to be sent, the client's stream first. Nothing is relayed or counted
    before `enter`. Raises `NotAdopted`, and then the descriptors are the caller's still."""
    if record.version != VERSION:
        raise NotAdopted(f"its record is of version {record.version}, this code reads {VERSION}")
    if len(record.pool.servers) != 1:
        raise NotAdopted(f"its record names {len(record.pool.servers)} servers")
    if (record.client.waiting, record.server.waiting) != tuple(map(len, waiting)):
        raise NotAdopted("other bytes wait than its record says")
    homes = _homes(worker)
    server = homes.server(record.pool)
    route = homes.route(record.route, server.pool)
    listener = homes.listener(record.listener)
    client, server_sock = _sockets(client_fd, server_fd)
    tunnel = Tunnel(
        worker, client, server_sock, route, server, listener, record.settings, address=record.address,
        host=record.host, target=record.target, request_id=record.request_id, started=record.started,
    )  # fmt: skip
    tunnel.open = False  # until it enters
    tunnel.shared = True
    tunnel.seen = record.seen
    tunnel.closer = record.closer
    tunnel.logged = record.logged
    _restore(tunnel.from_client, record.client, waiting[0])
    _restore(tunnel.from_server, record.server, waiting[1])
    return tunnel


def _sockets(*fds: int) -> list[Socket]:
    found: list[Socket] = []
    try:
        for fd in fds:
            found.append(adopted(fd))
    except OSError as error:
        for sock in found:
            sock.detach()
        raise NotAdopted(f"what came for it are no sockets: {error}") from None
    return found


def _restore(pipe: Pipe, stream: StreamRecord, waiting: Bytes) -> None:
    pipe.position = stream.position
    pipe.told_bytes = stream.position - stream.untold
    pipe.shift = stream.shift
    pipe.told_messages = stream.messages
    pipe.ended = stream.ended
    pipe.out = waiting
    if pipe.tracker is not None:
        follow(pipe.tracker, stream)


def follow(tracker: FrameTracker, stream: StreamRecord) -> None:
    """Makes a new tracker go on where `stream` stands."""
    tracker.messages = stream.messages
    tracker.close_code = stream.close_code
    if stream.lost:
        tracker.lose()
    else:
        tracker.resume(stream.left, stream.head, stream.ends_message)


def enter(tunnel: Tunnel) -> None:
    """Counts an adopted tunnel among this worker's, and relays it."""
    tunnel.listener.joined()
    tunnel.server.begin()
    tunnel.appear()
    for pipe in (tunnel.from_client, tunnel.from_server):
        if pipe.told_bytes != pipe.total:
            # What its worker received in the last moment of its life.
            pipe.told = False
            pipe.worker.untold.append(pipe)
    resume(tunnel)


def drop(tunnel: Tunnel) -> None:
    """Lets go of an adopted tunnel that did not enter: somebody else has it, and its two ends notice
    nothing."""
    tunnel.client.close()
    tunnel.server_sock.close()
    tunnel.forget()


# --- a tunnel on its way -----------------------------------------------------------------------------


def pause(tunnel: Tunnel) -> None:
    """Leaves the tunnel as it is, until `resume`: nothing reads or writes it, and nothing closes it."""
    tunnel.open = False
    tunnel.worker.wheel.drop(tunnel)
    tunnel.from_client.detach()
    tunnel.from_server.detach()


def resume(tunnel: Tunnel) -> None:
    """Relays (again)."""
    tunnel.open = True
    tunnel.from_client.attach()
    tunnel.from_server.attach()
    tunnel.set_deadline()


def depart(tunnel: Tunnel) -> None:
    """Another worker has it: takes it off this worker's figures, which is no end of it, and closes this
    worker's copies of the sockets, of which the two ends notice nothing."""
    tunnel.vanish()
    tunnel.client.close()
    tunnel.server_sock.close()
    tunnel.forget()


# --- what it is counted on ---------------------------------------------------------------------------


class Homes:
    """Finds what a plan has for adopted tunnels, by rows, and the stand-ins for what it doesn't have."""

    __slots__ = ("_listeners", "_routes", "_servers", "_stand_ins", "_worker")

    def __init__(self, worker: Worker, plan: Plan) -> None:
        self._worker = worker
        self._routes = {_row(route.spec): route for route in plan.routes}
        self._servers = {_row(server.spec): server for pool in plan.pools.values() for server in pool.servers}
        self._listeners = {_row(listener.spec): listener for listener in worker.listeners.values()}
        self._stand_ins: dict[tuple[type, Row], Route | Server | Listener] = {}

    def server(self, spec: PoolSpec) -> Server:
        """The one server of `spec`. Raises `NotAdopted` where the scoreboard has no such row."""
        row = _row(spec.servers[0])
        found = self._servers.get(row) or self._stand_ins.get((Server, row))
        if found is None:
            capacity = self._worker.board.capacity
            _check("server", row, capacity.servers)
            _check("pool", _row(spec), capacity.pools)
            slab = self._worker.slab
            if slab.cells[slab.server_base(row[0]) + ServerCell.OWNER] < row[1]:
                slab.own_server(*row)
            found = Pool(self._worker, spec, {}).servers[0]
            found.retired = True
            self._keep(found, row)
        assert isinstance(found, Server)
        return found

    def route(self, spec: RouteSpec, pool: Pool) -> Route:
        """The route of `spec`. Raises `NotAdopted` where the scoreboard has no such row."""
        row = _row(spec)
        found = self._routes.get(row) or self._stand_ins.get((Route, row))
        if found is None:
            _check("route", row, self._worker.board.capacity.routes)
            slab = self._worker.slab
            if slab.cells[slab.route_base(row[0]) + RouteCell.OWNER] < row[1]:
                slab.own_route(*row)
            found = Route(self._worker, spec, pool)
            self._keep(found, row)
        assert isinstance(found, Route)
        return found

    def listener(self, spec: ListenerSpec) -> Listener:
        """The listener of `spec`. Raises `NotAdopted` where the scoreboard has no such row."""
        row = _row(spec)
        found = self._listeners.get(row) or self._stand_ins.get((Listener, row))
        if found is None:
            _check("listener", row, self._worker.board.capacity.listeners)
            slab = self._worker.slab
            if slab.cells[slab.listener_base(row[0]) + ListenerCell.OWNER] < row[1]:
                slab.own_listener(*row)
            found = Listener(self._worker, spec, None)
            self._keep(found, row)
        assert isinstance(found, Listener)
        return found

    def __len__(self) -> int:
        """How many stand-ins are remembered."""
        return len(self._stand_ins)

    def _keep(self, found: Route | Server | Listener, row: Row) -> None:
        if len(self._stand_ins) >= MAX_STAND_INS:
            self._stand_ins.clear()  # who uses them has them
        self._stand_ins[type(found), row] = found

    def end(self, kept: Mapping[Row, Server]) -> None:
        """Another plan takes over, which has the servers `kept`: a stand-in may have been one of them."""
        for found in self._stand_ins.values():
            if isinstance(found, Server):
                found.retire(kept.get(_row(found.spec)))


def _homes(worker: Worker) -> Homes:
    plan = worker.current
    if plan is None:
        raise NotAdopted("this worker has no configuration yet")
    if plan.homes is None:
        plan.homes = Homes(worker, plan)
    return plan.homes


def _row(spec: ListenerSpec | RouteSpec | PoolSpec | ServerSpec) -> Row:
    return spec.slot, spec.owner


def _check(kind: str, row: Row, capacity: int) -> None:
    if not 0 <= row[0] < capacity:
        raise NotAdopted(f"it is counted on the row {row[0]} of a {kind}, and there are {capacity}")
