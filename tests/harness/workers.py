"""Workers without processes: the test is their master, and drives their loops turn by turn in its own thread.

Their sockets are real ones; nothing happens between two turns, so a test can stop anywhere in the middle.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from workers.contract import messages, snapshot
from workers.contract.bells import Bells
from workers.contract.cells import ListenerCell, RouteCell, ServerCell, WorkerCell
from workers.contract.entries import State
from workers.contract.ledger import Ledger
from workers.contract.messages import AnyMessage
from workers.contract.scoreboard import Capacity, Scoreboard
from workers.contract.series import Kind, unpack
from workers.contract.snapshot import ListenerSpec, PoolSpec, RouteSpec, ServerSpec, Snapshot, WebSocketSpec
from workers.contract.tunnels import Drop, Hold, TunnelRecord, receive_keeping
from workers.io.adoption import adopt, enter
from workers.io.tunnel import Tunnel
from workers.io.worker import Worker

CAPACITY = Capacity(workers=4, listeners=4, routes=8, pools=8, servers=8, series=64)
LISTENER = ListenerSpec(slot=1, owner=1, name="public", bind=("127.0.0.1:1",))
ROUTE = RouteSpec(slot=2, owner=1, name="all", pool="main")
POOL = PoolSpec(
    slot=3,
    owner=1,
    name="main",
    servers=(ServerSpec(slot=4, owner=1, name="one", host="127.0.0.1", port=9),),
    balance="least-conn",
)
SNAPSHOT = Snapshot(generation=1, listeners=(LISTENER,), routes=(ROUTE,), pools=(POOL,))


class DrivenWorker:
    """One of them; `said` is what it told the master and the test has not looked at."""

    def __init__(self, site: Site, slot: int) -> None:
        self.channel, theirs = messages.pair()
        self.worker = Worker(slot, theirs, site.board, site.bells, site.ledger)
        self._theirs = theirs
        self.slot = slot
        self.said: list[AnyMessage] = []
        self.keeper: StandInKeeper | None = None
        self.worker.start()
        self.running = True

    def tell(self, message: AnyMessage, fds: list[int] | None = None) -> None:
        """Says `message` to the worker, and closes `fds` here."""
        messages.send(self.channel, message, fds or ())
        for fd in fds or ():
            os.close(fd)

    def turn(self) -> None:
        """One turn of its loop, and what it says."""
        if self.running:
            loop = self.worker.loop
            loop.call_soon(loop.stop)
            loop.run()
        while True:
            try:
                received = messages.receive(self.channel)
            except BlockingIOError:
                break
            if received is None:
                break
            self.said.append(received[0])
        if self.keeper is not None:
            self.keeper.turn()

    def keep(self) -> StandInKeeper:
        """Gives it a keeper."""
        ours, theirs = messages.pair()
        self.keeper = StandInKeeper(ours)
        self.tell(messages.Keep(), [theirs.detach()])
        return self.keeper

    def die(self) -> None:
        """As if it were killed: nothing is said or unregistered any more, and every descriptor is closed."""
        self.running = False
        worker = self.worker
        for tunnel in worker.tunnels.values():
            tunnel.client.close()
            tunnel.server_sock.close()
        worker.tunnels.clear()
        for transfer in worker.handovers.transfers:
            transfer.channel.close()
        if worker.keeping.channel is not None:
            worker.keeping.channel.close()

    def close(self) -> None:
        """Ends it at once."""
        if self.running:
            self.worker.stop(0)
            self.worker.keeping.lose()
            self.worker.close()
        self.running = False
        self._theirs.close()
        self.channel.close()
        if self.keeper is not None:
            self.keeper.close()

    def gauges(self) -> dict[str, int]:
        """All gauges of this worker that are not zero."""
        worker = self.worker
        cells, slab = worker.slab.cells, worker.slab
        found: dict[str, int] = {
            cell.name.lower(): cells[cell]
            for cell in (
                WorkerCell.CONNECTIONS,
                WorkerCell.TUNNELS,
                WorkerCell.MOVABLE,
                WorkerCell.SAFE,
                WorkerCell.PACED,
            )
        }
        for row in range(CAPACITY.listeners):
            found[f"listener{row}"] = cells[slab.listener_base(row) + ListenerCell.CONNECTIONS]
        for row in range(CAPACITY.routes):
            found[f"route{row}"] = cells[slab.route_base(row) + RouteCell.TUNNELS]
        for row in range(CAPACITY.servers):
            found[f"active{row}"] = cells[slab.server_base(row) + ServerCell.ACTIVE]
            found[f"server{row}"] = cells[slab.server_base(row) + ServerCell.TUNNELS]
        for place in range(slab.series_base, slab.series_base + 2 * cells[WorkerCell.SERIES], 2):
            if (key := unpack(cells[place])).kind == Kind.TUNNELS:
                found[f"series{key.row}/{key.detail}"] = cells[place + 1]
        return {name: value for name, value in found.items() if value}

    def entries(self) -> list[State]:
        """The states of the ledger's entries, FREE ones left out."""
        area = self.worker.keeping.area
        states = [State(area.state(index)) for index in range(area.entries)]
        return [state for state in states if state is not State.FREE]


