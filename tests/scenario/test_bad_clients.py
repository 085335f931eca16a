"""Clients that misbehave: slow, silent, greedy. Each is answered or dropped in time, and costs little."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, RawClient, eventually, fetch, processes, reply
from tests.harness.client import request_bytes
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

MEBIBYTE = 1024 * 1024


def drip(client: RawClient, data: bytes, interval: float, within: float) -> None:
    """Sends byte after byte every `interval` seconds until the peer has had enough."""
    deadline = time.monotonic() + within
    try:
        for byte in data:
            assert time.monotonic() < deadline, f"the client was borne for {within} s"
            client.send(bytes((byte,)))
            time.sleep(interval)  # the client is slow on purpose
    except (BrokenPipeError, ConnectionResetError):
        return


def test_one_byte_at_a_time_does_not_hold_the_head_open(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream()
    lb = balancer(settings([server.address], listen={"timeouts": {"request_head": "500ms"}}))
    with RawClient(lb.address) as client:
        sender = threading.Thread(target=drip, args=(client, request_bytes("/" + "a" * 200), 0.05, 60))
        sender.start()
        response = client.read_response()
        sender.join()
    assert response.status == 408
    lb.wait_access(reason="head_timeout", status=408)
    assert not server.requests


def test_a_client_that_says_nothing_is_dropped(balancer: StartBalancer, upstream: StartUpstream) -> None:
    timeouts = {"request_head": "300ms", "keep_alive": "300ms"}
    lb = balancer(settings([upstream().address], listen={"timeouts": timeouts}))
    with RawClient(lb.address) as silent, RawClient(lb.address) as idle:
        assert idle.request("/").status == 200
        assert idle.read_until_closed() == b""
        last = silent.read_until_closed()
        assert last == b"" or last.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_stops_is_a_timeout(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address], listen={"timeouts": {"body_idle": "300ms"}}))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": "100"}) + b"some")
        response = client.read_response()
        assert response.status == 408
        assert client.read_until_closed() == b""
    lb.wait_access(reason="body_timeout", status=408)
    assert not server.requests
    eventually(lambda: server.open_connections() == 0, "the half-sent request is dropped")


def test_ten_megabytes_of_headers_are_refused_in_bounded_memory(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=1))
    (worker,) = lb.worker_pids()
    fetch(lb.address)
    before = processes.resident_bytes(worker)
    statuses = []
    for _ in range(3):
        with RawClient(lb.address) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: test.example\r\n")
            sender = threading.Thread(target=_send_headers, args=(client, 10 * MEBIBYTE))
            sender.start()
            statuses.append(client.read_response().status)
            client.read_until_closed()
            sender.join(10)
            assert not sender.is_alive()
    assert statuses == [431, 431, 431]
    assert processes.resident_bytes(worker) - before < 4 * MEBIBYTE
    assert len(server.requests) == 1
    assert fetch(lb.address).status == 200


@pytest.mark.parametrize("field", [b"a:\r\n", b"X-Some-Name: some value\r\n"], ids=["shortest", "usual"])
def test_so_many_fields_and_no_more(balancer: StartBalancer, upstream: StartUpstream, field: bytes) -> None:
    lb = balancer(settings([upstream().address], workers=1, listen={"limits": {"headers": 12}}))
    for more, status in ((11, 200), (12, 431)):
        with RawClient(lb.address) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: test.example\r\n" + more * field + b"\r\n")
            assert client.read_response().status == status


def _send_headers(client: RawClient, total: int) -> None:
    line = b"X-Filler: " + b"a" * 1000 + b"\r\n"
    try:
        for _ in range(total // len(line)):
            client.send(line)
    except (BrokenPipeError, ConnectionResetError):
        return


def test_a_client_that_never_reads_is_dropped(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gone = threading.Event()

    def endless(connection: Connection) -> None:
        connection.read_request()
        try:
            connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.send(b"x" * 65536)
        except OSError:
            gone.set()

    lb = balancer(settings([upstream(endless).address], listen={"timeouts": {"send": "500ms"}}))
    with RawClient(lb.address, receive_buffer=4096) as client:
        client.send(request_bytes("/"))
        assert gone.wait(10), "the server is freed"


def test_a_client_that_reads_slowly_is_served(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def large(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply(b"x" * MEBIBYTE))
        connection.wait_closed()

    server = upstream(large)
    lb = balancer(settings([server.address], listen={"timeouts": {"send": "500ms"}}))
    with RawClient(lb.address, receive_buffer=16384) as client:
        client.send(request_bytes("/"))
        head = client.read_head()
        assert head.get("content-length") == str(MEBIBYTE)
        for _ in range(16):
            client.read_exactly(MEBIBYTE // 16)
            time.sleep(0.1)  # the client is slow on purpose: in sum far longer than the send timeout


def test_many_pipelined_requests_are_read_no_faster_than_answered(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    release = threading.Event()

    def slow(connection: Connection) -> None:
        while connection.read_request() is not None:
            release.wait(10)
            connection.send(reply(b"ok"))

    lb = balancer(settings([upstream(slow).address], workers=1))
    with RawClient(lb.address, timeout=1.0) as client:
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 * MEBIBYTE:
                client.send(request_bytes("/") * 1000)
                sent += len(request_bytes("/")) * 1000
        (worker,) = lb.worker_pids()
        assert processes.resident_bytes(worker) < 100 * MEBIBYTE
        release.set()


def test_connections_beyond_the_limit_are_turned_away(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream().address], workers=1, listen={"limits": {"connections": 5}}))
    clients = [RawClient(lb.address) for _ in range(5)]
    try:
        assert all(client.request("/").status == 200 for client in clients)
        with RawClient(lb.address) as extra:
            assert b"200" not in extra.read_until_closed()
    finally:
        for client in clients:
            client.close()

    def accepted() -> bool:
        with RawClient(lb.address) as client:
            try:
                return client.request("/").status == 200
            except (AssertionError, ConnectionResetError, BrokenPipeError):
                return False

    eventually(accepted, "the limit counts open connections only")


def test_aborted_clients_leave_nothing_behind(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=1))
    (worker,) = lb.worker_pids()
    fetch(lb.address)
    before = len(processes.descriptors(worker))
    for number in range(60):
        client = RawClient(lb.address)
        request = request_bytes("/", method="POST", body=b"x" * 5000)
        client.send(request[: (number * 97) % len(request) + 1])
        if number % 2:
            client.reset()
        else:
            client.close()
    eventually(lambda: len(processes.descriptors(worker)) <= before + 5, "descriptors are closed")
