"""A scoreboard filled by hand, as workers would fill it, for tests of what reads it."""

from __future__ import annotations

import time

from tests.harness.control import StandInControl
from workers.contract.cells import ListenerCell, PoolCell, RouteCell, ServerCell, WorkerCell
from workers.contract.errors import CONNECT_FAILED, NO_ROUTE, REASON_INDEX
from workers.contract.scoreboard import Slab
from workers.contract.series import INITIATORS, METHODS, Kind, SeriesTable
from workers.contract.snapshot import (
    AdmissionSpec,
    CertificateSpec,
    EjectSpec,
    HealthSpec,
    ListenerSpec,
    ListenTls,
    PoolSpec,
    RetiredRow,
    RouteSpec,
    ServerSpec,
    Snapshot,
    StickySpec,
    WebSocketSpec,
)

GET = METHODS.index("GET") << 10
POST = METHODS.index("POST") << 10
OTHER = (len(METHODS) - 1) << 10
CLIENT = INITIATORS.index("client") << 13
SERVER = INITIATORS.index("server") << 13

ONE = ServerSpec(slot=4, owner=2, name="one", host="127.0.0.1", port=9001, weight=4)
TWO = ServerSpec(slot=5, owner=3, name="[::1]:9002", host="::1", port=9002)
SNAPSHOT = Snapshot(
    generation=3,
    listeners=(
        ListenerSpec(
            slot=1,
            owner=1,
            name="public",
            bind=("0.0.0.0:443",),
            tls=ListenTls(certificates=(CertificateSpec(name="a.pem", hosts=("a.test",), not_after=4e9),)),
        ),
    ),
    routes=(RouteSpec(slot=2, owner=2, name='ch"at', pool="main", websocket=WebSocketSpec(ping=25.0)),),
    pools=(
        PoolSpec(
            slot=3,
            owner=1,
            name="main",
            servers=(ONE, TWO),
            checks=(HealthSpec(), None),
            eject=EjectSpec(),
            sticky=StickySpec(kind="ip"),
            admission=AdmissionSpec(rate=500.0),
        ),
    ),
    retired_routes=(RetiredRow(slot=7, owner=1, name="old"),),
    retired_servers=(RetiredRow(slot=8, owner=1, name="gone", pool="main"),),
)


class Hand:
    """Counts in one worker's slab."""

    def __init__(self, control: StandInControl, slot: int, pid: int = 0) -> None:
        self.slab: Slab = control.board.slab(slot)
        self.cells = self.slab.cells
        self.cells[WorkerCell.HEARTBEAT] = time.monotonic_ns()
        self.cells[WorkerCell.PID] = pid
        self.table = SeriesTable(self.slab, control.board.capacity.series)

    def worker(self, **counts: int) -> Hand:
        """Adds to the worker's own cells, by their names in lower case."""
        for name, count in counts.items():
            self.cells[WorkerCell[name.upper()]] += count
        return self

    def listener(self, spec: ListenerSpec, **counts: int) -> Hand:
        """Adds to the listener's row."""
        base = self.slab.listener_base(spec.slot)
        self.slab.own_listener(spec.slot, spec.owner)
        for name, count in counts.items():
            self.cells[base + ListenerCell[name.upper()]] += count
        return self

    def route(self, spec: RouteSpec | RetiredRow, offset: int = 0, **counts: int) -> Hand:
        """Adds to the route's row; `offset` is for cells that are the first of several."""
        base = self.slab.route_base(spec.slot)
        self.slab.own_route(spec.slot, spec.owner)
        for name, count in counts.items():
            self.cells[base + RouteCell[name.upper()] + offset] += count
        return self

    def pool(self, spec: PoolSpec, offset: int = 0, **counts: int) -> Hand:
        """Adds to the pool's row."""
        base = self.slab.pool_base(spec.slot)
        self.slab.own_pool(spec.slot, spec.owner)
        for name, count in counts.items():
            self.cells[base + PoolCell[name.upper()] + offset] += count
        return self

    def server(self, spec: ServerSpec | RetiredRow, **counts: int) -> Hand:
        """Adds to the server's row."""
        base = self.slab.server_base(spec.slot)
        self.slab.own_server(spec.slot, spec.owner)
        for name, count in counts.items():
            self.cells[base + ServerCell[name.upper()]] += count
        return self

    def series(
        self, kind: Kind, spec: ListenerSpec | RouteSpec | ServerSpec | RetiredRow, detail: int, count: int
    ) -> Hand:
        """Adds to a series; the table has room."""
        self.cells[self.table.place(kind, spec.slot, detail, spec.owner, -1)] += count
        return self