class StandInKeeper:
    """What a keeper holds, by entry."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.held: dict[int, list[int]] = {}

    def turn(self) -> None:
        """Takes in what the worker says."""
        while True:
            try:
                received = receive_keeping(self.channel)
            except BlockingIOError:
                return
            if received is None:
                return
            message, fds = received
            match message:
                case Hold(tunnels=tunnels):
                    for index, (entry, _) in enumerate(tunnels):
                        self.drop(entry)
                        self.held[entry] = fds[2 * index : 2 * index + 2]
                case Drop(entries=entries):
                    for entry in entries:
                        self.drop(entry)

    def drop(self, entry: int) -> None:
        """Closes what is held of `entry`."""
        for fd in self.held.pop(entry, ()):
            os.close(fd)

    def close(self) -> None:
        """Ends it."""
        self.turn()
        for entry in tuple(self.held):
            self.drop(entry)
        self.channel.close()


class Site:
    """Some workers, their scoreboard and their ledger."""

    def __init__(self, slots: int = 2, served: Snapshot = SNAPSHOT) -> None:
        self.board = Scoreboard.create(CAPACITY)
        self.bells = Bells.create()
        self.ledger = Ledger.create(CAPACITY.workers, 256)
        self.ends: list[socket.socket] = []
        self.workers = [DrivenWorker(self, slot) for slot in range(slots)]
        for worker in self.workers:
            self.serve(worker, served)

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            for worker in self.workers:
                stack.callback(worker.close)
        for end in self.ends:
            end.close()
        for fd in (self.bells.workers, self.bells.control, self.board.fd, self.ledger.fd):
            os.close(fd)
        if error is None:
            assert not any(one.worker.slab.cells[WorkerCell.FAULTS] for one in self.workers)

    def until(self, condition: Callable[[], Any], what: str, within: float = 15.0) -> Any:
        """Drives all workers until `condition` holds."""
        deadline = time.monotonic() + within
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
            self.turn()
        return value

    def turn(self) -> None:
        """One turn of each worker."""
        for worker in self.workers:
            worker.turn()

    def answer(self, worker: DrivenWorker, kind: type[AnyMessage]) -> Any:
        """Waits for a message of `kind` from `worker`; those before it are forgotten."""

        def come() -> AnyMessage | None:
            while worker.said:
                message = worker.said.pop(0)
                if isinstance(message, kind):
                    return message
            return None

        return self.until(come, f"worker {worker.slot} says {kind.__name__}")

    def serve(self, worker: DrivenWorker, served: Snapshot) -> None:
        """Has `worker` serve a configuration, by the messages of a reload."""
        fd = os.memfd_create("snapshot")
        os.write(fd, snapshot.encode(served))
        generation = served.generation
        worker.tell(messages.Prepare(generation=generation, roles=(messages.SnapshotFd(),)), [fd])
        self.answer(worker, messages.Prepared)
        worker.tell(messages.Commit(generation=generation))
        self.answer(worker, messages.Committed)

    def tunnel(
        self,
        worker: DrivenWorker,
        *,
        age: float = 0.0,
        unix: bool = False,
        buffer: int | None = None,
        **fields: Any,
    ) -> tuple[Tunnel, socket.socket, socket.socket]:
        """A tunnel in `worker`, `age` seconds old, with the client's and the server's own sockets
        (non-blocking). `fields` are of its record; `buffer` is the size of the sockets' buffers."""
        client, ours = connected(buffer=buffer)
        server, theirs = connected(unix=unix, buffer=buffer)
        self.ends += (client, server)
        now = time.monotonic()
        record = {"settings": WebSocketSpec(inspect=False), "started": now - age, "seen": now, **fields}
        made = adopt(
            worker.worker,
            TunnelRecord(listener=LISTENER, route=ROUTE, pool=POOL, **record),
            ours.detach(),
            theirs.detach(),
            (b"", b""),
        )
        enter(made)
        worker.worker.keeping.opened(made)
        return made, client, server

    def hand_over(self, giver: DrivenWorker, taker: DrivenWorker, count: int = 1000, **order: Any) -> Any:
        """A whole hand-over; what the giver answers."""
        self.begin(giver, taker, count, **order)
        return self.answer(giver, messages.Given)

    def begin(self, giver: DrivenWorker, taker: DrivenWorker, count: int = 1000, **order: Any) -> None:
        """The orders of a hand-over."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reason = order.setdefault("reason", "rebalance")
        taker.tell(messages.Take(transfer=1, giver=giver.slot, reason=reason), [theirs.detach()])
        giver.tell(messages.Give(transfer=1, taker=taker.slot, count=count, **order), [ours.detach()])


def connected(*, unix: bool = False, buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection, non-blocking."""
    if unix:
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if buffer is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            near = socket.create_connection(listener.getsockname())
            ends = near, listener.accept()[0]
    for end in ends:
        end.setblocking(False)
        if buffer is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    return ends
