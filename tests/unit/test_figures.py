"""Figures: sums over all slabs that were used, and nothing of another owner's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest

from lb.control.figures import Figures
from tests.harness.board import CLIENT, GET, ONE, SNAPSHOT, TWO, Hand, fill
from tests.harness.control import StandInControl
from workers.contract.cells import EjectReason, StateCell, WorkerCell
from workers.contract.scoreboard import Capacity
from workers.contract.series import CLOSE_4XXX, Kind

LISTENER, ROUTE, POOL = SNAPSHOT.listeners[0], SNAPSHOT.routes[0], SNAPSHOT.pools[0]


@pytest.fixture
def control() -> Iterator[StandInControl]:
    with StandInControl(SNAPSHOT) as made:
        yield made


@pytest.fixture
def figures(control: StandInControl) -> Figures:
    fill(control)
    return Figures(control.board, control.snapshot)


def test_workers_are_those_that_ever_were(figures: Figures) -> None:
    first, second = figures.workers()
    assert (first.slot, first.pid, first.connections, first.faults, first.cpu) == (0, 1000, 2, 7, 12.0)
    assert (second.slot, second.pid, second.tunnels, second.tls_13) == (2, 1002, 30, 90)
    assert (second.movable, second.crash_safe, second.paced) == (900, 910, 920)
    assert first.migrations["retire", "refused"] == 107
    assert figures.migrations["upgrade", "unproved"] == 11 * 113
    assert len(figures.migrations) == 16


def test_a_listener(figures: Figures) -> None:
    found = figures.listener(LISTENER)
    assert (found.connections, found.accepted) == (165, 176)
    assert found.rejected_by == {"no_route": 198, "other": 187}


def test_a_route(figures: Figures) -> None:
    found = figures.route(ROUTE)
    assert found.requests_by == {("GET", 200): 440, ("POST", 0): 451, ("other", 404): 462, ("other", 0): 231}
    assert found.requests == sum(found.requests_by.values())
    assert found.closes == {
        ("client", 1000): 473, ("server", CLOSE_4XXX): 484, ("client", 1): 495, ("other", 0): 242,
    }  # fmt: skip
    assert (found.in_flight, found.tunnels, found.client_bytes, found.server_bytes) == (209, 220, 264, 275)
    assert (found.client_messages, found.server_messages) == (286, 297)
    assert found.handshakes == {
        "accepted": 330, "rejected": 341, "refused": 352, "failed": 363, "client_closed": 374,
    }  # fmt: skip
    assert found.seconds.counts == (0, 22, *[0] * 13, 11)
    assert (found.seconds.seconds, found.handshake.seconds, found.tunnel.seconds) == (1100.0, 22.0, 11e6)
    assert found.tunnel.counts[-1] == 44
    assert (found.ping.seconds, found.ping.counts[3], found.ping_timeouts) == (77.0, 66, 308)


def test_a_pool(figures: Figures) -> None:
    found = figures.pool(POOL)
    assert (found.retries, found.queued) == (517, 528)
    assert found.sticky == {"hit": 550, "new": 561, "invalid": 572, "moved": 583}
    assert (found.connect.counts[2], found.connect.seconds) == (55, 11.0)
    assert (found.admitted, found.admission_refused, found.admission_queued) == (616, 627, 638)


def test_a_server(figures: Figures) -> None:
    found = figures.server(POOL, ONE)
    assert (found.connections, found.idle, found.tunnels, found.active) == (1100, 330, 671, 693)
    assert (found.errors, found.retries) == (704, 682)
    assert found.responses == {200: 737, 503: 748, 0: 715}
    assert found.errors_by == {"connect_failed": 759, "other": 726}
    assert figures.tunnels_by_worker(ONE) == {0: 61, 2: 610}
    assert figures.server(POOL, TWO).connections == 0
    assert figures.tunnels_by_worker(TWO) == {}


def test_tunnels_stay_at_zero_where_there_was_one(figures: Figures) -> None:
    assert figures.tunnels() == {
        (ROUTE.name, "main", "one"): 506,
        (ROUTE.name, "main", TWO.name): 0,
        (ROUTE.name, "main", "other"): 253,
    }


def test_rows_of_a_reload_are_shown_while_they_have_tunnels(control: StandInControl) -> None:
    route, server = SNAPSHOT.retired_routes[0], SNAPSHOT.retired_servers[0]
    hand = Hand(control, 1)
    hand.route(route, in_flight=2)
    hand.series(Kind.TUNNELS, route, ONE.slot, 3).series(Kind.TUNNELS, route, TWO.slot, 0)
    hand.series(Kind.TUNNELS, ROUTE, server.slot, 5)
    found = Figures(control.board, control.snapshot)
    assert found.tunnels() == {("old", "main", "one"): 3, (ROUTE.name, "main", "gone"): 5}
    assert found.in_flight(route) == 2
    hand.series(Kind.TUNNELS, ROUTE, server.slot, -5).series(Kind.TUNNELS, route, ONE.slot, -3)
    assert Figures(control.board, control.snapshot).tunnels() == {}


def test_what_belongs_to_another_owner_is_left_out(control: StandInControl) -> None:
    fill(control)
    later = msgspec.structs.replace(
        SNAPSHOT,
        listeners=(msgspec.structs.replace(LISTENER, owner=9),),
        routes=(msgspec.structs.replace(ROUTE, owner=9),),
        pools=(msgspec.structs.replace(POOL, owner=9, servers=(msgspec.structs.replace(ONE, owner=9), TWO)),),
    )
    found = Figures(control.board, later)
    assert found.listener(later.listeners[0]).accepted == 0
    assert found.listener(later.listeners[0]).rejected_by == {}
    route = found.route(later.routes[0])
    assert (route.requests, route.closes, route.client_bytes, sum(route.seconds.counts)) == (0, {}, 0, 0)
    assert found.pool(later.pools[0]).retries == 0
    server = found.server(later.pools[0], later.pools[0].servers[0])
    assert (server.connections, server.responses, server.errors_by) == (0, {}, {})
    assert found.tunnels() == {}
    assert found.tunnels_by_worker(later.pools[0].servers[0]) == {}


def test_checks_and_ejections_are_those_of_the_owner(control: StandInControl) -> None:
    control.states.eject("main", ONE, EjectReason.GATEWAY_FAILURES, 5.0, 1)
    base = control.board.state_base(ONE.slot)
    control.board.control[base + StateCell.CHECKS] = 7
    control.board.control[base + StateCell.CHECKS + 6] = 8
    found = Figures(control.board, control.snapshot)
    assert found.checks(ONE) == {
        "ok": 7, "connect": 0, "timeout": 0, "tls": 0, "status": 0, "body": 0, "protocol": 8,
    }  # fmt: skip
    assert found.ejections(ONE) == {"consecutive_errors": 0, "gateway_failures": 1, "connect_failures": 0}
    other = msgspec.structs.replace(ONE, owner=9)
    assert not any(found.checks(other).values())
    assert not any(found.ejections(other).values())


def test_labels_that_are_not_known_are_other(control: StandInControl) -> None:
    hand = Hand(control, 0)
    hand.series(Kind.REQUESTS, ROUTE, 60 << 10 | 200, 1).series(Kind.CLOSES, ROUTE, 7 << 13 | 1000, 2)
    hand.series(Kind.ERRORS, ONE, 9999, 3)
    found = Figures(control.board, control.snapshot)
    assert found.route(ROUTE).requests_by == {("other", 200): 1}
    assert found.route(ROUTE).closes == {("other", 1000): 2}
    assert found.server(POOL, ONE).errors_by == {"other": 3}


def test_a_slab_that_nobody_used_is_not_touched(control: StandInControl) -> None:
    control.board.slab(3).cells[WorkerCell.CONNECTIONS] = 5  # no heartbeat: nobody's
    Hand(control, 1).series(Kind.REQUESTS, ROUTE, GET | 200, 1).series(Kind.CLOSES, ROUTE, CLIENT | 1000, 1)
    assert [worker.slot for worker in Figures(control.board, control.snapshot).workers()] == [1]


def test_reading_makes_no_pages_of_unused_slabs() -> None:
    with StandInControl(SNAPSHOT, capacity=Capacity()) as control:
        Hand(control, 5).route(ROUTE, client_bytes=1)
        before = os.fstat(control.board.fd).st_blocks * 512
        found = Figures(control.board, control.snapshot)
        assert found.route(ROUTE).client_bytes == 1
        assert (found.pool(POOL).retries, found.server(POOL, ONE).errors, found.tunnels()) == (0, 0, {})
        grown = os.fstat(control.board.fd).st_blocks * 512 - before
        # One page of each slab tells that it is unused; a few more are of the one that is used.
        assert grown <= (Capacity().workers + 16) * os.sysconf("SC_PAGE_SIZE")


def test_a_damaged_number_of_series_is_not_read_beyond_the_end(control: StandInControl) -> None:
    hand = Hand(control, 0).series(Kind.REQUESTS, ROUTE, GET | 200, 1)
    hand.cells[WorkerCell.SERIES] = 2**40
    assert Figures(control.board, control.snapshot).route(ROUTE).requests_by == {("GET", 200): 1}
