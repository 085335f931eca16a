"""Tunnels change workers while bytes flow through them, and neither end notices."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lb.demo.load import Load
from lb.demo.messages import Terms
from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually, open_clients
from tests.harness import websocket as ws
from tests.harness.chaos import Ordeal, tables, whole
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


@pytest.fixture
def load() -> Iterator[Load]:
    """Clients and servers."""
    with Load() as made:
        yield made


def tunnels(lb: LoadBalancer) -> list[int]:
    """The tunnels of each worker."""
    return [int(worker["tunnels"]) for worker in lb.status()["workers"]]


def go_on(load: Load, messages: int = 100) -> None:
    """Waits until so many more messages have come."""
    begun = load.account().received
    eventually(lambda: load.account().received >= begun + messages, "the traffic goes on")
    whole(load.account())


def test_the_tunnels_of_a_worker_that_leaves_go_on(balancer: StartBalancer, load: Load) -> None:
    """Full traffic, short and long messages, half-closed ones, slow readers at either end; and back again
    when there is another worker."""
    rules = {"tunnels": 2, "percent": 5, "pace": 500}
    lb = balancer(tables(load, workers=2, process={"rebalance": rules}))
    ordeal = Ordeal(lb)
    load.open(lb.port, 6, Terms(profile="flood"))
    load.open(lb.port, 20, Terms(rate=20))
    load.open(lb.port, 10, Terms(rate=20, deflate=True))
    for half in ("c", "s"):
        load.open(lb.port, 4, Terms(rate=10, half=half))
    for slow in ("c", "s"):
        load.open(lb.port, 2, Terms(profile="flood", slow=slow, read=200_000))
    everything = 48
    eventually(lambda: sum(tunnels(lb)) == everything, "all are open")
    for _ in range(3):
        assert all(tunnels(lb))
        lb.send_signal(signal.SIGTTOU)
        ordeal.wait_serving(1)
        assert tunnels(lb) == [everything]
        go_on(load)
        lb.send_signal(signal.SIGTTIN)
        ordeal.wait_serving(2)
        eventually(lambda: max(tunnels(lb)) - min(tunnels(lb)) <= 2, "the new one has its share")
        assert sum(tunnels(lb)) == everything
        go_on(load)
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_tunnels_to_unix_sockets_move(
    balancer: StartBalancer, upstream: StartUpstream, socket_folder: str
) -> None:
    server = upstream(ws.serve_echo, path=f"{socket_folder}/up")
    lb = balancer(settings([server.address], workers=2))
    with open_clients(lb.address, 20) as clients:
        for client in clients:
            ws.upgrade(client)
        eventually(lambda: sum(tunnels(lb)) == 20, "all are open")
        lb.send_signal(signal.SIGTTOU)
        eventually(lambda: tunnels(lb) == [20], "one worker has all")
        for number, client in enumerate(clients):
            payload = b"%d" % number * 5000
            client.send(ws.frame(payload, masked=True))
            assert ws.read_frame(client).payload == payload
        for client in clients:
            client.send(ws.close_frame(1000, masked=True))
            assert ws.read_frame(client).close_code == 1000
            client.close()
    eventually(lambda: tunnels(lb) == [0], "none is left")
    assert len(lb.wait_access(20, event="websocket_close", close_code=1000, closed_by="client")) == 20


def test_the_log_tells_a_tunnel_once(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """With its bytes and messages, whoever counted them."""
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=2))
    ordeal = Ordeal(lb)
    with open_clients(lb.address, 1) as (client,):
        ws.upgrade(client, "/where?it=came")
        for workers in (1, 2, 1):
            client.send(ws.frame(b"x" * 1000, masked=True))
            assert len(ws.read_frame(client).payload) == 1000
            if len(tunnels(lb)) != workers:
                lb.send_signal(signal.SIGTTOU if workers == 1 else signal.SIGTTIN)
                ordeal.wait_serving(workers)
        client.send(ws.close_frame(1000, masked=True))
        assert ws.read_frame(client).close_code == 1000
    eventually(lambda: sum(tunnels(lb)) == 0, "it is over")
    lb.stop()
    (line,) = [line for line in lb.access_lines() if line["event"] == "websocket_close"]
    assert line["target"] == "/where?it=came"
    assert (line["messages_sent"], line["messages_received"]) == (3, 3)
    assert (line["bytes_sent"], line["bytes_received"]) == (3 * 1004 + 4, 3 * 1008 + 8)
    assert (line["close_code"], line["closed_by"]) == (1000, "client")