def fill(control: StandInControl) -> None:
    """Two workers that have served `SNAPSHOT`; every figure is another one."""
    listener, route, pool = SNAPSHOT.listeners[0], SNAPSHOT.routes[0], SNAPSHOT.pools[0]
    for slot, times in ((0, 1), (2, 10)):
        hand = Hand(control, slot, pid=1000 + slot)
        hand.worker(connections=2 * times, tunnels=3 * times, accepted=4 * times, log_dropped=5 * times)
        hand.worker(accept_paused=6 * times, faults=7 * times, tls_12=8 * times, tls_13=9 * times)
        hand.worker(tls_failed=10 * times, tls_timeout=11 * times, cpu=12 * times * 10**9)
        hand.worker(series_full=13 * times, error_log_dropped=14 * times)
        hand.worker(movable=90 * times, safe=91 * times, paced=92 * times)
        hand.worker(longest_turn=93 * times * 10**9, long_turns=94 * times)
        for outcome in range(16):
            hand.cells[WorkerCell.MIGRATIONS + outcome] += (100 + outcome) * times
        hand.listener(listener, connections=15 * times, accepted=16 * times, other_rejected=17 * times)
        hand.series(Kind.REJECTED, listener, REASON_INDEX[NO_ROUTE], 18 * times)
        hand.route(route, in_flight=19 * times, tunnels=20 * times, other_requests=21 * times)
        hand.route(route, other_closes=22 * times, other_tunnels=23 * times, client_bytes=24 * times)
        hand.route(route, server_bytes=25 * times, client_messages=26 * times, server_messages=27 * times)
        for result in range(5):
            hand.route(route, result, handshakes=(30 + result) * times)
        hand.route(route, 1, seconds=2 * times).route(route, 15, seconds=times)
        hand.route(route, seconds_sum=100 * times * 10**9)
        hand.route(route, handshake=3 * times, handshake_sum=2 * times * 10**9)
        hand.route(route, 16, tunnel=4 * times).route(route, tunnel_sum=10**6 * times * 10**9)
        hand.route(route, 3, ping=6 * times).route(route, ping_sum=7 * times * 10**9)
        hand.route(route, ping_timeouts=28 * times)
        hand.series(Kind.REQUESTS, route, GET | 200, 40 * times).series(
            Kind.REQUESTS, route, POST, 41 * times
        )
        hand.series(Kind.REQUESTS, route, OTHER | 404, 42 * times)
        hand.series(Kind.CLOSES, route, CLIENT | 1000, 43 * times)
        hand.series(Kind.CLOSES, route, SERVER | 4000, 44 * times).series(
            Kind.CLOSES, route, CLIENT | 1, 45 * times
        )
        hand.series(Kind.TUNNELS, route, ONE.slot, 46 * times).series(Kind.TUNNELS, route, TWO.slot, 0)
        hand.pool(pool, retries=47 * times, queued=48 * times)
        hand.pool(pool, admitted=56 * times, admission_refused=57 * times, admission_queued=58 * times)
        for result in range(4):
            hand.pool(pool, result, sticky=(50 + result) * times)
        hand.pool(pool, 2, connect=5 * times).pool(pool, connect_sum=times * 10**9)
        hand.server(ONE, connections=100 * times, idle=30 * times, tunnels=61 * times, retries=62 * times)
        hand.server(
            ONE, active=63 * times, errors=64 * times, other_requests=65 * times, other_errors=66 * times
        )
        hand.series(Kind.RESPONSES, ONE, 200, 67 * times).series(Kind.RESPONSES, ONE, 503, 68 * times)
        hand.series(Kind.ERRORS, ONE, REASON_INDEX[CONNECT_FAILED], 69 * times)
