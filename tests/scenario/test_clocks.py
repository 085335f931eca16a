"""Each timeout runs for the side that is waited for, and only while it is waited for.

Where a timeout must not fire it is `SHORT`, and the other side takes `LONG` on purpose: what is tested then
is that nothing happens. Where it must fire, every other timeout is far away.
"""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, reply
from tests.harness.client import ProtocolError, request_bytes
from tests.harness.gauges import Gauges
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

SHORT = "800ms"
LONG = 2.5
FAR = "60s"
MEBIBYTE = 1024 * 1024
HALF = b"x" * 5
CUT = (ProtocolError, ConnectionResetError)


class Gate:
    """A server that answers a request once it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while connection.read_request() is not None:
            self.opened.wait(20)
            connection.send(reply(b"ok"))


def start(
    balancer: StartBalancer, address: str, listen: dict[str, str], pool: dict[str, str], **more: object
) -> LoadBalancer:
    """One worker, one server that takes one exchange at a time; timeouts that are not named are far away."""
    server = {"name": "one", "address": address, "max_connections": 1}
    return balancer(
        settings(
            [server],
            workers=1,
            listen={
                "timeouts": {"body_idle": FAR, "send": FAR, "keep_alive": FAR, **listen},
                "limits": {"body_bytes": "1GiB"},
            },
            pool={"timeouts": {"response_head": FAR, "body_idle": FAR, **pool}, **more},
        )
    )


def first_half(client: RawClient, length: int = 2 * len(HALF)) -> None:
    """Sends a request with the first part of its body; with the `length` it has, `HALF` is the rest."""
    client.send(request_bytes("/", method="POST", headers={"Content-Length": str(length)}) + HALF)


FRAMINGS = {
    "counted": ({"Content-Length": str(2 * len(HALF))}, HALF, HALF),
    "chunked": ({"Transfer-Encoding": "chunked"}, b"5\r\n" + HALF, b"\r\n5\r\n" + HALF + b"\r\n0\r\n\r\n"),
}


# --- the queue ---------------------------------------------------------------------------------------


def test_who_waits_in_the_queue_is_timed_by_the_queue(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """The client's body is not read meanwhile, so it can't be late."""
    gate = Gate()
    server = upstream(gate)
    lb = start(balancer, server.address, {}, {}, queue={"timeout": "300ms"})
    with RawClient(lb.address) as holder, RawClient(lb.address) as waiter:
        holder.send(request_bytes("/"))
        eventually(lambda: server.requests, "the only place is taken")
        first_half(waiter)
        assert waiter.read_response().status == 503
        lb.wait_access(reason="queue_timeout", status=503)
        gate.opened.set()
        assert holder.read_response().status == 200


@pytest.mark.parametrize("then", ["the rest comes", "it never comes"])
def test_a_clients_body_is_not_late_while_it_waits_in_the_queue(
    then: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    gate = Gate()
    server = upstream(gate)
    lb = start(balancer, server.address, {"body_idle": SHORT}, {}, queue={"timeout": FAR})
    with RawClient(lb.address) as holder, RawClient(lb.address) as waiter:
        holder.send(request_bytes("/"))
        eventually(lambda: server.requests, "the only place is taken")
        first_half(waiter)
        Gauges(lb).wait(waiting=1)
        if then == "the rest comes":
            waiter.send(HALF)
        time.sleep(LONG)
        assert lb.access_lines() == []
        gate.opened.set()
        assert holder.read_response().status == 200
        assert waiter.read_response().status == (200 if then == "the rest comes" else 408)


# --- the response's head -----------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_server_need_not_answer_what_the_client_still_sends(
    framing: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    headers, half, rest = FRAMINGS[framing]
    server = upstream()
    lb = start(balancer, server.address, {}, {"response_head": SHORT, "body_idle": SHORT})
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers=headers) + half)
        time.sleep(LONG)
        client.send(rest)
        response = client.read_response()
        assert (response.status, response.body) == (200, b"up POST / " + HALF + HALF)
    assert server.accepted == 1


def test_a_server_that_answers_early_need_not_go_on_while_the_client_still_sends(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def handler(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + connection.read_exactly(5))
        connection.send(connection.read_exactly(5))
        connection.wait_closed()

    lb = start(balancer, upstream(handler).address, {}, {"response_head": SHORT, "body_idle": SHORT})
    with RawClient(lb.address) as client:
        first_half(client)
        head = client.read_head()
        assert head.first_line == b"HTTP/1.1 200 OK"
        assert client.read_exactly(5) == HALF
        time.sleep(LONG)
        client.send(HALF)
        assert client.read_exactly(5) == HALF


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_server_must_answer_once_it_has_everything(
    framing: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    headers, half, rest = FRAMINGS[framing]
    server = upstream(lambda connection: connection.wait_closed())
    lb = start(balancer, server.address, {}, {"response_head": "300ms"})
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers=headers) + half)
        eventually(lambda: server.accepted, "the first half is under way")
        client.send(rest)
        assert client.read_response().status == 504
    lb.wait_access(reason="response_timeout", status=504)


# --- the request's body ------------------------------------------------------------------------------


def test_a_client_that_is_not_read_is_not_late(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """The server pauses in the middle of an upload that is more than all buffers on the way hold."""
    total = 32 * MEBIBYTE

    def handler(connection: Connection) -> None:
        connection.read_head()
        connection.read_exactly(MEBIBYTE)
        time.sleep(LONG)
        for _ in range(total // MEBIBYTE - 1):
            connection.read_exactly(MEBIBYTE)
        connection.send(reply(b"all of it"))

    server = upstream(handler, receive_buffer=65536)
    lb = start(balancer, server.address, {"body_idle": SHORT}, {})
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": str(total)}))
        client.send(bytes(total))
        response = client.read_response()
        assert (response.status, response.body) == (200, b"all of it")


def test_a_client_that_stops_in_its_body_is_late(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = start(balancer, upstream().address, {"body_idle": "300ms"}, {})
    with RawClient(lb.address) as client:
        first_half(client)
        assert client.read_response().status == 408
    lb.wait_access(reason="body_timeout", status=408)


def test_a_server_that_stops_reading_is_late(balancer: StartBalancer, upstream: StartUpstream) -> None:
    finished = threading.Event()

    def handler(connection: Connection) -> None:
        connection.read_head()
        finished.wait(20)

    total = 64 * MEBIBYTE
    server = upstream(handler, receive_buffer=65536)
    lb = start(balancer, server.address, {}, {"body_idle": "300ms"})
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": str(total)}))
        with pytest.raises((ConnectionResetError, BrokenPipeError, TimeoutError)):
            client.send(bytes(total))
        lb.wait_access(reason="response_timeout", status=504)
    finished.set()


# --- the response's body -----------------------------------------------------------------------------


def test_a_server_is_not_late_while_the_client_reads_slowly(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """A steady client that takes far longer than the server's timeout for what is buffered on the way."""
    total = 16 * MEBIBYTE
    server = upstream(lambda connection: _send_all(connection, total))
    lb = start(balancer, server.address, {}, {"body_idle": SHORT})
    with RawClient(lb.address, receive_buffer=4096) as client:
        client.send(request_bytes("/"))
        client.read_head()
        read = 0
        slow_until = time.monotonic() + LONG
        while read < total:
            if time.monotonic() < slow_until:
                time.sleep(0.02)
                piece = client.read_exactly(1024)
            else:
                piece = client.read_exactly(min(MEBIBYTE, total - read))
            read += len(piece)
    lb.wait_access(status=200, reason="")


