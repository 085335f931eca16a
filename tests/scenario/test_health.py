"""Health checks, ejection, slow start and what the operator wants, with the whole load balancer."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, Upstream, eventually, fetch, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.gauges import Gauges
from tests.harness.settings import Tables, settings
from workers.contract.cells import ServerCell

pytestmark = pytest.mark.scenario

CHECK = {"path": "/healthz", "every": "250ms", "timeout": "250ms", "fall": 2, "rise": 1}


class Server:
    """Answers with its name, and is as well as the test says."""

    def __init__(self, start: StartUpstream, name: str) -> None:
        self.well = True  # what checks are told
        self.status = "200 OK"  # what requests are answered with
        self.cut = False  # whether an answer ends in the middle of its body (that to /slow does not end)
        self.name = name
        self.upstream: Upstream = start(self._serve, name=name)

    def _serve(self, connection: Connection) -> None:
        while (head := connection.read_head()) is not None:
            if head.get("user-agent") == "lb-health":
                connection.send(reply(b"", "200 OK" if self.well else "503 Service Unavailable"))
            elif head.get("upgrade"):
                ws.accept(connection, head, {"X-Server": self.name})
                ws.echo_frames(connection)
                return
            elif self.cut:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
                if head.first_line.startswith(b"GET /slow"):
                    connection.wait_closed()
                return
            else:
                connection.send(reply(self.name.encode(), self.status))


@pytest.fixture
def servers(upstream: StartUpstream) -> list[Server]:
    return [Server(upstream, f"s{number}") for number in range(4)]


def tables(servers: list[Server], *, workers: int = 2, **pool: Any) -> Tables:
    """A pool of named servers."""
    named = [{"name": server.name, "address": server.upstream.address} for server in servers]
    return settings(named, workers=workers, pool=pool, route={"retry": {"attempts": 1}})


def counts(lb: LoadBalancer, number: int = 24) -> Counter[str]:
    """What answers `number` requests on connections of their own: a server's name, or a status."""
    responses = [fetch(lb.address, "/") for _ in range(number)]
    return Counter(answer.text if answer.status == 200 else str(answer.status) for answer in responses)


def view(lb: LoadBalancer, name: str) -> dict[str, Any]:
    """A server as the admin API shows it."""
    answer: dict[str, Any] = lb.admin(f"pools/main/servers/{name}")
    return answer


def wait_state(lb: LoadBalancer, name: str, state: str) -> None:
    eventually(lambda: view(lb, name)["state"] == state, f"{name} is {state}")


def wait_all(lb: LoadBalancer, servers: list[Server], state: str) -> None:
    for server in servers:
        wait_state(lb, server.name, state)


def wait_used(lb: LoadBalancer, names: set[str]) -> None:
    """The workers use these servers and no others: there is no bell for tests, so they are asked."""
    eventually(lambda: set(counts(lb)) == names, f"{names} answer")


def started(balancer: StartBalancer, configuration: Tables) -> LoadBalancer:
    lb = balancer(configuration)
    lb.wait_control()
    return lb


