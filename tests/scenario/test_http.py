"""HTTP/1.1 proxying: persistence, framing, interim and early responses, routes and header rules."""

from __future__ import annotations

import hashlib
import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, RawClient, eventually, fetch, reply
from tests.harness.client import request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

CHUNKED = {"Transfer-Encoding": "chunked"}


def chunks(*parts: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


def test_connections_persist_on_both_sides(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=1))
    with RawClient(lb.address) as client:
        for number in range(20):
            assert client.request(f"/{number}").text == f"up GET /{number} "
    assert server.accepted == 1


def test_pipelined_requests_are_answered_in_order(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address]))
    with RawClient(lb.address) as client:
        client.send(b"".join(request_bytes(f"/{n}", method="POST", body=b"x" * n) for n in range(50)))
        for number in range(50):
            assert client.read_response().text == f"up POST /{number} " + "x" * number


def test_a_head_may_come_in_pieces(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=1))
    with RawClient(lb.address) as client:
        for byte in request_bytes("/pieces", method="POST", body=b"body"):
            client.send(bytes((byte,)))
        assert client.read_response().text == "up POST /pieces body"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_bodies_arrive_whole_both_ways(
    framing: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    body = hashlib.shake_128(b"seed").digest(3_000_000)

    def echo(connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            if request.head.get("transfer-encoding"):
                parts = [request.body[at : at + 70_000] for at in range(0, len(request.body), 70_000)]
                connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(*parts))
            else:
                connection.send(reply(request.body))

    lb = balancer(settings([upstream(echo).address], workers=1))
    with RawClient(lb.address) as client:
        for _ in range(2):
            if framing == "chunked":
                head = request_bytes("/", method="POST", headers=CHUNKED)
                sent = head + chunks(*(body[at : at + 9_999] for at in range(0, len(body), 9_999)))
            else:
                sent = request_bytes("/", method="POST", body=body)
            sender = threading.Thread(target=client.send, args=(sent,))
            sender.start()
            response = client.read_response()
            sender.join()
            assert response.body == body
            assert not response.close_delimited


def test_trailers_pass_both_ways(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        request = connection.read_request()
        assert request is not None
        assert request.raw.endswith(b"0\r\nX-Sum: 7\r\n\r\n")
        body = chunks(b"ok", trailers=b"X-Check: 9\r\n")
        connection.send(b"HTTP/1.1 200 OK\r\nTrailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers={**CHUNKED, "Trailer": "X-Sum"}))
        client.send(chunks(b"data", trailers=b"X-Sum: 7\r\n"))
        response = client.read_response()
    assert response.body == b"ok"
    assert response.trailers == [("X-Check", "9")]


def test_expect_continue_waits_for_the_server(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        assert head.get("expect") == "100-continue"
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.send(reply(connection.read_exactly(5)))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(
            request_bytes("/", method="POST", headers={"Expect": "100-continue", "Content-Length": "5"})
        )
        assert client.read_head().first_line.startswith(b"HTTP/1.1 100")
        client.send(b"hello")
        assert client.read_response().body == b"hello"


def test_expect_continue_may_be_refused(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        assert connection.read_head() is not None
        connection.send(reply(b"no", "417 Expectation Failed"))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(
            request_bytes("/", method="POST", headers={"Expect": "100-continue", "Content-Length": "5"})
        )
        response = client.read_response()
        assert (response.status, response.interim) == (417, [])


def test_an_early_response_reaches_a_client_that_still_sends(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def handler(connection: Connection) -> None:
        assert connection.read_head() is not None
        connection.send(reply(b"enough", "413 Content Too Large", {"Connection": "close"}))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": "1000000"}))
        client.send(b"x" * 1000)
        response = client.read_response()
        assert (response.status, response.body) == (413, b"enough")


def test_both_directions_flow_at_the_same_time(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """A response that begins before the body ends is no reason to stop sending the body."""

    def handler(connection: Connection) -> None:
        assert connection.read_head() is not None
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n")
        for _ in range(5):
            connection.send(connection.read_exactly(100_000))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", method="POST", headers={"Content-Length": "500000"}))
        client.read_head()
        for number in range(5):
            piece = bytes((number,)) * 100_000
            client.send(piece)
            assert client.read_exactly(100_000) == piece


def test_connection_close_of_the_client_ends_its_connection_alone(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=1))
    for _ in range(3):
        with RawClient(lb.address) as client:
            response = client.request("/", headers={"Connection": "close"})
            assert response.header("connection") == "close"
            assert client.read_to_end() == b""
    assert server.accepted == 1


def test_connection_close_of_the_server_ends_its_connection_alone(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply(b"bye", headers={"Connection": "close"}))

    server = upstream(handler)
    lb = balancer(settings([server.address], workers=1))
    with RawClient(lb.address) as client:
        for _ in range(3):
            assert client.request("/").body == b"bye"
    assert server.accepted == 3


def test_a_close_delimited_response_becomes_chunked(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.0 200 OK\r\n\r\n" + b"y" * 100_000)

    lb = balancer(settings([upstream(handler).address], workers=1))
    with RawClient(lb.address) as client:
        for _ in range(2):
            assert client.request("/").body == b"y" * 100_000


def test_an_http_1_0_client_gets_a_close_delimited_response(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(b"one", b"two"))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        client.send(b"GET / HTTP/1.0\r\nHost: test.example\r\n\r\n")
        response = client.read_response()
        assert response.close_delimited
        assert response.body == b"onetwo"


def test_a_client_that_leaves_frees_the_server(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gone = threading.Event()

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.wait_closed()
        gone.set()

    server = upstream(handler)
    lb = balancer(settings([server.address]))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/"))
        eventually(lambda: server.requests, "the request arrives")
    assert gone.wait(5)


def test_the_server_may_be_a_unix_socket_and_the_listener_too(
    balancer: StartBalancer, upstream: StartUpstream, socket_folder: str
) -> None:
    server = upstream(path=f"{socket_folder}/server")
    listen = {"bind": [f"unix:{socket_folder}/listener"]}
    lb = balancer(settings([server.address], listen=listen))
    for _ in range(8):
        assert fetch(lb.address, "/unix").text == "up GET /unix "


def test_routes_match_host_and_path_in_order(balancer: StartBalancer, upstream: StartUpstream) -> None:
    one, two, three = upstream(name="one"), upstream(name="two"), upstream(name="three")
    tables = settings([three.address], route={"host": "*.example.com"})
    tables["route"] = [
        {"name": "a", "host": "a.example.com", "path": "/api/*", "pool": "one", "strip_prefix": True},
        {"name": "b", "host": "a.example.com", "path": "/exact", "pool": "two"},
        *tables["route"],
    ]
    tables["pool"]["one"] = {"servers": [one.address]}
    tables["pool"]["two"] = {"servers": [two.address]}
    lb = balancer(tables)
    expected = {
        ("a.example.com", "/api/x?y=/api/"): "one GET /x?y=/api/ ",
        ("A.Example.COM:80", "/api/"): "one GET / ",
        ("a.example.com", "/exact?q"): "two GET /exact?q ",
        ("a.example.com", "/exact/"): "three GET /exact/ ",
        ("b.example.com", "/api/x"): "three GET /api/x ",
    }
    for (host, target), text in expected.items():
        assert fetch(lb.address, target, host=host).text == text
    assert fetch(lb.address, "/", host="example.com").status == 404
    lb.wait_access(status=404, reason="no_route")


def test_header_rules_apply_both_ways(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        while connection.read_request() is not None:
            connection.send(reply(b"ok", headers={"Server": "secret/1", "X-Powered-By": "x", "X-Keep": "1"}))

    server = upstream(handler)
    rules = {
        "request_set": {"X-Edge": "1"},
        "request_remove": ["X-Secret"],
        "response_set": {"Server": "edge"},
        "response_remove": ["X-Powered-By"],
    }
    lb = balancer(settings([server.address], route={"headers": rules}))
    headers = {"X-Edge": "forged", "X-Secret": "1", "x-secret": "2", "X-Other": "3"}
    response = fetch(lb.address, "/", headers=headers)
    assert response.header("server") == "edge"
    assert response.header("x-powered-by") is None
    assert response.header("x-keep") == "1"
    head = server.requests[0].head
    assert head.get("x-edge") == "1"
    assert head.get("x-secret") is None
    assert head.get("x-other") == "3"


@pytest.mark.parametrize("bind", ["[::1]:{port}", ":{port}", "127.0.0.1:{port}"])
def test_addresses_of_both_families(bind: str, balancer: StartBalancer, upstream: StartUpstream) -> None:
    port = free_port()
    server = upstream()
    lb = balancer(settings([server.address], listen={"bind": [bind.format(port=port)]}))
    hosts = {"[": ["::1"], ":": ["::1", "127.0.0.1"], "1": ["127.0.0.1"]}[bind[0]]
    for host in hosts:
        assert fetch((host, port)).status == 200
        assert server.requests[-1].head.get("x-forwarded-for") == host
    clients = {line["client"] for line in lb.wait_access(len(hosts), status=200)}
    assert clients == set(hosts)
