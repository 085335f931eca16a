"""max_connections and the bounded queue before it."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, open_clients, reply
from tests.harness.client import request_bytes
from tests.harness.gauges import Gauges
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


class Gate:
    """A server that holds every request until it is opened, and knows how many it holds."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def __call__(self, connection: Connection) -> None:
        while connection.read_request() is not None:
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.opened.wait(20)
            with self._lock:
                self.inside -= 1
            connection.send(reply(b"ok"))


def start(
    balancer: StartBalancer, upstream: StartUpstream, gate: Gate, workers: int = 1, **queue: object
) -> LoadBalancer:
    """A load balancer over one server that takes two exchanges at a time."""
    server = {"name": "one", "address": upstream(gate).address, "max_connections": 2}
    return balancer(settings([server], workers=workers, pool={"queue": queue}))


def send_all(clients: list[RawClient]) -> None:
    """One request on each connection."""
    for client in clients:
        client.send(request_bytes("/", method="POST", body=b"x"))


def test_requests_wait_and_are_all_served(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=100, timeout="10s")
    with open_clients(lb.address, 10) as clients:
        send_all(clients)
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 10
    assert gate.most == 2


def test_the_limit_holds_over_all_workers(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, workers=2, length=100, timeout="10s")
    with open_clients(lb.address, 20) as clients:
        send_all(clients)
        eventually(lambda: gate.inside >= 1, "requests are with the server")
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 20
    assert gate.most <= 2


def test_a_full_queue_refuses_at_once(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=1, timeout="10s")
    with open_clients(lb.address, 3) as clients, RawClient(lb.address) as extra:
        send_all(clients[:2])
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        send_all(clients[2:])
        eventually(lambda: extra.request("/").status == 503, "the queue is full")
        lb.wait_access(reason="queue_full", status=503)
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 3


def test_waiting_has_an_end(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=10, timeout="300ms")
    with open_clients(lb.address, 2) as clients, RawClient(lb.address) as late:
        send_all(clients)
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        assert late.request("/").status == 503
        lb.wait_access(reason="queue_timeout", status=503)
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 2
        assert late.request("/").status == 200


def test_a_client_that_leaves_the_queue_takes_no_place(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=1, timeout="10s")
    with open_clients(lb.address, 2) as holders:
        send_all(holders)
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        for _ in range(5):
            with open_clients(lb.address, 1) as leavers:
                send_all(leavers)
        gate.opened.set()
        assert [client.read_response().status for client in holders] == [200] * 2
        with RawClient(lb.address) as client:
            assert client.request("/").status == 200


class Leaver:
    """A server that holds its only request until it is opened, and is gone then. `last` is how it goes:
    "close" says so in the response, "silently" lets the connection be kept for later and closes it."""

    def __init__(self, last: str) -> None:
        self.opened = threading.Event()
        self.last = last

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        self.opened.wait(20)
        connection.send(reply(b"last", headers={"Connection": "close"} if self.last == "close" else {}))


@pytest.mark.parametrize("sticky", [{}, {"sticky": {"cookie": "lb"}}], ids=["plain", "sticky"])
@pytest.mark.parametrize("last", ["close", "silently"])
@pytest.mark.parametrize("number", [5, 200])
def test_who_waits_for_a_server_that_dies_gets_an_answer(
    number: int, last: str, sticky: dict[str, object], balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Each connect fails at once, and gives its place free while the queue is being served."""
    leaver = Leaver(last)
    server = upstream(leaver)
    member = {"name": "one", "address": server.address, "max_connections": 1}
    pool = {"queue": {"length": 1000, "timeout": "60s"}, **sticky}
    lb = balancer(settings([member], workers=1, pool=pool))
    gauges = Gauges(lb)
    with RawClient(lb.address) as first, open_clients(lb.address, number) as waiters:
        first.send(request_bytes("/"))
        eventually(lambda: server.requests, "the only place is taken")
        send_all(waiters)
        gauges.wait(waiting=number, in_flight=number + 1, active=1)
        server.stop_listening()
        leaver.opened.set()
        assert first.read_response().body == b"last"
        assert [client.read_response().status for client in waiters] == [502] * number
        gauges.wait(waiting=0, in_flight=0, active=0, upstreams=0, connections=number + 1)
    gauges.wait_all_zero()
    lb.wait_access(number, status=502)
    assert "fault" not in lb.stderr


def test_the_queue_of_a_server_that_dies_is_served_once_it_is_back(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    leaver = Leaver("close")
    server = upstream(leaver)
    member = {"name": "one", "address": server.address, "max_connections": 1}
    lb = balancer(settings([member], workers=1, pool={"queue": {"length": 10, "timeout": "60s"}}))
    port = server.port
    with open_clients(lb.address, 4) as clients:
        send_all(clients[:1])
        eventually(lambda: server.requests, "the only place is taken")
        send_all(clients[1:])
        Gauges(lb).wait(waiting=3)
        server.stop_listening()
        leaver.opened.set()
        assert [client.read_response().status for client in clients] == [200, 502, 502, 502]
        upstream(port=port)
        send_all(clients)
        assert [client.read_response().status for client in clients] == [200] * 4
    Gauges(lb).wait_all_zero()
