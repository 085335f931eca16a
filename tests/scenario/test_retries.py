"""Retries by invariant 2: only where nothing of the request reached a server, or it may safely come twice."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, RawClient, eventually, fetch, reply
from tests.harness.ports import free_port
from tests.harness.settings import settings
from tests.harness.upstream import answer

pytestmark = pytest.mark.scenario


def read_and_reset(connection: Connection) -> None:
    """A server that takes the request and breaks the connection without an answer."""
    connection.read_request()
    connection.reset()


def test_a_get_is_sent_to_another_server(balancer: StartBalancer, upstream: StartUpstream) -> None:
    bad, good = upstream(read_and_reset), upstream()
    lb = balancer(settings([bad.address, good.address], workers=1))
    for _ in range(4):
        assert fetch(lb.address, "/").status == 200
    assert bad.requests, "round-robin must have tried the bad one"
    assert len(good.requests) == 4
    attempts = [line["attempts"] for line in lb.wait_access(4, status=200)]
    assert sorted(set(attempts)) == [1, 2]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_not_come_twice_is_never_sent_again(
    method: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    bad, good = upstream(read_and_reset), upstream()
    lb = balancer(settings([bad.address, good.address], workers=1))
    statuses = [fetch(lb.address, "/", method=method, body=b"x").status for _ in range(6)]
    assert sorted(set(statuses)) == [200, 502]
    assert len(bad.requests) + len(good.requests) == 6
    assert len(bad.requests) == statuses.count(502)


def test_a_put_with_its_body_at_hand_is_sent_again(balancer: StartBalancer, upstream: StartUpstream) -> None:
    bad, good = upstream(read_and_reset), upstream()
    lb = balancer(settings([bad.address, good.address], workers=1))
    for _ in range(4):
        assert fetch(lb.address, "/", method="PUT", body=b"x").status == 200


def test_a_failed_connect_is_retried_for_every_method(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    good = upstream()
    lb = balancer(settings([f"127.0.0.1:{free_port()}", good.address], workers=1))
    for _ in range(4):
        assert fetch(lb.address, "/", method="POST", body=b"x").status == 200
    assert len(good.requests) == 4


def test_a_connect_timeout_is_retried(
    balancer: StartBalancer, upstream: StartUpstream, full_backlog: str
) -> None:
    lb = balancer(
        settings([full_backlog, upstream().address], workers=1, pool={"timeouts": {"connect": "300ms"}})
    )
    for _ in range(2):
        assert fetch(lb.address, "/", method="POST", body=b"x").status == 200


def test_503_is_retried_where_the_route_says_so(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def busy(connection: Connection) -> None:
        while connection.read_request() is not None:
            connection.send(reply(b"busy", "503 Service Unavailable"))

    def tables(**retry: object) -> dict[str, object]:
        return settings([upstream(busy).address, upstream().address], workers=1, route={"retry": retry})

    retrying = balancer(tables(on=["connect", "reset", "503"]))
    assert {fetch(retrying.address).status for _ in range(4)} == {200}
    plain = balancer(tables())
    assert {fetch(plain.address).status for _ in range(4)} == {200, 503}


def test_the_last_answer_is_given_when_attempts_are_spent(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    servers = [upstream(read_and_reset) for _ in range(3)]
    lb = balancer(
        settings([server.address for server in servers], workers=1, route={"retry": {"attempts": 2}})
    )
    assert fetch(lb.address).status == 502
    assert sum(len(server.requests) for server in servers) == 2
    lb.wait_access(reason="upstream_reset", status=502, attempts=2)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_pooled_connection_that_the_server_closed_is_never_noticed(
    method: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    closing = threading.Event()

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply(b"ok"))
        closing.wait(10)

    server = upstream(handler)
    lb = balancer(settings([server.address], workers=1))
    with RawClient(lb.address) as client:
        for number in range(10):
            closing.clear()
            assert client.request("/", method=method, body=b"x").status == 200, number
            closing.set()
            eventually(lambda: server.open_connections() == 0, "the server closes")


def test_a_race_with_the_servers_keep_alive_is_resent_where_it_is_safe(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """The server closes while the next request is on its way: no byte comes on a reused connection."""

    def handler(connection: Connection) -> None:
        if connection.read_request() is not None:
            connection.send(reply(b"first"))
        if connection.read_head() is not None:
            connection.reset()

    server = upstream(handler)
    lb = balancer(settings([server.address], workers=1))
    with RawClient(lb.address) as client:
        for _ in range(5):
            assert client.request("/").body == b"first"


def test_a_response_that_has_begun_is_not_started_again(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def cut(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
        connection.reset()

    bad, good = upstream(cut), upstream(answer)
    lb = balancer(settings([bad.address, good.address], workers=1))
    cut_off = 0
    for _ in range(4):
        with RawClient(lb.address) as client:
            try:
                client.request("/")
            except (AssertionError, ConnectionResetError):
                cut_off += 1
    assert cut_off == len(bad.requests) == 2
    assert len(good.requests) == 2


@pytest.mark.parametrize("servers", [1, 2])
def test_a_retry_is_counted_where_there_is_another_server(servers: int, balancer: StartBalancer) -> None:
    lb = balancer(settings([f"127.0.0.1:{free_port()}" for _ in range(servers)], workers=1))
    lb.wait_control()
    assert fetch(lb.address, "/").status == 502
    pool = lb.admin("pools/main")
    assert pool["retries"] == servers - 1
    assert [server["errors"] for server in pool["servers"]] == [1] * servers
