"""A connection stays in step: what is behind a refused request, what is sent again, and how a cut message
ends. Whoever gets it wrong delivers the answer to another question."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.gauges import Gauges
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

BAD_HANDSHAKE = request_bytes("/ws", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
REFUSED = {
    "no route": (request_bytes("/absent"), 404),
    "no route, with a body": (request_bytes("/absent", method="POST", body=b"GET / HTTP/1.1\r\n\r\n"), 404),
    "bad handshake": (BAD_HANDSHAKE, 400),
}


def routed(balancer: StartBalancer, address: str, **listen: object) -> LoadBalancer:
    """`/here` and `/ws` have a route, nothing else."""
    tables = settings([address], workers=1, route={"path": "/here/*"}, listen=listen)
    tables["route"].append({"name": "ws", "path": "/ws", "pool": "main"})
    return balancer(tables)


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("number", [1, 3, 2000])
def test_what_is_behind_a_refused_request_is_answered(
    number: int, why: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """In order and in full, or the connection ends with `Connection: close`."""
    refused, status = REFUSED[why]
    lb = routed(balancer, upstream().address)
    with RawClient(lb.address) as client:
        client.send(refused * number + request_bytes("/here/last"))
        for _ in range(number):
            response = client.read_response()
            assert response.status == status
            if response.header("connection") == "close":
                assert client.read_until_closed() == b""
                return
        assert client.read_response().text == "up GET /here/last "


@pytest.mark.parametrize("number", [1, 3, 2000])
def test_what_is_behind_a_redirected_request_is_answered(
    number: int, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = routed(balancer, upstream().address, redirect_https=True)
    with RawClient(lb.address) as client:
        client.send(b"".join(request_bytes(f"/{sequence}") for sequence in range(number)))
        for sequence in range(number):
            response = client.read_response()
            assert (response.status, response.header("location")) == (308, f"https://test.example/{sequence}")


def test_a_cut_response_to_an_old_client_that_half_closed_ends_with_a_reset(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Where the end of the connection is the end of the body, a FIN would say that this is all of it."""

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\npart one")
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address], workers=1))
    with RawClient(lb.address) as client:
        client.send(b"GET / HTTP/1.0\r\nHost: test.example\r\n\r\n")
        client.read_until(b"part one")
        client.half_close()
        with pytest.raises(ConnectionResetError):
            client.read_to_end()
    Gauges(lb).wait_all_zero()


@pytest.mark.parametrize("read", ["all of it", "a part"])
def test_a_request_with_effects_is_never_sent_twice(
    read: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """A server that has read a POST on a kept connection, and resets it right away: the kernel may not have
    acknowledged a byte by then."""
    seen: list[bytes] = []

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply(b"first"))
        seen.append(connection.receive(65536 if read == "all of it" else 20))
        if read == "all of it":
            connection.reset()

    lb = balancer(settings([upstream(handler).address], workers=1))
    with RawClient(lb.address) as client:
        for number in range(1, 6):
            assert client.request("/").body == b"first"
            response = client.request("/", method="POST", body=b"x" * 1000)
            assert response.status == 502
            assert len([data for data in seen if data.startswith(b"POST")]) == number


def test_a_final_answer_to_who_expected_100_continue(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Whether the body comes is open then, so the connection ends, in order and at once."""

    def handler(connection: Connection) -> None:
        connection.read_head()
        connection.send(reply(b"no", "417 Expectation Failed"))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address], workers=1))
    with RawClient(lb.address) as client:
        client.send(
            request_bytes("/", method="POST", headers={"Content-Length": "1000", "Expect": "100-continue"})
        )
        response = client.read_response()
        assert (response.status, response.header("connection")) == (417, "close")
        Gauges(lb).wait(active=0, in_flight=0)
        assert client.read_to_end() == b""
    lb.wait_access(status=417, reason="")


def test_the_last_piece_of_a_body_that_nobody_needs_any_more(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """The response is complete; the end of the body and the server's reset come in one turn."""
    go = threading.Event()

    def handler(connection: Connection) -> None:
        connection.read_head()
        connection.read_exactly(5)
        connection.send(reply(b"early"))
        go.wait(60)
        connection.reset()

    server = upstream(handler)
    lb = balancer(settings([server.address], workers=1))
    (worker,) = lb.worker_pids()
    for _ in range(5):
        go.clear()
        with RawClient(lb.address) as client:
            client.send(request_bytes("/", method="POST", headers={"Content-Length": "10"}) + b"a" * 5)
            assert client.read_response().body == b"early"
            os.kill(worker, signal.SIGSTOP)
            client.send(b"b" * 5)
            go.set()
            eventually(lambda: server.open_connections() == 0, "the server has reset its connection")
            os.kill(worker, signal.SIGCONT)
        Gauges(lb).wait_all_zero()
    assert "fault" not in lb.stderr


# --- resets that nobody waits for --------------------------------------------------------------------


def test_a_reset_is_noticed_while_the_server_does_not_read(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def handler(connection: Connection) -> None:
        connection.read_head()
        finished.wait(60)

    finished = threading.Event()
    total = 64 * 1024 * 1024
    server = upstream(handler, receive_buffer=65536)
    timeouts = {"response_head": "1h", "body_idle": "1h"}
    listen = {"timeouts": {"body_idle": "1h"}, "limits": {"body_bytes": "1GiB"}}
    lb = balancer(settings([server.address], workers=1, listen=listen, pool={"timeouts": timeouts}))
    gauges = Gauges(lb)
    with RawClient(lb.address, timeout=1) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": str(total)}))
        with pytest.raises(TimeoutError):
            client.send(bytes(total))
        client.reset()
    gauges.wait_all_zero()
    lb.wait_access(reason="client_closed", status=499)
    finished.set()


def test_a_reset_is_noticed_behind_more_than_is_read_ahead(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream(lambda connection: connection.wait_closed())
    lb = balancer(settings([server.address], workers=1, pool={"timeouts": {"response_head": "1h"}}))
    gauges = Gauges(lb)
    with RawClient(lb.address, timeout=1) as client:
        client.send(request_bytes("/"))
        gauges.wait(active=1)
        with pytest.raises(TimeoutError):
            client.send(request_bytes("/") * 1_000_000)
        client.reset()
    gauges.wait_all_zero()
    lb.wait_access(reason="client_closed", status=499)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_noticed_behind_an_end(who: str, balancer: StartBalancer, upstream: StartUpstream) -> None:
    """Half-closed tunnels: who has sent its end can still go away, and the other may have nothing to say."""

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        if who == "server":
            connection.socket.shutdown(1)
            assert connection.receive() == b"seen"
            connection.reset()
        else:
            connection.send(b"seen" if connection.receive() == b"" else b"what?")
            gauges.wait(tunnels=0)

    lb = balancer(
        settings(
            [upstream(handler).address],
            workers=1,
            route={"websocket": {"idle": "1h", "inspect": False}},
        )
    )
    gauges = Gauges(lb)
    with ws.connect(lb.address) as client:
        if who == "server":
            assert client.read_to_end() == b""
            client.send(b"seen")
        else:
            client.half_close()
            assert client.read_exactly(4) == b"seen"
            client.reset()
        gauges.wait(tunnels=0, route_tunnels=0, server_tunnels=0, active=0)
    gauges.wait_all_zero()
