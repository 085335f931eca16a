"""WebSockets: the handshake checked both ways, and a tunnel that delivers every byte once and in order."""

from __future__ import annotations

import hashlib
import socket
import threading
import time

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, open_clients, reply
from tests.harness import websocket as ws
from tests.harness.client import Head, request_bytes
from tests.harness.figures import Scrape
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


def tunnels(lb: LoadBalancer) -> int:
    """Open tunnels, over all workers."""
    return sum(worker["tunnels"] for worker in lb.status()["workers"])


def accepting(head: Head, **fields: str) -> bytes:
    """A 101 for `head`; `fields` replace the right ones, an empty value leaves the field out."""
    values = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Accept": ws.accept_token(head.get("sec-websocket-key") or ""),
        **fields,
    }
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in values.items() if value]
    return ("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines]) + "\r\n\r\n").encode()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1_000_000])
def test_messages_of_every_length_class(size: int, balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=1))
    payload = hashlib.shake_128(b"x").digest(size)
    with ws.connect(lb.address) as client:
        sender = threading.Thread(target=client.send, args=(ws.frame(payload, masked=True),))
        sender.start()
        assert ws.read_frame(client).payload == payload
        sender.join()
        client.send(ws.close_frame(1000, masked=True))
        assert ws.read_frame(client).close_code == 1000
        assert client.read_to_end() == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is closed")


def test_extensions_and_subprotocols_pass_untouched(balancer: StartBalancer, upstream: StartUpstream) -> None:
    offered = {
        "Sec-WebSocket-Protocol": "chat.v2, chat.v1",
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-other",
        "Origin": "https://app.example",
        "Cookie": "a=b",
    }
    chosen = {"Sec-WebSocket-Protocol": "chat.v1", "Sec-WebSocket-Extensions": "permessage-deflate"}
    seen: list[Head] = []

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        seen.append(head)
        connection.send(accepting(head, **{k.replace("-", "_"): v for k, v in chosen.items()}))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    with RawClient(lb.address) as client:
        response = ws.upgrade(client, "/chat?room=1", headers=offered)
        for name, value in chosen.items():
            assert response.header(name) == value
    head = seen[0]
    assert head.first_line == b"GET /chat?room=1 HTTP/1.1"
    for name, value in {**offered, "Sec-WebSocket-Version": "13", "Connection": "Upgrade"}.items():
        assert head.get(name) == value
    assert (head.get("upgrade") or "").lower() == "websocket"


def test_one_path_serves_http_and_websocket(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], route={"path": "/both"}))
    with RawClient(lb.address) as client:
        assert client.request("/both").status == 200
        ws.upgrade(client, "/both")
        client.send(ws.frame(b"hello", ws.TEXT, masked=True))
        assert ws.read_frame(client) == ws.Frame(ws.TEXT, b"hello")


