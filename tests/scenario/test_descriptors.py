"""Descriptors: each child has those that it needs, and running out of them neither spins nor wedges."""

from __future__ import annotations

import resource
import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import RawClient, eventually, fetch, processes
from tests.harness import websocket as ws
from tests.harness.client import Address, ProtocolError
from tests.harness.figures import Scrape
from tests.harness.settings import settings
from workers.core.descriptors import connection_cap

pytestmark = pytest.mark.scenario


def test_exhaustion_neither_spins_nor_wedges(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=1))
    (worker,) = lb.worker_pids()
    # Lowered behind its back: it would not accept so many otherwise.
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (100, 100))
    clients: list[RawClient] = []
    try:
        for _ in range(150):  # far more than the worker can accept; the others wait in the queue
            clients.append(RawClient(lb.address))
        eventually(lambda: len(processes.descriptors(worker)) >= 95, "the worker has no descriptors left")
        cpu, started = processes.cpu_seconds(worker), time.monotonic()
        while time.monotonic() - started < 1.5:  # a spinning worker would use all of it
            time.sleep(0.1)
        assert processes.cpu_seconds(worker) - cpu < 0.5
        assert lb.worker_pids() == [worker]
    finally:
        for client in clients:
            client.close()
    with RawClient(lb.address) as client:
        assert client.request("/later").status == 200
    eventually(lambda: len(processes.descriptors(worker)) < 50, "descriptors are closed")


def test_exhaustion_in_the_middle_of_requests(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """A worker that can accept but not connect says so, and recovers."""
    server = upstream(ws.serve_echo)
    lb = balancer(settings([server.address], workers=1), file_limit=80)
    tunnels: list[RawClient] = []
    try:
        for _ in range(80):
            try:
                tunnels.append(ws.connect(lb.address, timeout=5))
            except (AssertionError, OSError):
                break
        assert 10 < len(tunnels) < 80
        tunnels[0].send(ws.frame(b"works", masked=True))
        assert ws.read_frame(tunnels[0]).payload == b"works"
    finally:
        for client in tunnels:
            client.close()
    eventually(lambda: served(lb.address), "new requests are served")


def served(address: Address) -> bool:
    try:
        return fetch(address).status == 200
    except (ConnectionError, ProtocolError):  # refused with a reset, or with an end
        return False


def test_connections_are_capped_below_open_files(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """All that are accepted can be proxied: a tunnel costs its worker two descriptors."""
    server = upstream(ws.serve_echo)
    lb = balancer(settings([server.address], workers=1), file_limit=80)
    cap = connection_cap(80)
    tunnels = [ws.connect(lb.address) for _ in range(cap)]
    try:
        with RawClient(lb.address) as client:
            assert client.read_until_closed() == b""
        assert "connection refused: open files are short" in lb.stderr
        labels = {"listener": "public", "reason": "connection_limit"}
        eventually(lambda: Scrape(lb).total("lb_listener_rejected_total", **labels) == 1, "it is counted")
        for number, tunnel in enumerate(tunnels):
            tunnel.send(ws.frame(b"%d" % number, masked=True))
        assert [int(ws.read_frame(tunnel).payload) for tunnel in tunnels] == [*range(cap)]
        tunnels.pop().close()
        eventually(lambda: served(lb.address), "one goes, another may come")
    finally:
        for tunnel in tunnels:
            tunnel.close()


def test_many_connections_leave_no_descriptor(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream(ws.serve_echo)
    lb = balancer(settings([server.address], workers=1))
    (worker,) = lb.worker_pids()
    assert fetch(lb.address).status == 200
    before = len(processes.descriptors(worker))
    for number in range(300):
        with RawClient(lb.address) as client:
            if number % 3 == 0:
                ws.upgrade(client)
            else:
                assert client.request("/").status == 200
    eventually(lambda: len(processes.descriptors(worker)) <= before, "descriptors are closed")
    assert processes.threads(worker) < 10