def test_a_server_that_fails_its_checks_gets_nothing_new_until_it_is_back(
    balancer: StartBalancer, servers: list[Server]
) -> None:
    lb = started(balancer, tables(servers, health=CHECK))
    wait_all(lb, servers, "up")
    with ws.connect(lb.address) as tunnel:
        for server in servers[1:]:
            server.well = False
        wait_all(lb, servers[1:], "down")
        wait_used(lb, {"s0"})
        tunnel.send(ws.frame(b"still here", ws.TEXT, masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"
        down = view(lb, "s1")
        assert down["last_check"]["result"] == "status"
        assert down["last_check"]["detail"] == "expected status 200-299, got 503"
        for server in servers[1:]:
            server.well = True
        wait_all(lb, servers[1:], "up")
        wait_used(lb, {"s0", "s1", "s2", "s3"})


def test_all_servers_down_is_told_at_once(balancer: StartBalancer, servers: list[Server]) -> None:
    for server in servers:
        server.well = False
    lb = started(balancer, tables(servers, health=CHECK))
    wait_all(lb, servers, "down")
    eventually(lambda: fetch(lb.address, "/").status == 503, "the workers know")
    began = time.monotonic()
    response = fetch(lb.address, "/")
    assert time.monotonic() - began < 2  # the queue's timeout is 5 s: nobody waits for it
    assert response.status == 503
    assert int(response.header("retry-after") or "0") > 0


def test_below_the_panic_threshold_all_are_used(balancer: StartBalancer, servers: list[Server]) -> None:
    lb = started(balancer, tables(servers, health=CHECK, eject={"panic_percent": 50}))
    wait_all(lb, servers, "up")
    for server in servers[:2]:
        server.well = False
    wait_used(lb, {"s2", "s3"})
    servers[2].well = False
    wait_used(lb, {"s0", "s1", "s2", "s3"})
    servers[2].well = True
    wait_used(lb, {"s2", "s3"})


@pytest.mark.parametrize("setting", ["consecutive_errors", "gateway_failures"])
def test_errors_eject_and_never_more_than_max_percent(
    balancer: StartBalancer, servers: list[Server], setting: str
) -> None:
    eject = {"consecutive_errors": "off", setting: 3, "for": "10m", "max_for": "10m", "max_percent": 50}
    lb = started(balancer, tables(servers, workers=4, eject=eject))
    for server in servers[:3]:
        server.status = "502 Bad Gateway"
    eventually(
        lambda: counts(lb) and any(e["kind"] == "ejection-refused" for e in lb.admin("events/recent")),
        "two are ejected and the third is refused",
    )
    states = [view(lb, server.name)["state"] for server in servers]
    assert states.count("ejected") == 2
    assert states[3] != "ejected"
    bad = next(s.name for s, state in zip(servers[:3], states, strict=False) if state != "ejected")
    eventually(lambda: set(counts(lb)) == {"502", "s3"}, f"{bad} and s3 are used, on every worker")


def test_servers_that_are_not_reached_are_ejected_and_come_back(
    balancer: StartBalancer, servers: list[Server]
) -> None:
    eject = {"consecutive_errors": "off", "connect_failures": 2, "for": "500ms", "max_for": "500ms"}
    lb = started(balancer, tables(servers, eject=eject))
    servers[0].upstream.stop_listening()
    eventually(
        lambda: counts(lb) and any(e["kind"] == "server-returned" for e in lb.admin("events/recent")),
        "it is ejected, and returns",
    )
    event = next(e for e in lb.admin("events/recent") if e["kind"] == "server-ejected")
    assert (event["fields"]["server"], event["fields"]["reason"]) == ("s0", "connect_failures")
    assert view(lb, "s0")["ejections"] >= 1


def request_cut(lb: LoadBalancer) -> None:
    """A request whose answer may end too early."""
    with RawClient(lb.address) as client:
        client.send(request_bytes("/", headers={"Connection": "close"}))
        assert b"200 OK" in client.read_until_closed()


def test_answers_that_end_too_early_eject(balancer: StartBalancer, servers: list[Server]) -> None:
    two = servers[:2]
    eject = {"consecutive_errors": 3, "for": "10m", "max_for": "10m", "max_percent": 50}
    lb = started(balancer, tables(two, workers=1, eject=eject))
    two[0].cut = True
    for _ in range(6):
        request_cut(lb)
    eventually(lambda: view(lb, "s0")["state"] == "ejected", "it is ejected", within=10)


def test_a_client_that_leaves_a_long_answer_is_no_error_and_ends_a_row_of_them(
    balancer: StartBalancer, servers: list[Server]
) -> None:
    one = servers[:1]
    lb = started(balancer, tables(one, workers=1, eject={"consecutive_errors": 3}))
    one[0].cut = True
    for number in range(1, 3):
        request_cut(lb)
        request_cut(lb)
        with RawClient(lb.address) as client:
            client.send(request_bytes("/slow"))
            client.read_until(b"abc")
        lb.wait_access(number, reason="client_closed")
    assert Gauges(lb).count(ServerCell.ERRORS_IN_A_ROW) == 0


def test_errors_before_an_ejection_do_not_count_after_it(
    balancer: StartBalancer, servers: list[Server]
) -> None:
    two = servers[:2]
    eject = {
        "consecutive_errors": 4, "gateway_failures": 3, "for": "500ms", "max_for": "500ms", "max_percent": 50,
    }  # fmt: skip
    lb = started(balancer, tables(two, workers=1, eject=eject))
    gauges = Gauges(lb)
    two[0].status = "502 Bad Gateway"
    assert counts(lb, 6) == {"502": 3, "s1": 3}
    eventually(lambda: view(lb, "s0")["state"] == "ejected", "it is ejected")
    eventually(lambda: counts(lb, 1) == {"502": 1}, "it is back")
    assert gauges.count(ServerCell.GATEWAY_FAILURES) == 1
    assert gauges.count(ServerCell.ERRORS_IN_A_ROW) == 0


def test_a_server_that_comes_back_starts_slowly(balancer: StartBalancer, servers: list[Server]) -> None:
    two = servers[:2]
    lb = started(balancer, tables(two, workers=1, health=CHECK, slow_start="4s"))
    wait_all(lb, two, "up")
    two[0].well = False
    wait_state(lb, "s0", "down")
    two[0].well = True
    wait_state(lb, "s0", "starting")
    first = counts(lb, 40)["s0"]
    eventually(lambda: view(lb, "s0")["effective_weight"] > 0.5, "it has more than half of its share")
    second = counts(lb, 40)["s0"]
    wait_state(lb, "s0", "up")
    eventually(lambda: counts(lb, 40)["s0"] == 20, "it has its whole share")
    assert first < 12, (first, second)
    assert first < second < 20, (first, second)


def test_drain_keeps_sessions_and_maint_keeps_tunnels(balancer: StartBalancer, servers: list[Server]) -> None:
    two = servers[:2]
    lb = started(balancer, tables(two, health=CHECK, sticky={"cookie": "lb"}))
    wait_all(lb, two, "up")
    answer = fetch(lb.address, "/")
    mine, other = answer.text, next(s.name for s in two if s.name != answer.text)
    cookie = {"Cookie": (answer.header("set-cookie") or "").split(";")[0]}
    with RawClient(lb.address) as tunnel:
        assert ws.upgrade(tunnel, headers=cookie).header("x-server") == mine
        lb.admin(f"pools/main/servers/{mine}", method="PATCH", body={"admin": "drain"})
        wait_used(lb, {other})
        for _ in range(8):
            assert fetch(lb.address, "/", headers=cookie).text == mine
        lb.reload()
        assert view(lb, mine)["admin"] == "drain"
        lb.admin(f"pools/main/servers/{mine}", method="PATCH", body={"admin": "maint"})
        eventually(lambda: fetch(lb.address, "/", headers=cookie).text == other, "the session moves")
        assert view(lb, mine)["health"] == "up"
        tunnel.send(ws.frame(b"still here", ws.TEXT, masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"
        lb.admin(f"pools/main/servers/{mine}", method="PATCH", body={"admin": "ready"})
        wait_used(lb, {"s0", "s1"})


def test_a_killed_control_process_leaves_states_as_they_are(
    balancer: StartBalancer, servers: list[Server]
) -> None:
    eject = {"consecutive_errors": 3, "for": "10m", "max_for": "10m"}
    lb = started(balancer, tables(servers, health=CHECK, eject=eject))
    wait_all(lb, servers, "up")
    servers[0].well = False
    wait_state(lb, "s0", "down")
    lb.admin("pools/main/servers/s1", method="PATCH", body={"admin": "maint"})
    servers[2].status = "500 Internal Server Error"
    wait_used(lb, {"s3"})
    old = lb.control_pid
    os.kill(old, signal.SIGKILL)
    assert set(counts(lb)) == {"s3"}
    lb.wait_control(old)
    assert set(counts(lb)) == {"s3"}
    assert [view(lb, s.name)["state"] for s in servers] == ["down", "maint", "ejected", "up"]
    servers[0].well = True
    wait_used(lb, {"s0", "s3"})
