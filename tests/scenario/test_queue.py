"""max_connections and the bounded queue before it."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, open_clients, reply
from tests.harness.client import request_bytes
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
