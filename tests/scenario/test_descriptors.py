"""Descriptors: each child has those that it needs, and running out of them neither spins nor wedges."""

from __future__ import annotations

import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import RawClient, eventually, fetch, processes
from tests.harness import websocket as ws
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


def test_exhaustion_neither_spins_nor_wedges(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=1), file_limit=100)
    (worker,) = lb.worker_pids()
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
    eventually(lambda: fetch(lb.address).status == 200, "new requests are served")


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
