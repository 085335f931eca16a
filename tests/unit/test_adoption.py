"""Records of tunnels and tunnels of records; what adopted ones are counted on, whatever is configured."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.workers import LISTENER, POOL, ROUTE, SNAPSHOT, DrivenWorker, Site, connected
from workers.contract.cells import RouteCell, ServerCell
from workers.contract.snapshot import PoolSpec, ServerSpec, Snapshot, WebSocketSpec
from workers.contract.tunnels import StreamRecord, TunnelRecord, decode_record, encode_record
from workers.core.frames import FrameTracker, close_frame
from workers.io import adoption
from workers.io.adoption import MAX_STAND_INS, NotAdopted, adopt, describe, enter
from workers.io.tunnel import Tunnel

OTHER = PoolSpec(
    slot=5,
    owner=2,
    name="other",
    servers=(ServerSpec(slot=6, owner=2, name="two"),),
    on_removed="paced-close",
)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(1) as made:
        yield made


def record(**fields: object) -> TunnelRecord:
    now = time.monotonic()
    made = TunnelRecord(
        listener=LISTENER, route=ROUTE, pool=POOL, settings=WebSocketSpec(), started=now, seen=now
    )
    return msgspec.structs.replace(made, **fields)


def adopted(site: Site, made: TunnelRecord, waiting: tuple[bytes, bytes] = (b"", b"")) -> Tunnel:
    """A tunnel of that record; its ends are closed with the site."""
    (client, ours), (server, theirs) = connected(), connected()
    site.ends += (client, server)
    return adopt(site.workers[0].worker, made, ours.detach(), theirs.detach(), waiting)


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.sampled_from(
                [b"\x82\x7e\x01\x00" + bytes(256), b"\x88\x02\x03\xe8", close_frame(3001, "x", b"abcd")]
            ),
        ),
        max_size=6,
    ),
    cut=st.integers(0, 400),
)
def test_a_followed_stream_goes_on_from_its_record(data: list[bytes], cut: int) -> None:
    """A tracker that was recorded in the middle ends as one that never was."""
    stream = b"".join(data)
    cut = min(cut, len(stream))
    first, whole = FrameTracker(), FrameTracker()
    first.feed(stream, 0, cut)
    whole.feed(stream, 0, cut)
    second = FrameTracker()
    saved = decode_record(encode_record(record(client=adoption.followed(first))))
    adoption.follow(second, saved.client)
    for tracker in (second, whole):
        tracker.feed(stream, cut, len(stream))
    for name in ("messages", "close_code", "lost", "left", "at_boundary", "head", "ends_message"):
        assert getattr(second, name) == getattr(whole, name), name


def test_a_record_makes_the_same_tunnel(site: Site) -> None:
    client = StreamRecord(position=5000, shift=-7, messages=3, left=70, ends_message=1, waiting=2)
    server = StreamRecord(position=1 << 40, shift=30, messages=9, head=b"\x81", close_code=1001, ended=True)
    made = record(
        client=client,
        server=server,
        settings=WebSocketSpec(idle=5.0, max_age=50.0, crash_safe=False),
        address="192.0.2.1",
        host=b"chat.test",
        target=b"/x?y",
        request_id=b"7f",
        closer="server",
        logged=True,
    )
    tunnel = adopted(site, made, (b"ab", b""))
    again = decode_record(encode_record(describe(tunnel)))
    for name in TunnelRecord.__struct_fields__:
        if name not in ("listener", "route", "pool"):
            assert getattr(again, name) == getattr(made, name), name
    for name in ("listener", "route", "pool"):
        found, wanted = getattr(again, name), getattr(made, name)
        assert (found.slot, found.owner, found.name) == (wanted.slot, wanted.owner, wanted.name)
    assert not site.workers[0].gauges()  # it has not entered
    adoption.drop(tunnel)


def test_what_clients_sent_is_cut_to_what_a_message_carries(site: Site) -> None:
    tunnel = adopted(site, record(target=b"/" * 1_000_000, host=b"h" * 9999, request_id=b"i" * 9999))
    assert len(encode_record(describe(tunnel))) < 40_000
    assert len(tunnel.target) == 1_000_000
    adoption.drop(tunnel)


def test_it_is_counted_where_it_was(site: Site) -> None:
    (one,) = site.workers
    tunnel = adopted(site, record())
    worker = one.worker
    assert tunnel.route is next(iter(worker.plan.routes))
    assert tunnel.server is worker.plan.pools["main"].servers[0]
    assert tunnel.listener is worker.listeners["public"]
    enter(tunnel)
    assert one.gauges() == {
        "connections": 1, "tunnels": 1, "movable": 1, "listener1": 1, "route2": 1, "active4": 1, "server4": 1,
        "series2/4": 1,
    }  # fmt: skip
    assert worker.plan.pools["main"].scores == [2.0]  # one there is, and one to come
    tunnel.stop()
    assert not one.gauges()
    assert worker.plan.pools["main"].scores == [1.0]


def test_figures_begin_where_the_record_stands(site: Site) -> None:
    """What came before was counted by others."""
    (one,) = site.workers
    tunnel = adopted(site, record(client=StreamRecord(position=5000, messages=3)))
    enter(tunnel)
    base = tunnel.route.base
    tunnel.stop()
    cells = one.worker.slab.cells
    assert cells[base + RouteCell.CLIENT_BYTES] == cells[base + RouteCell.CLIENT_MESSAGES] == 0


def test_stand_ins_for_what_is_not_configured(site: Site) -> None:
    (one,) = site.workers
    worker = one.worker
    other = record(
        listener=msgspec.structs.replace(LISTENER, slot=2, owner=2, name="gone"),
        route=msgspec.structs.replace(ROUTE, slot=5, owner=2, name="gone", pool="other"),
        pool=OTHER,
    )
    first, second = adopted(site, other), adopted(site, other)
    assert first.server.retired
    assert first.server.pool.spec.on_removed == "paced-close"
    assert (first.server, first.route, first.listener) == (second.server, second.route, second.listener)
    enter(first)
    enter(second)
    assert one.gauges() == {
        "connections": 2, "tunnels": 2, "movable": 2, "listener2": 2, "route5": 2, "active6": 2, "server6": 2,
        "series5/6": 2,
    }  # fmt: skip
    slab = worker.slab
    assert slab.cells[slab.route_base(5) + RouteCell.OWNER] == 2
    assert slab.cells[slab.server_base(6) + ServerCell.OWNER] == 2
    first.stop()
    second.stop()
    assert not one.gauges()


def test_a_row_of_somebody_newer_stays_his(site: Site) -> None:
    (one,) = site.workers
    slab = one.worker.slab
    slab.own_server(6, 9)
    tunnel = adopted(site, record(pool=OTHER))
    assert slab.cells[slab.server_base(6) + ServerCell.OWNER] == 9
    adoption.drop(tunnel)


def test_a_stand_in_becomes_what_a_reload_brings(site: Site) -> None:
    """The other worker had that configuration already."""
    (one,) = site.workers
    tunnel = adopted(site, record(pool=OTHER))
    enter(tunnel)
    generation = msgspec.structs.replace(SNAPSHOT, generation=2, pools=(POOL, OTHER))
    site.serve(one, generation)
    server = one.worker.plan.pools["other"].servers[0]
    assert tunnel.server.current() is server
    fresh = adopted(site, record(pool=OTHER))
    assert fresh.server is server
    adoption.drop(fresh)
    tunnel.stop()
    assert not one.gauges()


def test_stand_ins_are_not_kept_beyond_their_tunnels_and_plan(site: Site) -> None:
    (one,) = site.workers
    routes = [msgspec.structs.replace(ROUTE, slot=5, owner=owner) for owner in range(2, MAX_STAND_INS + 10)]
    made = [adopted(site, record(route=route)) for route in routes]
    homes = one.worker.plan.homes
    assert homes is not None
    assert len(homes) <= MAX_STAND_INS
    for tunnel in made:
        adoption.drop(tunnel)
    site.serve(one, msgspec.structs.replace(SNAPSHOT, generation=2))
    assert one.worker.plan.homes is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": 2}, "version 2"),
        ({"pool": msgspec.structs.replace(POOL, servers=())}, "0 servers"),
        ({"client": StreamRecord(waiting=3)}, "other bytes wait"),
        ({"route": msgspec.structs.replace(ROUTE, slot=5000)}, "row 5000 of a route"),
        ({"listener": msgspec.structs.replace(LISTENER, slot=64)}, "row 64 of a listener"),
        ({"pool": msgspec.structs.replace(OTHER, slot=-1)}, "row -1 of a pool"),
    ],
)
def test_records_that_can_not_be_adopted(site: Site, fields: dict[str, object], why: str) -> None:
    """The descriptors stay the caller's."""
    client, server = connected()
    with client, server:
        with pytest.raises(NotAdopted, match=why):
            adopt(site.workers[0].worker, record(**fields), client.fileno(), server.fileno(), (b"", b""))
        client.getpeername()
        server.getpeername()
    assert not site.workers[0].gauges()


