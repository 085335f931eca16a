"""Pings, and what happens to processes: frames of our own are part of the arithmetic that saves a tunnel."""

from __future__ import annotations

import functools
import os
import signal

import pytest

from lb.demo.load import Load
from lb.demo.messages import Terms
from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually
from tests.harness import websocket as ws
from tests.harness.chaos import Ordeal, tables, whole
from tests.harness.figures import Scrape
from tests.harness.gauges import Gauges
from tests.harness.pinged import Server, Side
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

ROUTE = {"websocket": {"ping": "2s"}}
RARE = 0.3  # messages a second: between two of them a side is pinged
LIBRARY = "tests.harness.library_traffic"


def pings(lb: LoadBalancer) -> float:
    """How many were answered so far."""
    return Scrape(lb).total("lb_websocket_ping_duration_seconds_count")


def pinged(sides: list[tuple[Side, Side]], times: int) -> bool:
    """Whether every side was, so many times at least."""
    return all(len(side.pings) >= times for pair in sides for side in pair)


@pytest.mark.parametrize("end", ["killed", "scaled down"])
def test_a_tunnel_with_pings_behind_it_and_one_on_its_way_goes_on(
    end: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = Server()
    workers = 1 if end == "killed" else 2
    # Long enough that none is given up while a process comes or goes.
    route = {"websocket": {"ping": "5s"}}
    lb = balancer(settings([upstream(server).address], workers=workers, route=route))
    ordeal = Ordeal(lb)
    sides: list[tuple[Side, Side]] = []
    raws = []
    for _ in range(6):
        raws.append(raw := ws.connect(lb.address))
        # The clients' answers are sent by hand, so that all are pinged at the same time.
        sides.append((Side(raw, masked=True, answers=False), server.sides.get(timeout=20)))
    for count in 1, 2:
        eventually(functools.partial(pinged, sides, count), "all are pinged")
        if count == 1:
            for client, _ in sides:
                client.send(client.pings[0], ws.PONG)
            ordeal.wait_held(6)
    if end == "killed":
        killed = ordeal.serving()[0]["pid"]
        os.kill(killed, signal.SIGKILL)
    else:
        ordeal.scale(1)
    for client, behind in sides:
        # It was another worker's ping, or another process's: the answer goes on, and does no harm.
        client.answers = True
        client.send(client.pings[-1], ws.PONG)
        client.send(b"up")
        behind.send(b"down")
        while (frame := behind.next()).opcode == ws.PONG:
            assert frame.payload in client.pings
        assert frame.payload == b"up"
        assert client.next().payload == b"down"
    before = [(len(client.pings), len(behind.pings)) for client, behind in sides]
    eventually(
        lambda: all(
            len(side[0].pings) > count[0] and len(side[1].pings) > count[1]
            for side, count in zip(sides, before, strict=True)
        ),
        "they are pinged again",
    )
    for raw, (client, behind) in zip(raws, sides, strict=True):
        client.send((1000).to_bytes(2, "big"), ws.CLOSE)
        assert client.next().close_code == 1000
        assert behind.over.wait(20)
        raw.close()
    assert "unproved" not in lb.stderr
    Gauges(lb).wait_all_zero()


def test_the_library_at_both_ends_with_little_traffic(balancer: StartBalancer) -> None:
    with Load(clients=LIBRARY, serving=LIBRARY) as load:
        lb = balancer(tables(load, workers=2, route=ROUTE))
        lb.wait_control()
        ordeal = Ordeal(lb)
        load.open(lb.port, 10, Terms(rate=RARE))
        load.open(lb.port, 10, Terms(rate=RARE, deflate=True))
        for number in range(1, 4):
            ordeal.wait_held(20)
            eventually(lambda n=number: pings(lb) >= 10 * n, "pings are answered")  # type: ignore[misc]
            ordeal.kill()
        eventually(lambda: pings(lb) >= 50, "pings are answered")
        whole(load.stop())
        assert Scrape(lb).total("lb_websocket_ping_timeouts_total") == 0
        ordeal.assert_nothing_is_left()
