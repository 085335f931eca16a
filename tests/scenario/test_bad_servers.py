"""Servers that misbehave: each costs its own exchanges, nothing else.."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, fetch, reply
from tests.harness.client import ProtocolError, request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import settings
from tests.harness.upstream import answer

pytestmark = pytest.mark.scenario

ONCE = {"retry": {"attempts": 1}}


def assert_refused(lb: LoadBalancer, status: int, reason: str, **request: str) -> None:
    """A request gets `status`, its connection stays usable, and the log says why."""
    with RawClient(lb.address) as client:
        for _ in range(2):
            assert client.request("/", **request).status == status  # type: ignore[arg-type]
    line = lb.wait_access(2, status=status)[0]
    assert line["reason"] == reason


def test_dead(balancer: StartBalancer) -> None:
    assert_refused(balancer(settings([f"127.0.0.1:{free_port()}"])), 502, "connect_failed")


def test_no_such_socket(balancer: StartBalancer, socket_folder: str) -> None:
    assert_refused(balancer(settings([f"unix:{socket_folder}/nobody"])), 502, "connect_failed")


def test_no_such_name(balancer: StartBalancer) -> None:
    assert_refused(balancer(settings(["nobody.invalid:80"])), 502, "resolve_failed")


def test_never_accepts(balancer: StartBalancer, full_backlog: str) -> None:
    lb = balancer(settings([full_backlog], route=ONCE, pool={"timeouts": {"connect": "300ms"}}))
    assert_refused(lb, 504, "connect_timeout")


def test_never_answers(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream(lambda connection: connection.wait_closed())
    lb = balancer(settings([server.address], pool={"timeouts": {"response_head": "300ms"}}))
    assert_refused(lb, 504, "response_timeout")
    assert server.accepted == 2, "a request that a server may be working on is not sent again"


def test_stops_in_the_head(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-")
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address], pool={"timeouts": {"response_head": "300ms"}}))
    assert_refused(lb, 504, "response_timeout")


def test_stops_in_the_body(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address], pool={"timeouts": {"body_idle": "300ms"}}))
    with RawClient(lb.address) as client, pytest.raises((ProtocolError, ConnectionResetError)):
        client.request("/")


def test_a_slow_body_is_not_cut(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            time.sleep(0.1)  # slow on purpose: in sum longer than the timeout between two bytes
            connection.send(b"x")
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address], pool={"timeouts": {"body_idle": "400ms"}}))
    assert fetch(lb.address).body == b"x" * 8


def test_a_slow_response_is_passed_on_as_it_comes(balancer: StartBalancer, upstream: StartUpstream) -> None:
    proceed = threading.Event()

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        proceed.wait(10)
        connection.send(b"data: 2\n\n")

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/events"))
        client.read_head()
        assert client.read_until(b"data: 1\n\n")
        proceed.set()
        assert client.read_until(b"data: 2\n\n")


@pytest.mark.parametrize("split", [1, 17, 40])
def test_an_answer_before_the_request_is_never_delivered(
    split: int, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """A server that speaks first: what it says on a fresh or an idle connection answers nobody."""
    unasked = reply(b"unasked")

    def handler(connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            if request.target == "/poison":
                connection.send(reply(b"poison") + unasked[:split])
                connection.send(unasked[split:])
                connection.wait_closed()
                return
            connection.send(reply(request.target.encode()))

    lb = balancer(settings([upstream(handler).address], workers=1))
    with RawClient(lb.address) as client:
        for number in range(10):
            assert client.request("/poison").body == b"poison"
            assert client.request(f"/{number}").text == f"/{number}"


def test_speaks_before_it_is_asked(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """What comes first can't be told from an answer; what comes behind it ends the connection, so that it
    never answers a later request."""

    def handler(connection: Connection) -> None:
        connection.send(reply(b"banner"))
        answer(connection)

    server = upstream(handler)
    lb = balancer(settings([server.address], workers=1, route=ONCE))
    with RawClient(lb.address) as client:
        for number in range(5):
            response = client.request(f"/{number}")
            assert response.status == 502 or response.text == "banner"
            eventually(lambda: server.open_connections() == 0, "the connection is closed")


def test_a_dead_server_does_not_cost_the_others(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([f"127.0.0.1:{free_port()}", upstream().address]))
    with RawClient(lb.address) as client:
        for number in range(20):
            assert client.request("/", method="POST", body=b"x").status == 200, number
