"""Servers that lie, hang, are slow or flap, beside one that is well, with the whole load balancer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, eventually, fetch, reply
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

CHECK = {"path": "/healthz", "every": "250ms", "timeout": "200ms", "fall": 2, "rise": 1, "body": "well"}
Answer = Callable[[Connection], None]


def well(connection: Connection) -> None:
    connection.send(reply(b"all is well"))


def lies(connection: Connection) -> None:
    connection.send(reply(b"<h1>It works!</h1>"))


def serve_checks(name: str, answer: Answer) -> Answer:
    """Answers checks with `answer`, and all else with `name`."""

    def serve(connection: Connection) -> None:
        while (head := connection.read_head()) is not None:
            if head.get("user-agent") == "lb-health":
                answer(connection)
            else:
                connection.send(reply(name.encode()))

    return serve


def start(balancer: StartBalancer, upstream: StartUpstream, sick: Answer, **check: Any) -> LoadBalancer:
    """Two servers, of which "good" is well and "sick" answers checks with `sick`."""
    servers = [
        {"name": name, "address": upstream(serve_checks(name, answer), name=name).address}
        for name, answer in (("good", well), ("sick", sick))
    ]
    lb = balancer(
        settings(servers, workers=2, pool={"health": CHECK | check}, route={"retry": {"attempts": 1}})
    )
    lb.wait_control()
    return lb


def view(lb: LoadBalancer, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = lb.admin(f"pools/main/servers/{name}")
    return answer


def answers(lb: LoadBalancer) -> set[str]:
    return {fetch(lb.address, "/").text for _ in range(12)}


@pytest.mark.parametrize(
    ("kind", "result"), [("lying", "body"), ("half-dead", "timeout"), ("slow", "timeout")]
)
def test_a_server_whose_checks_fail_gets_nothing(
    kind: str, result: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    over = threading.Event()

    def half_dead(connection: Connection) -> None:
        connection.wait_closed()  # it accepted and read; no byte ever comes

    def slow(connection: Connection) -> None:
        over.wait(0.6)  # three times as long as a check may take
        well(connection)

    lb = start(balancer, upstream, {"lying": lies, "half-dead": half_dead, "slow": slow}[kind])
    eventually(lambda: view(lb, "sick")["state"] == "down", "the sick one is down")
    eventually(lambda: answers(lb) == {"good"}, "the workers know")
    assert view(lb, "sick")["last_check"]["result"] == result
    assert view(lb, "good")["state"] == "up"
    over.set()


def test_a_server_that_flaps_faster_than_fall_stays(balancer: StartBalancer, upstream: StartUpstream) -> None:
    checks = 0

    def flap(connection: Connection) -> None:
        nonlocal checks
        checks += 1
        (well if checks % 2 else lies)(connection)

    lb = start(balancer, upstream, flap, every="500ms", timeout="500ms")
    eventually(
        lambda: view(lb, "sick")["checks_failed"] >= 3, "it has failed three times, never twice in a row"
    )
    assert answers(lb) == {"good", "sick"}
    assert not [event for event in lb.admin("events/recent") if event["kind"] == "server-down"]
