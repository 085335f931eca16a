"""What the checks find on servers that are well, and on all the kinds that are not: over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from lb.control.health import check as checking
from lb.control.health.finding import Finding
from lb.control.health.target import Contexts, Target
from tests.harness import websocket as ws
from tests.harness.certificates import Authority, server_context
from tests.harness.ports import free_port
from tests.harness.upstream import Connection, Handler, Upstream, reply
from workers.contract.cells import CheckResult
from workers.contract.snapshot import HealthSpec, ServerSpec, UpstreamTls

Start = Callable[..., Upstream]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def halt() -> Iterator[threading.Event]:
    """What handlers that never answer wait for."""
    event = threading.Event()
    yield event
    event.set()


def server_at(upstream: Upstream) -> ServerSpec:
    if upstream.path:
        return ServerSpec(slot=0, name="s", path=upstream.path)
    return ServerSpec(slot=0, name="s", host="127.0.0.1", port=upstream.port)


def find(server: ServerSpec, tls: UpstreamTls | None = None, *, times: int = 1, **settings: Any) -> Finding:
    """What the last of `times` checks finds. It must leave no task behind."""
    settings.setdefault("timeout", 5.0)

    async def main() -> Finding:
        target = Target(server, HealthSpec(**settings), tls, Contexts())
        for _ in range(times):
            async with AsyncExitStack() as stack:
                finding = await checking.check(target, stack)
        target.close()
        assert len(asyncio.all_tasks()) == 1
        return finding

    return asyncio.run(main())


def answering(status: str = "200 OK", body: bytes = b"ok", headers: dict[str, str] | None = None) -> Handler:
    def handler(connection: Connection) -> None:
        while connection.read_request() is not None:
            connection.send(reply(body, status, headers))

    return handler


def saying(data: bytes) -> Handler:
    """Reads a head, says `data`, and closes."""

    def handler(connection: Connection) -> None:
        if connection.read_head() is not None:
            connection.send(data)

    return handler


def closed_at_once(connection: Connection) -> None:
    connection.close()


def reset_at_once(connection: Connection) -> None:
    connection.reset()


# --- HTTP ----------------------------------------------------------------------------------------------


def test_a_good_answer(upstream: Start) -> None:
    server = upstream(answering())
    assert find(server_at(server), path="/healthz?deep=1") == Finding(CheckResult.OK, "status 200")
    (request,) = server.requests
    assert request.head.first_line == b"GET /healthz?deep=1 HTTP/1.1"
    assert request.head.get("host") == f"127.0.0.1:{server.port}"
    assert request.head.get("user-agent") == "lb-health"
    assert request.head.get("connection") == "close"
    assert request.head.get("cookie") is None


def test_every_check_has_a_connection_and_no_memory(upstream: Start) -> None:
    server = upstream(answering(headers={"Set-Cookie": "a=b"}))
    find(server_at(server), times=3)
    assert [request.connection for request in server.requests] == [0, 1, 2]
    assert server.requests[2].head.get("cookie") is None


def test_the_host_field_is_as_configured(upstream: Start) -> None:
    server = upstream(answering())
    find(server_at(server), host="app.example.com")
    assert server.requests[0].head.get("host") == "app.example.com"


@pytest.mark.parametrize(
    ("expected", "status", "detail"),
    [
        (((200, 299),), "503 Service Unavailable", "expected status 200-299, got 503"),
        (((200, 299),), "302 Found", "expected status 200-299, got 302"),
        (((200, 200), (300, 399)), "204 No Content", "expected status 200,300-399, got 204"),
    ],
)
def test_another_status(
    upstream: Start, expected: tuple[tuple[int, int], ...], status: str, detail: str
) -> None:
    server = upstream(answering(status, b"", {"Location": "/elsewhere"}))
    assert find(server_at(server), status=expected) == Finding(CheckResult.STATUS, detail)
    assert len(server.requests) == 1  # redirects are not followed


def test_a_redirect_may_be_what_is_expected(upstream: Start) -> None:
    server = upstream(answering("302 Found", b"", {"Location": "/login"}))
    assert find(server_at(server), status=((302, 302),)).result is CheckResult.OK


def test_a_server_that_lies(upstream: Start) -> None:
    server = upstream(answering(body=b"<h1>database is down</h1>"))
    finding = find(server_at(server), body="all is well")
    assert finding == Finding(CheckResult.BODY, "the body's first 25 bytes do not hold 'all is well'")
    assert find(server_at(server), body="database").result is CheckResult.OK


def test_the_text_may_come_in_pieces(upstream: Start, halt: threading.Event) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"xxal", b"l is", b" wellxx"):
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            halt.wait(0.02)  # so that the pieces are read apart; nothing depends on it
        connection.wait_closed()  # the rest never comes, and need not

    server = upstream(handler)
    assert find(server_at(server), body="all is well").result is CheckResult.OK


def test_a_huge_body_is_read_to_the_limit_alone(upstream: Start) -> None:
    sent = []

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            for _ in range(1000):
                connection.send(b"x" * 1_000_000)
                sent.append(1)
        finally:
            connection.close()

    server = upstream(handler)
    finding = find(server_at(server), body="all is well")
    assert finding == Finding(CheckResult.BODY, "the body's first 65536 bytes do not hold 'all is well'")
    assert find(server_at(server)).result is CheckResult.OK  # nobody asked for the body
    server.close()
    assert len(sent) < 100


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "malformed answer"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "malformed answer"),
        (b"", "closed while waiting"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed while waiting"),
    ],
)
def test_no_valid_answer(upstream: Start, kind: str, data: bytes, detail: str) -> None:
    finding = find(server_at(upstream(saying(data))), type=kind)
    assert finding.result is CheckResult.PROTOCOL
    assert finding.detail.startswith(detail)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 100),
        (HEAD, b"1\r\nx\r\n" * 1000),
        (HEAD, b"1;a=b;c=dddddddddddddddddddddddd\r\nx\r\n" * 1000),
    ],
)
def test_an_answer_without_end(upstream: Start, halt: threading.Event, begin: bytes, more: bytes) -> None:
    sent = []

    def handler(connection: Connection) -> None:
        connection.read_head()
        connection.send(begin)
        while not halt.is_set():
            connection.send(more)
            sent.append(len(more))

    finding = find(server_at(upstream(handler)), body="all is well", timeout=10.0)
    assert finding.result is CheckResult.PROTOCOL
    assert finding.detail.startswith("answered more than 262144 bytes while ")
    assert sum(sent) < 32 * 1024 * 1024  # what the sockets hold, too


def test_a_body_that_is_cut_off(upstream: Start) -> None:
    server = upstream(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nall is"))
    finding = find(server_at(server), body="all is well")
    assert finding.result is CheckResult.PROTOCOL
    assert "while reading the body" in finding.detail


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_connection_that_ends_at_once(upstream: Start, kind: str) -> None:
    assert find(server_at(upstream(closed_at_once)), type=kind).result is CheckResult.PROTOCOL
    # A reset may be there before connect() has told that the connection stands.
    reset = find(server_at(upstream(reset_at_once)), type=kind)
    assert reset.result in (CheckResult.PROTOCOL, CheckResult.CONNECT)
    assert "reset by peer" in reset.detail or "lost" in reset.detail or reset.detail.startswith("closed")


# --- every type ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "tcp", "websocket"])
def test_refused(kind: str) -> None:
    server = ServerSpec(slot=0, name="s", host="127.0.0.1", port=free_port())
    finding = find(server, type=kind)
    assert finding == Finding(CheckResult.CONNECT, "no connection: Connection refused")


@pytest.mark.parametrize("kind", ["http", "tcp", "websocket"])
def test_no_such_socket(kind: str, socket_folder: str) -> None:
    finding = find(ServerSpec(slot=0, name="s", path=f"{socket_folder}/none"), type=kind)
    assert finding == Finding(CheckResult.CONNECT, "no connection: No such file or directory")


@pytest.mark.parametrize("kind", ["http", "tcp", "websocket"])
def test_a_name_that_is_not_resolved(kind: str) -> None:
    finding = find(ServerSpec(slot=0, name="s", host="nowhere.invalid", port=80), type=kind, timeout=30.0)
    assert finding.result is CheckResult.CONNECT
    assert finding.detail.startswith("no connection: its name is not resolved")


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_half_dead(upstream: Start, halt: threading.Event, kind: str) -> None:
    """It accepts, and never answers."""
    server = upstream(lambda connection: halt.wait(30) and None)
    finding = find(server_at(server), type=kind, timeout=0.05)
    assert finding.result is CheckResult.TIMEOUT
    assert finding.detail.startswith("not done within 0.05s: waiting for the")


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_dripping_head(upstream: Start, halt: threading.Event, kind: str) -> None:
    """The timeout is the whole check's: that something comes all the time does not help."""

    def handler(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nX: ")
        while not halt.wait(0.01):
            connection.send(b"x")

    finding = find(server_at(upstream(handler)), type=kind, timeout=0.1)
    assert finding.result is CheckResult.TIMEOUT


def test_a_dripping_body(upstream: Start, halt: threading.Event) -> None:
    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not halt.wait(0.01):
            connection.send(b"x")

    finding = find(server_at(upstream(handler)), body="well", timeout=0.1)
    assert finding == Finding(CheckResult.TIMEOUT, "not done within 0.1s: reading the body")


def test_tcp(upstream: Start) -> None:
    server = upstream(Connection.wait_closed)
    assert find(server_at(server), type="tcp") == Finding(CheckResult.OK, "connected")


def test_unix_sockets(upstream: Start, socket_folder: str) -> None:
    server = upstream(answering(), path=f"{socket_folder}/http")
    assert find(server_at(server), type="tcp").result is CheckResult.OK
    assert find(server_at(server)).result is CheckResult.OK
    assert server.requests[0].head.get("host") == "localhost"
    echo = upstream(ws.serve_echo, path=f"{socket_folder}/ws")
    assert find(server_at(echo), type="websocket").result is CheckResult.OK


def test_another_port(upstream: Start) -> None:
    server = upstream(answering())
    spec = ServerSpec(slot=0, name="s", host="127.0.0.1", port=free_port())
    assert find(spec, port=server.port).result is CheckResult.OK


def test_addresses_take_turns(upstream: Start) -> None:
    """One of two is dead: every other check fails."""
    server = upstream(answering())
    spec = ServerSpec(
        slot=0, name="s", host="two.invalid", addresses=("127.0.0.1", "127.0.0.2"), port=server.port
    )
    results = [find(spec, times=times).result for times in (1, 2, 3, 4)]
    assert sorted(results[:2]) == sorted(results[2:]) == [CheckResult.OK, CheckResult.CONNECT]
    assert results[:2] == results[2:]
    assert server.requests[0].head.get("host") == f"two.invalid:{server.port}"


def test_a_name_without_addresses_is_looked_up(upstream: Start) -> None:
    server = upstream(answering())
    spec = ServerSpec(slot=0, name="s", host="localhost", port=server.port)
    assert CheckResult.OK in {find(spec, times=times).result for times in (1, 2)}


# --- TLS -----------------------------------------------------------------------------------------------


def secure(file: Path, then: Handler) -> Handler:
    """A handler that speaks TLS first."""
    context = server_context(file)

    def handler(connection: Connection) -> None:
        try:
            connection.socket = context.wrap_socket(connection.socket, server_side=True)
        except OSError:
            return  # the client does not like the certificate
        then(connection)

    return handler


@pytest.fixture
def trusting(authority: Authority) -> UpstreamTls:
    return UpstreamTls(ca=authority.file.read_text())


KINDS: dict[str, Handler] = {"http": answering(), "tcp": Connection.wait_closed, "websocket": ws.serve_echo}


@pytest.mark.parametrize("kind", KINDS)
def test_tls_with_an_authority_of_its_own(
    upstream: Start, authority: Authority, trusting: UpstreamTls, kind: str
) -> None:
    server = upstream(secure(authority.issue(f"good-{kind}.pem", "127.0.0.1"), KINDS[kind]))
    assert find(server_at(server), trusting, type=kind).result is CheckResult.OK


@pytest.mark.parametrize("kind", KINDS)
def test_tls_on_a_unix_socket(upstream: Start, authority: Authority, socket_folder: str, kind: str) -> None:
    tls = UpstreamTls(ca=authority.file.read_text(), sni="app.internal")
    file = authority.issue(f"unix-{kind}.pem", "app.internal")
    server = upstream(secure(file, KINDS[kind]), path=f"{socket_folder}/{kind}")
    assert find(server_at(server), tls, type=kind).result is CheckResult.OK
    without = UpstreamTls(ca=tls.ca)
    finding = find(server_at(server), without, type=kind)
    assert finding.result is CheckResult.TLS
    assert "there is no name to verify" in finding.detail


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_for_another_name(
    upstream: Start, authority: Authority, trusting: UpstreamTls, kind: str
) -> None:
    server = upstream(secure(authority.issue(f"other-{kind}.pem", "other.internal"), KINDS[kind]))
    finding = find(server_at(server), trusting, type=kind)
    assert finding.result is CheckResult.TLS
    assert "certificate verify failed" in finding.detail
    assert "127.0.0.1" in finding.detail
    # The name to verify may be the pool's, or the check's own.
    named = UpstreamTls(ca=trusting.ca, sni="other.internal")
    assert find(server_at(server), named, type=kind).result is CheckResult.OK
    assert find(server_at(server), trusting, type=kind, host="other.internal").result is CheckResult.OK
    unverified = UpstreamTls(verify=False)
    assert find(server_at(server), unverified, type=kind).result is CheckResult.OK


@pytest.mark.parametrize("kind", KINDS)
def test_an_authority_that_nobody_trusts(upstream: Start, authority: Authority, kind: str) -> None:
    server = upstream(secure(authority.issue(f"unknown-{kind}.pem", "127.0.0.1"), KINDS[kind]))
    finding = find(server_at(server), UpstreamTls(), type=kind)
    assert finding.result is CheckResult.TLS
    assert "unable to get local issuer certificate" in finding.detail


@pytest.mark.parametrize("kind", KINDS)
def test_no_tls_where_it_is_expected(upstream: Start, trusting: UpstreamTls, kind: str) -> None:
    finding = find(server_at(upstream(KINDS[kind])), trusting, type=kind, timeout=0.5)
    # What has no end of a line is waited for by a plain HTTP server.
    assert finding.result in (CheckResult.TLS, CheckResult.TIMEOUT)
    assert "TLS" in finding.detail


def test_a_tls_server_that_closes(upstream: Start, trusting: UpstreamTls) -> None:
    assert find(server_at(upstream(closed_at_once)), trusting, type="tcp").result is CheckResult.TLS


# --- WebSocket -----------------------------------------------------------------------------------------


def test_websocket(upstream: Start) -> None:
    seen: list[ws.Frame] = []

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        assert head.first_line == b"GET /ws HTTP/1.1"
        assert head.get("host") == "chat.example.com"
        assert head.get("user-agent") == "lb-health"
        ws.accept(connection, head)
        ping = ws.read_frame(connection)
        connection.send(ws.frame(ping.payload, ws.PONG))
        close = ws.read_frame(connection)
        connection.send(ws.close_frame(1000))
        seen.extend((ping, close))

    server = upstream(handler)
    finding = find(server_at(server), type="websocket", path="/ws", host="chat.example.com")
    assert finding == Finding(CheckResult.OK, "pong")
    server.close()
    ping, close = seen
    assert (ping.opcode, len(ping.payload), close.close_code) == (ws.PING, 8, 1000)


def pong_after(*others: bytes) -> Handler:
    """Says other things before the pong."""

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        ping = ws.read_frame(connection)
        for data in others:
            connection.send(data)
        connection.send(ws.frame(ping.payload, ws.PONG))
        connection.wait_closed()

    return handler


GREETING = ws.frame(b"welcome", ws.TEXT)


@pytest.mark.parametrize(
    "others",
    [
        (GREETING, ws.frame(b"", ws.PING)),
        (ws.frame(b"unasked", ws.PONG),),
        (ws.frame(b"x" * 1000), ws.frame(b"x" * 60_000)),
        (GREETING,) * 31,
    ],
)
def test_what_comes_before_the_pong_is_skipped(upstream: Start, others: tuple[bytes, ...]) -> None:
    server = upstream(pong_after(*others))
    assert find(server_at(server), type="websocket").result is CheckResult.OK


@pytest.mark.parametrize(
    ("others", "detail"),
    [
        ((GREETING,) * 32, "no pong among the first 32 frames"),
        ((ws.frame(b"x" * 65_537),), "no pong among the first 65536 bytes"),
        ((ws.frame(b"x" * 60_000),) * 2, "no pong among the first 65536 bytes"),
        ((ws.close_frame(1011),), "closed with code 1011 instead of a pong"),
        ((ws.frame(b"", ws.CLOSE),), "closed with code none instead of a pong"),
        ((ws.frame(b"hi", ws.TEXT, masked=True),), "malformed frame: begins with 0x81 0x82"),
        ((b"\xc1\x00",), "malformed frame"),
        ((b"\x83\x00",), "malformed frame"),
    ],
)
def test_what_is_no_pong(upstream: Start, others: tuple[bytes, ...], detail: str) -> None:
    finding = find(server_at(upstream(pong_after(*others))), type="websocket")
    assert finding.result is CheckResult.PROTOCOL
    assert finding.detail.startswith(detail)


def test_a_pong_to_another_ping(upstream: Start) -> None:
    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        ws.read_frame(connection)
        connection.send(ws.frame(b"another", ws.PONG))

    finding = find(server_at(upstream(handler)), type="websocket")
    assert finding == Finding(CheckResult.PROTOCOL, "closed while waiting for the pong")


def test_no_pong(upstream: Start, halt: threading.Event) -> None:
    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        halt.wait(30)

    finding = find(server_at(upstream(handler)), type="websocket", timeout=0.1)
    assert finding == Finding(CheckResult.TIMEOUT, "not done within 0.1s: waiting for the pong")


def switching(*lines: str) -> Handler:
    """Answers with a 101 of these fields; {accept} is the right value."""

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        accept = ws.accept_token(head.get("sec-websocket-key") or "")
        text = "\r\n".join(("HTTP/1.1 101 Switching Protocols", *lines)).replace("{accept}", accept)
        connection.send(text.encode() + b"\r\n\r\n")
        connection.wait_closed()

    return handler


RIGHT = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Accept: {accept}")


@pytest.mark.parametrize(
    ("lines", "detail"),
    [
        ((*RIGHT[:2], "Sec-WebSocket-Accept: dGhlIHNhbXBsZSBub25jZQ=="), "does not answer the key"),
        (RIGHT[:2], "does not answer the key"),
        ((*RIGHT, RIGHT[2]), "does not answer the key"),
        (RIGHT[1:], "Connection does not name upgrade"),
        ((RIGHT[0], "Upgrade: h2c", RIGHT[2]), "Upgrade is not websocket"),
        ((*RIGHT, "Sec-WebSocket-Protocol: chat"), "sec-websocket-protocol was not asked for"),
        ((*RIGHT, "Sec-WebSocket-Extensions: permessage-deflate"), "sec-websocket-extensions was not"),
    ],
)
def test_a_wrong_handshake(upstream: Start, lines: tuple[str, ...], detail: str) -> None:
    finding = find(server_at(upstream(switching(*lines))), type="websocket")
    assert finding.result is CheckResult.PROTOCOL
    assert detail in finding.detail


def test_a_refused_handshake(upstream: Start) -> None:
    server = upstream(answering("403 Forbidden"))
    finding = find(server_at(server), type="websocket")
    assert finding == Finding(CheckResult.STATUS, "expected status 101, got 403")


def test_a_head_without_end(upstream: Start) -> None:
    finding = find(server_at(upstream(saying(b"HTTP/1.1 101 X\r\nX: " + b"x" * 200_000))), type="websocket")
    assert finding == Finding(CheckResult.PROTOCOL, "the head of the answer is too long")
