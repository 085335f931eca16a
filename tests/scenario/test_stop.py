"""The graceful stop, as connections see it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, open_clients, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


def closed_for_new(lb: LoadBalancer) -> bool:
    """Whether nobody listens any more."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", lb.port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_what_is_in_flight_ends_in_order(
    number: signal.Signals, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    opened = threading.Event()

    def slow(connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            if request.target == "/hold":
                opened.wait(20)
            connection.send(reply(b"ok"))

    server = upstream(slow)
    lb = balancer(settings([server.address]))
    with RawClient(lb.address) as busy, RawClient(lb.address) as idle:
        assert idle.request("/").status == 200
        busy.send(request_bytes("/hold"))
        eventually(lambda: len(server.requests) == 2, "the request is with the server")
        lb.send_signal(number)
        eventually(lambda: closed_for_new(lb), "nobody listens any more")
        assert idle.read_to_end() == b""
        opened.set()
        response = busy.read_response()
        assert (response.body, response.header("connection")) == (b"ok", "close")
        assert busy.read_to_end() == b""
    lb.stop(number=number)


def test_an_upload_in_flight_is_finished(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    with RawClient(lb.address) as client:
        request = request_bytes("/", method="POST", body=b"x" * 100_000)
        client.send(request[:50_000])
        eventually(lambda: sum(w["connections"] for w in lb.status()["workers"]) == 1, "it is in flight")
        lb.send_signal(signal.SIGTERM)
        eventually(lambda: closed_for_new(lb), "nobody listens any more")
        client.send(request[50_000:])
        assert client.read_response().body.endswith(b"x" * 100_000)


def test_tunnels_live_until_the_shutdown_timeout(balancer: StartBalancer, upstream: StartUpstream) -> None:
    process = {"shutdown_timeout": "3s"}
    tables = settings([upstream(ws.serve_echo).address], process=process, drain={"hard_stop": "60s"})
    lb = balancer(tables)
    with ws.connect(lb.address) as client:
        started = time.monotonic()
        lb.send_signal(signal.SIGTERM)
        eventually(lambda: closed_for_new(lb), "nobody listens any more")
        assert ws.read_frame(client).close_code == 1012
        client.read_until_closed()  # who does not answer that has until then
        assert time.monotonic() - started > 2.5
    lb.stop()


def test_tunnels_of_a_worker_that_died_just_before_are_closed_in_order(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=1))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ws.connect(lb.address)) for _ in range(40)]
        eventually(lambda: lb.status()["workers"][0]["tunnels_held"] == 40, "all are held")
        worker = lb.status()["workers"][0]["pid"]
        lb.send_signal(signal.SIGSTOP)  # so that it learns of both at once
        os.kill(worker, signal.SIGKILL)
        lb.send_signal(signal.SIGTERM)
        lb.send_signal(signal.SIGCONT)
        assert {ws.read_frame(client).close_code for client in clients} == {1012}
        for client in clients:
            client.send(ws.close_frame(1012, masked=True))
            assert client.read_to_end() == b""
    lb.stop()


def test_connections_in_the_accept_queue_are_served(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """What the kernel had accepted for us before the stop is answered, not reset."""
    lb = balancer(settings([upstream().address]))
    pids = lb.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with open_clients(lb.address, 20) as clients:
        for client in clients:
            client.send(request_bytes("/queued"))
        lb.send_signal(signal.SIGTERM)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            assert client.read_response().text == "up GET /queued "


@pytest.mark.parametrize("target", ["/absent", "/elsewhere"])
def test_idle_connections_end_whatever_they_were_answered(
    target: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """A connection that has only been refused or redirected is as idle as one that was served."""
    tables = settings(
        [upstream().address], process={"shutdown_timeout": "60s"}, route={"path": "/elsewhere/*"}
    )
    if target == "/elsewhere":
        tables["listen"]["public"]["redirect_https"] = True
    lb = balancer(tables)
    with RawClient(lb.address) as idle:
        assert idle.request(target).status == (308 if target == "/elsewhere" else 404)
        lb.send_signal(signal.SIGTERM)
        assert idle.read_to_end() == b""
    lb.stop(within=30)
