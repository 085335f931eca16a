"""A worker that is killed under load costs its own exchanges; its queue is served, and nothing else fails."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, fetch, open_clients, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


class Hold:
    """A server that holds `/hold` until it is opened, and answers everything else at once."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._lock = threading.Lock()
        self.holding = 0

    def __call__(self, connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            if request.target == "/hold":
                with self._lock:
                    self.holding += 1
                self.opened.wait(20)
            connection.send(reply(b"ok"))


def connections_by_worker(lb: LoadBalancer) -> dict[int, int]:
    """Client connections of each worker slot."""
    return {worker["slot"]: worker["connections"] for worker in lb.status()["workers"]}


def test_only_its_own_exchanges_fail(balancer: StartBalancer, upstream: StartUpstream) -> None:
    hold = Hold()
    lb = balancer(settings([upstream(hold).address], workers=4))
    with open_clients(lb.address, 40) as clients:
        for client in clients:
            client.send(request_bytes("/hold"))
        eventually(lambda: hold.holding == 40, "all requests are in flight")
        victims = connections_by_worker(lb)[1]
        assert 0 < victims < 40
        old = lb.kill_worker(1)
        for _ in range(20):  # the others go on while the slot is empty, and so does its queue
            assert fetch(lb.address, "/now").status == 200
        lb.wait_replaced(1, old)
        hold.opened.set()
        assert [answered(client) for client in clients].count(False) == victims
    assert lb.status()["restarts"]
    eventually(lambda: set(connections_by_worker(lb).values()) == {0}, "all gauges are zero")


def answered(client: RawClient) -> bool:
    """Whether the request on `client` has its whole answer."""
    try:
        return client.read_response().body == b"ok"
    except (AssertionError, ConnectionResetError):
        return False


def test_its_accept_queue_is_served_by_its_replacement(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Connections that wait in a stopped worker's queue when it is killed are not reset."""
    lb = balancer(settings([upstream().address], workers=2))
    for pid in lb.worker_pids():
        os.kill(pid, signal.SIGSTOP)
    with open_clients(lb.address, 60) as clients:
        for client in clients:
            client.send(request_bytes("/queued"))
        for pid in lb.worker_pids():
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            assert client.read_response().text == "up GET /queued "


def test_a_wedged_worker_is_replaced(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=2, process={"wedged_after": "1s"}))
    stopped = lb.worker_pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    lb.wait_replaced(0, stopped)
    assert lb.status()["restarts"].get("wedged") == 1
    for _ in range(10):
        assert fetch(lb.address).status == 200


def test_the_others_tunnels_survive(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=3))
    with open_clients(lb.address, 30) as clients:
        for client in clients:
            ws.upgrade(client)
        eventually(lambda: sum(tunnels_by_worker(lb).values()) == 30, "all tunnels are counted")
        victims = tunnels_by_worker(lb)[0]
        lb.wait_replaced(0, lb.kill_worker(0))
        # Its own survive, too, as far as a keeper had them by then.
        assert [echoes(client) for client in clients].count(False) <= victims < len(clients)


def tunnels_by_worker(lb: LoadBalancer) -> dict[int, int]:
    """Tunnels of each worker slot."""
    return {worker["slot"]: worker["tunnels"] for worker in lb.status()["workers"]}


def echoes(client: RawClient) -> bool:
    """Whether the WebSocket on `client` still works."""
    try:
        client.send(ws.frame(b"hello", masked=True))
        return ws.read_frame(client).payload == b"hello"
    except (AssertionError, ConnectionError):
        return False


def test_a_server_learns_that_its_client_is_gone_with_the_worker(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """No other process may hold a duplicate of a dead worker's sockets."""
    ended: list[bytes] = []

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        try:
            ended.append(connection.receive())
        except OSError:
            ended.append(b"")

    lb = balancer(settings([upstream(handler).address], workers=1))
    with ws.connect(lb.address) as client:
        lb.kill_worker(0)
        with pytest.raises((AssertionError, ConnectionResetError)):
            client.read_exactly(1)
        eventually(lambda: ended == [b""], "the server's connection ends")


def test_repeated_deaths_back_off(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=2))
    for _ in range(3):
        lb.wait_replaced(0, lb.kill_worker(0))
    assert fetch(lb.address).status == 200
    assert lb.status()["restarts"]


def test_workers_leave_when_their_master_is_killed(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """They stop accepting, and keep their tunnels for `drain.hard_stop` at most."""
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=2, drain={"hard_stop": "2s"}))
    with ws.connect(lb.address) as client:
        os.kill(lb.pid, signal.SIGKILL)

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", lb.port)) != 0

        eventually(refused, "nobody listens any more")
        client.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(client).payload == b"still here"
        assert ws.read_frame(client).close_code == 1012
        assert client.read_until_closed() == b""
    eventually(lambda: not lb.leftovers(), "the workers have left")
    lb.stopped = True
    lb.kill()