def test_what_is_no_socket_is_not_adopted(site: Site) -> None:
    client, server = connected()
    pipe = os.pipe()
    with client, server:
        with pytest.raises(NotAdopted, match="no sockets"):
            adopt(site.workers[0].worker, record(), client.fileno(), pipe[0], (b"", b""))
        client.getpeername()
    for fd in pipe:
        os.close(fd)


def test_a_worker_without_a_configuration_adopts_nothing() -> None:
    with Site(0) as site:
        fresh = DrivenWorker(site, 0)
        site.workers.append(fresh)
        with pytest.raises(NotAdopted, match="no configuration"):
            adopt(fresh.worker, record(), 0, 0, (b"", b""))


def test_a_tunnel_that_stands_still_hears_nothing(site: Site) -> None:
    (one,) = site.workers
    tunnel, client, server = site.tunnel(one)
    adoption.pause(tunnel)
    client.send(b"hello")
    tunnel.stop()
    for _ in range(3):
        site.turn()
    with pytest.raises(BlockingIOError):
        server.recv(1)
    assert one.gauges()["tunnels"] == 1
    adoption.resume(tunnel)
    site.until(lambda: _arrived(server) == b"hello", "it goes on")


def _arrived(sock: socket.socket) -> bytes:
    try:
        return sock.recv(100)
    except BlockingIOError:
        return b""


def test_a_snapshot_without_anything_has_stand_ins_for_all() -> None:
    with Site(1, Snapshot(generation=1)) as site:
        tunnel, client, _ = site.tunnel(site.workers[0])
        client.close()
        site.until(lambda: tunnel.from_client.ended or not tunnel.open, "its end is seen")
        if tunnel.open:
            tunnel.stop()
        assert not site.workers[0].gauges()


def test_the_addresses_of_a_name_are_no_part_of_a_record(site: Site) -> None:
    """A name may have hundreds; the ledger has room for a short record."""
    many = tuple(f"192.0.2.{number}" for number in range(256))
    server = msgspec.structs.replace(POOL.servers[0], host="name.test", addresses=many)
    site.serve(
        site.workers[0],
        msgspec.structs.replace(
            SNAPSHOT, generation=2, pools=(msgspec.structs.replace(POOL, servers=(server,)),)
        ),
    )
    tunnel = adopted(site, record())
    assert tunnel.server.spec.addresses == many
    assert len(encode_record(describe(tunnel))) < 400
    adoption.drop(tunnel)