def _send_all(connection: Connection, total: int) -> None:
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
    connection.send(bytes(total))
    connection.wait_closed()


def test_a_server_that_stops_after_a_slow_client_is_late(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Its clock runs again as soon as the client has taken what there was."""

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (17 * MEBIBYTE))
        connection.send(bytes(16 * MEBIBYTE))
        connection.wait_closed()

    lb = start(balancer, upstream(handler).address, {}, {"body_idle": SHORT})
    with RawClient(lb.address, receive_buffer=4096) as client:
        client.send(request_bytes("/"))
        client.read_head()
        time.sleep(LONG)
        client.read_exactly(16 * MEBIBYTE)
        with pytest.raises(CUT):
            client.read_exactly(1)
    lb.wait_access(reason="response_timeout", status=200)


def test_a_client_that_stops_reading_is_late(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = start(balancer, upstream(lambda c: _send_all(c, 64 * MEBIBYTE)).address, {"send": "300ms"}, {})
    with RawClient(lb.address, receive_buffer=4096) as client:
        client.send(request_bytes("/"))
        lb.wait_access(reason="client_closed", status=200)
        with pytest.raises(CUT):
            client.read_exactly(64 * MEBIBYTE)


@pytest.mark.parametrize(
    "then",
    [
        "and sends on",
        "and has sent everything",
    ],
)
def test_a_client_that_stops_reading_is_late_whatever_it_sends(
    then: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """A body in drops keeps the connection busy, not the response moving."""

    def handler(connection: Connection) -> None:
        connection.read_head()
        reader = threading.Thread(target=_read_away, args=(connection,))
        reader.start()
        try:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MEBIBYTE))
            connection.send(bytes(64 * MEBIBYTE))
        finally:
            reader.join()

    lb = start(balancer, upstream(handler).address, {"send": "500ms"}, {})
    with RawClient(lb.address, receive_buffer=4096) as client:
        first_half(client, 10 if then == "and has sent everything" else 100_000)
        client.read_head()
        if then == "and sends on":
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                _drip(client, 10)
        else:
            client.send(HALF)
        lb.wait_access(reason="client_closed", status=200)


def _drip(client: RawClient, within: float) -> None:
    """A byte now and then, far less than what was announced, if only it takes the time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        client.send(b"x")
        time.sleep(0.1)


def _read_away(connection: Connection) -> None:
    try:
        connection.wait_closed()
    except OSError:
        return
