"""The bench's load generator and server: each answer and each echo is checked."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.bench import wire
from tests.bench.engine import Options
from tests.bench.generators import Load, LoadError, server
from tests.harness.upstream import Connection, Upstream, reply
from tests.harness.websocket import accept_token, frame, read_frame

CORES = os.sched_getaffinity(0)
SECONDS = 0.05


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the bench's own server listens."""
    with server(CORES) as ports:
        yield ports[0]


def drive(port: int, mode: str, **more: Any) -> dict[str, Any]:
    """What a load generator says that is connected to `port`."""
    options = Options(mode, port, more.pop("connections", 4), more.pop("seconds", SECONDS), **more)
    with Load(options, CORES) as load:
        load.begin()
        return load.result()


# --- what is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", wire.SIZES)
def test_no_two_requests_are_alike(kind: str) -> None:
    make = wire.Gets(kind, routes=7)
    made = [make.following() for _ in range(2000)]
    paths = {request.tail for request in made}
    heads = [request.data.partition(b"\r\n\r\n")[0] for request in made]
    assert len(paths) == len(made)
    for name in (b"Cookie", b"User-Agent"):
        fields = {line for head in heads for line in head.split(b"\r\n") if line.startswith(name)}
        assert len(fields) > 50
    assert {path.split(b"/")[2] for path in paths} == {b"r%03d" % number for number in range(7)}


@pytest.mark.parametrize("kind", wire.SIZES)
def test_the_tail_names_the_request(kind: str) -> None:
    request = wire.Gets(kind).following()
    path = request.data.split(b" ")[1]
    assert (len(path), request.tail) == (wire.PATH, path + b" ok\n")


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_message_is_a_frame_and_its_echo_another(size: int) -> None:
    (message,) = wire.messages(size, 1)
    assert len(message.data) == len(wire.frame_head(size, masked=True)) + 4 + size
    assert message.echo.endswith(message.data[len(message.data) - size :])
    assert message.data[1] & 0x80 and not message.echo[1] & 0x80


# --- against the bench's own server --------------------------------------------------------------------


@pytest.mark.parametrize("kind", wire.SIZES)
def test_requests_are_answered(port: int, kind: str) -> None:
    found = drive(port, "closed", kind=kind)
    assert found["operations"] > 4 and not found["failed"], found


@pytest.mark.parametrize("size", [64, 125, 126, 4096, 65_536])
def test_messages_are_echoed(port: int, size: int) -> None:
    found = drive(port, "echo", size=size)
    assert found["operations"] > 4 and not found["failed"], found


def test_websockets_are_opened_and_closed(port: int) -> None:
    found = drive(port, "handshake")
    assert found["operations"] > 4 and not found["failed"], found


def test_every_websocket_gets_what_is_sent_to_all(port: int) -> None:
    found = drive(port, "fan", connections=50, server_port=port)
    assert found["operations"] >= 50 and not found["operations"] % 50 and not found["failed"], found


def test_a_fixed_rate_is_kept(port: int) -> None:
    found = drive(port, "rate", rate=1000.0, seconds=0.2)
    assert found["operations"] == 200
    assert found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert not found["failed"], found


def test_what_is_late_counts_from_when_it_was_due() -> None:
    """One connection and a server that answers after 20 ms can't serve 200 requests a second."""

    never = threading.Event()

    def slow(connection: Connection) -> None:
        while request := connection.read_request():
            never.wait(0.02)
            connection.send(_right(request.target))

    with Upstream(slow) as upstream:
        found = drive(upstream.port, "rate", connections=1, rate=200.0, seconds=0.1)
    assert found["operations"] == 20
    assert found["max_ms"] > 200  # the last was due after 95 ms and answered after 400


# --- what is wrong is noticed --------------------------------------------------------------------------


def _right(target: str) -> bytes:
    return reply(target[: wire.PATH].encode() + b" ok\n")


def _after(good: int, wrong: Callable[[str], bytes]) -> Callable[[Connection], None]:
    """Answers rightly so many times on each connection, and then wrongly."""

    def handler(connection: Connection) -> None:
        for number in itertools.count():
            request = connection.read_request()
            if request is None:
                return
            connection.send(_right(request.target) if number < good else wrong(request.target))
            if number > good:
                return

    return handler


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda target: reply(b"x" * wire.TAIL), "not to this request"),
        (lambda target: _right(target)[:-1] + b"!", "not to this request"),
        (lambda target: reply(b"x" + target[: wire.PATH].encode() + b" ok\n"), "not the answer"),
        (lambda target: reply(target[: wire.PATH].encode() + b" ok\n", "500 Broken"), "not the answer"),
        (lambda target: reply(target[: wire.PATH].encode()), "not the answer"),
    ],
    ids=["another's", "one byte", "longer", "status", "shorter"],
)
def test_a_wrong_answer(wrong: Callable[[str], bytes], said: str) -> None:
    with Upstream(_after(3, wrong)) as upstream:
        found = drive(upstream.port, "closed", connections=2, seconds=0.5)
    assert found["operations"] == 6
    assert found["failed"] == 2
    assert said in str(found["errors"])


def test_a_connection_that_ends_before_the_answer() -> None:
    def handler(connection: Connection) -> None:
        request = connection.read_request()
        assert request is not None
        connection.send(_right(request.target))
        connection.read_request()

    with Upstream(handler) as upstream:
        found = drive(upstream.port, "closed", connections=1)
    assert (found["operations"], found["failed"]) == (1, 1)


def _echo_wrongly(connection: Connection) -> None:
    head = connection.read_head()
    assert head is not None
    token = accept_token(head.get("sec-websocket-key") or "")
    connection.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % token.encode()
    )
    payload = read_frame(connection).payload
    connection.send(frame(payload[:-1] + b"?"))
    connection.wait_closed()


def test_a_wrong_echo_is_no_measurement() -> None:
    with Upstream(_echo_wrongly) as upstream, pytest.raises(LoadError, match="wrong bytes"):
        drive(upstream.port, "echo", connections=1)


def test_a_refused_handshake_is_no_measurement() -> None:
    handler = _after(0, lambda target: reply(b""))
    with Upstream(handler) as upstream, pytest.raises(LoadError, match="refused"):
        drive(upstream.port, "echo", connections=1)


def test_nobody_listens() -> None:
    with Upstream() as upstream:
        port = upstream.port
    with pytest.raises(LoadError, match="can't connect"):
        drive(port, "closed")
