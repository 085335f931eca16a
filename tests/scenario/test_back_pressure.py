"""A slow reader pauses its writer: large bodies both ways through a worker of bounded memory."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, RawClient, eventually, fetch, processes
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

MEBIBYTE = 1024 * 1024
BODY = 200 * MEBIBYTE
BOUND = 8 * MEBIBYTE
_PIECE = bytes(range(256)) * 256


class Flow:
    """Counts what one side has managed to send."""

    def __init__(self) -> None:
        self.sent = 0
        self._seen = -1
        self._looks = 0

    def stalled(self) -> bool:
        """Whether nothing was sent during the last twenty looks."""
        self._looks = self._looks + 1 if self.sent == self._seen and self.sent > 0 else 0
        self._seen = self.sent
        return self._looks >= 20

    def pump(self, end: RawClient | Connection, total: int) -> None:
        """Sends `total` bytes of the pattern."""
        while self.sent < total:
            end.send(_PIECE)
            self.sent += len(_PIECE)


def assert_paused_in_bounds(flow: Flow, worker: int, before: int) -> None:
    """The writer stands still long before all was sent, and the worker has not grown."""
    eventually(flow.stalled, "the writer is paused", 20)
    assert flow.sent < BODY // 4
    assert processes.resident_bytes(worker) - before < BOUND


def drain(end: RawClient | Connection, total: int) -> None:
    """Reads `total` bytes and compares them with the pattern."""
    read = 0
    while read < total:
        assert end.read_exactly(len(_PIECE)) == _PIECE
        read += len(_PIECE)


def test_a_slow_client_pauses_the_server(balancer: StartBalancer, upstream: StartUpstream) -> None:
    flow = Flow()

    def handler(connection: Connection) -> None:
        request = connection.read_request()
        if request is not None and request.target == "/warm":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY)
        flow.pump(connection, BODY)

    lb = balancer(settings([upstream(handler).address], workers=1))
    fetch(lb.address, "/warm")
    (worker,) = lb.worker_pids()
    before = processes.resident_bytes(worker)
    with RawClient(lb.address, receive_buffer=65536) as client:
        client.send(request_bytes("/"))
        client.read_head()
        assert_paused_in_bounds(flow, worker, before)
        drain(client, BODY)
    assert processes.resident_bytes(worker) - before < BOUND


def test_a_slow_server_pauses_the_client(balancer: StartBalancer, upstream: StartUpstream) -> None:
    flow = Flow()
    go = threading.Event()

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        if head is None or b"/warm" in head.first_line:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        go.wait(30)
        drain(connection, BODY)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = upstream(handler, receive_buffer=65536)
    lb = balancer(settings([server.address], workers=1, listen={"limits": {"body_bytes": "1GiB"}}))
    fetch(lb.address, "/warm")
    (worker,) = lb.worker_pids()
    before = processes.resident_bytes(worker)
    with RawClient(lb.address, timeout=60) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": str(BODY)}))
        sender = threading.Thread(target=flow.pump, args=(client, BODY))
        sender.start()
        assert_paused_in_bounds(flow, worker, before)
        go.set()
        assert client.read_response().body == b"ok"
        sender.join()
    assert processes.resident_bytes(worker) - before < BOUND


@pytest.mark.parametrize("reader", ["client", "server"])
def test_a_slow_end_of_a_tunnel_pauses_the_other(
    reader: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    flow = Flow()
    go = threading.Event()
    total = BODY // 4

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        if reader == "client":
            flow.pump(connection, total)
        else:
            go.wait(30)
            drain(connection, total)
            connection.send(b"done")
        connection.wait_closed()

    lb = balancer(
        settings(
            [upstream(handler, receive_buffer=65536).address],
            workers=1,
            route={"websocket": {"inspect": False}},
        )
    )
    (worker,) = lb.worker_pids()
    before = processes.resident_bytes(worker)
    with RawClient(lb.address, receive_buffer=65536, timeout=60) as client:
        ws.upgrade(client)
        if reader == "client":
            assert_paused_in_bounds(flow, worker, before)
            drain(client, total)
        else:
            sender = threading.Thread(target=flow.pump, args=(client, total))
            sender.start()
            assert_paused_in_bounds(flow, worker, before)
            go.set()
            assert client.read_exactly(4) == b"done"
            sender.join()