@pytest.mark.parametrize(
    "wrong",
    [
        {"Sec_WebSocket_Accept": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="},
        {"Sec_WebSocket_Accept": ""},
        {"Upgrade": "h2c"},
        {"Upgrade": ""},
        {"Connection": ""},
    ],
    ids=["wrong accept", "no accept", "wrong upgrade", "no upgrade", "no connection"],
)
def test_a_wrong_101_opens_no_tunnel(
    wrong: dict[str, str], balancer: StartBalancer, upstream: StartUpstream
) -> None:
    reached: list[bytes] = []

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        connection.send(accepting(head, **wrong))
        reached.append(connection.receive())

    lb = balancer(settings([upstream(handler).address]))
    request, _ = ws.handshake_bytes("/")
    with RawClient(lb.address) as client:
        client.send(request)
        assert client.read_response().status == 502
    lb.wait_access(reason="bad_accept", status=502)
    assert tunnels(lb) == 0
    eventually(lambda: reached == [b""], "the server's connection is closed")


def test_bytes_around_the_101_are_not_lost(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """The server's first frame may come in one packet with its 101, the client's before it."""

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        connection.send(accepting(head) + ws.frame(b"welcome"))
        assert ws.read_frame(connection).payload == b"early"
        connection.send(ws.frame(b"got it"))
        connection.wait_closed()

    lb = balancer(settings([upstream(handler).address]))
    request, _ = ws.handshake_bytes("/")
    with RawClient(lb.address) as client:
        client.send(request + ws.frame(b"early", masked=True))
        assert client.read_response().status == 101
        assert ws.read_frame(client).payload == b"welcome"
        assert ws.read_frame(client).payload == b"got it"


def test_a_refused_handshake_hides_no_second_request(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """The server says no: what the client sent ahead was meant for a tunnel, and is a request at most."""

    def refuse(connection: Connection) -> None:
        while connection.read_request() is not None:
            connection.send(reply(b"no", "403 Forbidden", {"X-Why": "login"}))

    server = upstream(refuse)
    lb = balancer(settings([server.address]))
    request, _ = ws.handshake_bytes("/")
    with RawClient(lb.address) as client:
        client.send(request)
        response = client.read_response()
        assert (response.status, response.body, response.header("x-why")) == (403, b"no", "login")
        assert client.request("/after").status == 403
    lb.wait_access(status=403)
    assert tunnels(lb) == 0


def test_half_close_of_the_server_leaves_the_other_direction_open(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    got: list[bytes] = []

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        connection.send(accepting(head) + b"last words")
        connection.socket.shutdown(socket.SHUT_WR)
        while data := connection.receive():
            got.append(data)

    lb = balancer(settings([upstream(handler).address], route={"websocket": {"inspect": False}}))
    with ws.connect(lb.address) as client:
        assert client.read_to_end() == b"last words"
        client.send(b"answer")
        client.half_close()
        eventually(lambda: b"".join(got) == b"answer", "the server gets the answer")
    eventually(lambda: tunnels(lb) == 0, "the tunnel is closed")


def test_half_close_of_the_client_leaves_the_other_direction_open(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        connection.send(accepting(head))
        said = b""
        while data := connection.receive():
            said += data
        connection.send(said * 2)

    lb = balancer(settings([upstream(handler).address], route={"websocket": {"inspect": False}}))
    with ws.connect(lb.address) as client:
        client.send(b"echo")
        client.half_close()
        assert client.read_to_end() == b"echoecho"
    eventually(lambda: tunnels(lb) == 0, "the tunnel is closed")


def test_a_reset_reaches_the_other_side_as_a_reset(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        connection.send(accepting(head))
        connection.read_exactly(2)
        connection.reset()

    lb = balancer(settings([upstream(handler).address]))
    with ws.connect(lb.address) as client:
        client.send(b"go")
        with pytest.raises(ConnectionResetError):
            client.read_to_end()


def test_an_idle_tunnel_is_closed_and_a_busy_one_is_not(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], route={"websocket": {"idle": "1s"}}))
    started = time.monotonic()
    with ws.connect(lb.address) as idle, ws.connect(lb.address) as busy:
        closed = threading.Thread(target=idle.read_until_closed)
        closed.start()
        while closed.is_alive():
            busy.send(ws.frame(b"tick", masked=True))
            assert ws.read_frame(busy).payload == b"tick"
            closed.join(0.02)
        assert time.monotonic() - started > 0.9
        busy.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(busy).payload == b"still here"


def test_max_age_ends_even_a_busy_tunnel(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], route={"websocket": {"max_age": "700ms"}}))
    started = time.monotonic()
    with ws.connect(lb.address) as client:
        with pytest.raises((AssertionError, ConnectionError)):
            while time.monotonic() - started < 30:
                client.send(ws.frame(b"tick", masked=True))
                if ws.read_frame(client).opcode == ws.CLOSE:
                    raise ConnectionError("closed politely")
        assert time.monotonic() - started > 0.6


def test_timeouts_of_http_do_not_touch_a_tunnel(balancer: StartBalancer, upstream: StartUpstream) -> None:
    short = {"request_head": "300ms", "body_idle": "300ms", "keep_alive": "300ms"}
    pool = {"timeouts": {"response_head": "300ms", "body_idle": "300ms"}, "keep_alive": {"idle": "300ms"}}
    lb = balancer(settings([upstream(ws.serve_echo).address], listen={"timeouts": short}, pool=pool))
    with ws.connect(lb.address) as client:
        time.sleep(1.2)  # what is tested is that nothing happens
        client.send(ws.frame(b"alive", masked=True))
        assert ws.read_frame(client).payload == b"alive"


def test_a_handshake_of_a_dead_server_goes_to_another(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def reset(connection: Connection) -> None:
        connection.read_head()
        connection.reset()

    lb = balancer(settings([upstream(reset).address, upstream(ws.serve_echo).address], workers=1))
    for _ in range(4):
        with ws.connect(lb.address) as client:
            client.send(ws.frame(b"hello", masked=True))
            assert ws.read_frame(client).payload == b"hello"


def test_gauges_return_to_zero(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=2))
    with open_clients(lb.address, 20) as clients:
        for client in clients:
            ws.upgrade(client)
        eventually(lambda: tunnels(lb) == 20, "all tunnels are counted")
        for client in clients[::2]:
            client.reset()

    def quiet() -> bool:
        return all(w["tunnels"] == 0 and w["connections"] == 0 for w in lb.status()["workers"])

    eventually(quiet, "all gauges are zero")


def test_the_handshake_may_follow_other_requests_in_one_packet(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(ws.serve_echo, name="up").address]))
    request, key = ws.handshake_bytes("/")
    with RawClient(lb.address) as client:
        client.send(request_bytes("/") + request + ws.frame(b"early", masked=True))
        assert client.read_response().body == b"up"
        response = client.read_response()
        assert response.header("sec-websocket-accept") == ws.accept_token(key)
        assert ws.read_frame(client).payload == b"early"


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_right_behind_data_is_noticed(
    who: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Event loops may stop watching a socket after one look at a RST that came together with data."""
    ended: list[bytes] = []

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        connection.send(accepting(head))
        if who == "server":
            connection.read_exactly(2)
            connection.send(b"last words")
            connection.reset()
            return
        try:
            while data := connection.receive():
                ended.append(data)
        finally:
            ended.append(b"end")

    lb = balancer(settings([upstream(handler).address], workers=1))
    for _ in range(10):
        with ws.connect(lb.address) as client:
            client.send(b"go")
            if who == "server":
                client.read_until_closed()
            else:
                client.reset()
    if who == "client":
        eventually(lambda: ended.count(b"end") == 10, "the server sees the end of each tunnel")
    eventually(lambda: tunnels(lb) == 0, "the tunnels are closed")


def test_a_client_that_leaves_a_refusal_is_counted_as_one_that_left(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def refuse_slowly(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\nabc")
        connection.wait_closed()

    lb = balancer(settings([upstream(refuse_slowly).address], workers=1))
    lb.wait_control()
    with RawClient(lb.address) as client:
        client.send(ws.handshake_bytes()[0])
        client.read_until(b"abc")
    lb.wait_access(reason="client_closed")
    assert Scrape(lb).by("lb_websocket_handshakes_total", "result") == {("client_closed",): 1}
