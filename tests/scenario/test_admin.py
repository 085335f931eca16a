"""The admin API of a running load balancer: what it shows is so, and what it is told happens."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, RawClient, eventually
from tests.harness import websocket as ws
from tests.harness.admin import UnixConnection
from tests.harness.client import request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import settings
from tests.harness.upstream import Connection, reply

pytestmark = pytest.mark.scenario
TOKEN = "0123456789abcdef0123456789abcdef"


def named(name: str) -> Any:
    """A server that answers with its name."""

    def handler(connection: Connection) -> None:
        while connection.read_request() is not None:
            connection.send(reply(name.encode()))

    return handler


def answers(lb: LoadBalancer, count: int) -> list[str]:
    """Who answers `count` requests, each on a connection of its own."""
    found = []
    for _ in range(count):
        with RawClient(lb.address) as client:
            client.send(request_bytes())
            found.append(client.read_response().text)
    return found


class EventStream:
    """The event stream over the Unix socket."""

    def __init__(self, lb: LoadBalancer) -> None:
        self.connection = UnixConnection(lb.admin_path)
        self.connection.request("GET", "/api/v1/events?after=0")
        self.response: http.client.HTTPResponse = self.connection.getresponse()
        assert self.response.status == 200

    def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind; times out with the connection."""
        current = ""
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                current = value
            elif name == "data" and current == kind:
                event: dict[str, Any] = json.loads(value)
                return event
        raise AssertionError(f"the stream ended before {kind}")

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@contextlib.contextmanager
def listening(lb: LoadBalancer) -> Iterator[EventStream]:
    stream = EventStream(lb)
    try:
        yield stream
    finally:
        stream.close()


def test_a_drained_server_gets_nothing_new_until_it_is_ready(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    one, two = upstream(named("one")), upstream(named("two"))
    lb = balancer(settings([one.address, two.address], workers=2))
    path = f"pools/main/servers/{one.address}"
    assert set(answers(lb, 8)) == {"one", "two"}
    with listening(lb) as stream:
        view = lb.admin(path, method="PATCH", body={"admin": "drain"})
        assert (view["state"], view["effective_weight"]) == ("drain", 0.0)
        assert stream.until("server-admin")["fields"]["server"] == one.address
    eventually(lambda: set(answers(lb, 8)) == {"two"}, "nothing new comes to the drained server")
    lb.reload()
    assert set(answers(lb, 8)) == {"two"}
    assert lb.admin(path)["state"] == "drain"
    lb.admin(path, method="PATCH", body={"admin": "ready"})
    eventually(lambda: set(answers(lb, 8)) == {"one", "two"}, "it is back")
    assert 'event="server changed"' in lb.stderr


def test_the_figures_are_the_traffic(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream(named("one"))
    lb = balancer(settings([server.address], workers=2))
    answers(lb, 7)

    def counted() -> bool:
        status = lb.admin("status")
        counts = {
            sum(worker["requests"] for worker in status["workers"]),
            status["routes"][0]["requests"],
            status["pools"][0]["servers"][0]["requests"],
            status["listeners"][0]["accepted"],
        }
        return counts == {7}

    eventually(counted, "seven requests are counted")
    status = lb.admin("status")
    assert status["ready"] and status["problems"] == []
    assert status["pid"] == lb.pid
    assert [worker["pid"] for worker in status["workers"]] == lb.worker_pids()
    assert lb.admin("config")["text"] == lb.file.read_text()


def test_reloads_by_the_api_and_what_the_stream_says_of_them(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(named("one")).address], workers=1))
    with listening(lb) as stream:
        lb.tables["route"][0]["name"] = "renamed"
        lb.write()
        outcome = lb.admin("reload", method="POST", body={})
        assert outcome["ok"] and outcome["generation"] == 2
        assert stream.until("reload")["fields"]["generation"] == 2
        assert [route["name"] for route in lb.admin("routes")] == ["renamed"]
        lb.file.write_text("nonsense = 1\n")
        outcome = lb.admin("reload", method="POST", body={})
        assert not outcome["ok"] and "nonsense" in outcome["error"]
        stream.until("reload-failed")
    status = lb.admin("status")
    assert (status["reloads_succeeded"], status["reloads_failed"], status["generation"]) == (1, 1, 2)
    assert status["problems"][0].startswith("the last reload failed, generation 2 serves on")


def test_tunnels_are_listed_and_closed_with_the_code_that_was_asked_for(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=2))
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(ws.connect(lb.address, target=f"/room/{number}")) for number in range(5)
        ]
        clients[0].send(ws.frame(b"hello", masked=True))
        assert ws.read_frame(clients[0]).payload == b"hello"
        eventually(lambda: lb.admin("tunnels")["total"] == 5, "five tunnels")
        page = lb.admin("tunnels?limit=3")
        rest = lb.admin(f"tunnels?limit=3&cursor={page['cursor']}")
        tunnels = {tunnel["path"]: tunnel for tunnel in page["tunnels"] + rest["tunnels"]}
        assert sorted(tunnels) == [f"/room/{number}" for number in range(5)]
        assert rest["cursor"] == "" and page["missing"] == rest["missing"] == []
        first = tunnels["/room/0"]
        assert (first["client_messages"], first["server_messages"], first["pool"]) == (1, 1, "main")
        eventually(lambda: lb.admin("pools/main")["servers"][0]["tunnels"] == 5, "all are counted")

        with listening(lb) as stream:
            asked = {"ids": [first["id"]], "code": 4242, "reason": "go away"}
            assert lb.admin("tunnels/close", method="POST", body=asked)["count"] == 1
            frame = ws.read_frame(clients[0])
            assert (frame.close_code, frame.payload[2:]) == (4242, b"go away")
            assert stream.until("tunnels-closed")["fields"]["code"] == 4242
        clients[1].send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(clients[1]).payload == b"still here"

        assert lb.admin("tunnels/close", method="POST", body={"pool": "main", "code": 1012})["count"] == 4
        assert [ws.read_frame(client).close_code for client in clients[1:]] == [1012] * 4
    eventually(lambda: lb.admin("tunnels")["total"] == 0, "no tunnel is left")


def test_a_tcp_address_needs_the_token(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    port = free_port()
    tables = settings([upstream(named("one")).address], workers=1)
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN)
    tables["admin"] = {"listen": f"127.0.0.1:{port}", "token_file": str(token_file)}

    def ask(path: str, token: str | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    lb = balancer(tables)
    assert ask("/api/v1/status", None) == 401
    assert ask("/api/v1/status", "wrong") == 401
    assert ask("/api/v1/status", TOKEN) == 200
    assert ask("/", None) == 200
    token_file.write_text("another" + TOKEN)
    lb.reload()
    assert eventually(lambda: ask("/api/v1/status", f"another{TOKEN}") == 200, "the new token is known")
    assert ask("/api/v1/status", TOKEN) == 401
    assert TOKEN not in lb.stderr
