"""The commands on the admin API, against the real load balancer under traffic."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually
from tests.harness import websocket as ws
from tests.harness.client import fetch
from tests.harness.settings import settings
from tests.unit.terminal import Terminal

pytestmark = pytest.mark.scenario


def lb_json(lb: LoadBalancer, *arguments: str) -> Any:
    """What a command prints with --json, once it succeeds."""
    done = lb.command(*arguments, "-c", str(lb.file), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _names(lb: LoadBalancer, count: int) -> set[str]:
    """The servers that answer `count` requests."""
    return {fetch(lb.address).text.split()[0] for _ in range(count)}


def test_a_server_is_drained_and_comes_back(balancer: StartBalancer, upstream: StartUpstream) -> None:
    one, other = upstream(name="one"), upstream(name="other")
    lb = balancer(settings([one.address, other.address]))
    shown = lb.command("server", f"main/{one.address}", "drain", "-c", str(lb.file))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"main/{one.address}: drain")
    eventually(lambda: _names(lb, 8) == {"other"}, "nothing new comes")
    listed = {server["name"]: server["state"] for server in lb_json(lb, "server")}
    assert listed == {one.address: "drain", other.address: "unchecked"}
    changed = lb_json(lb, "server", f"main/{one.address}", "ready", "weight=3")
    assert (changed["admin"], changed["effective_weight"]) == ("ready", 3.0)
    eventually(lambda: "one" in _names(lb, 4), "it is used again")
    assert lb_json(lb, "server", f"main/{one.address}", "weight=default")["effective_weight"] == 1.0
    missing = lb.command("server", f"main/{one.address}1", "-c", str(lb.file))
    assert (missing.returncode, f"did you mean main/{one.address}" in missing.stderr) == (1, True)


def test_tunnels_are_listed_and_closed(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream(ws.serve_echo)
    lb = balancer(settings([server.address]))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ws.connect(lb.address, f"/{number}")) for number in range(5)]
        listed = eventually(lambda: _all(lb, 5), "all are listed")
        assert {tunnel["path"] for tunnel in listed} == {f"/{number}" for number in range(5)}
        first = next(tunnel for tunnel in listed if tunnel["path"] == "/0")
        closed = lb_json(lb, "tunnels", "close", first["id"], "--code", "4001", "--reason", "moved")
        assert closed["count"] == 1
        frame = ws.read_frame(clients[0])
        assert (frame.close_code, frame.payload[2:]) == (4001, b"moved")
        for client in clients[:1]:
            client.send(ws.close_frame(4001, masked=True))
        eventually(lambda: _all(lb, 4), "the others stay")
        assert lb_json(lb, "tunnels", "close", "--route", "other")["count"] == 0
        assert lb_json(lb, "tunnels", "close", "--pool", "main", "--code", "1012")["count"] == 4
        for client in clients[1:]:
            assert ws.read_frame(client).close_code == 1012
            client.send(ws.close_frame(1012, masked=True))
        eventually(lambda: lb_json(lb, "tunnels")["total"] == 0, "none is left")


def _all(lb: LoadBalancer, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lb_json(lb, "tunnels", "--all")["tunnels"]
    return found if len(found) == count else []


def test_status_with_and_without_the_control_process(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream()
    lb = balancer(settings([server.address]))
    lb.wait_control()  # its pid is 0 until then, and a signal to 0 is one to ourselves
    for _ in range(7):
        assert fetch(lb.address).status == 200
    status = lb_json(lb, "status")
    assert (status["ready"], status["problems"]) == (True, [])
    (counted,) = [one for pool in status["pools"] for one in pool["servers"]]
    assert (counted["name"], counted["requests"]) == (server.address, 7)
    assert sum(route["requests"] for route in status["routes"]) == 7
    assert all(worker["memory_bytes"] > 0 for worker in status["workers"])
    os.kill(status["control_pid"], signal.SIGSTOP)
    try:
        shown = lb.command("status", "-c", str(lb.file))
        assert shown.returncode == 0
        assert "does not answer within 3s" in shown.stdout
        assert "2 of 2 workers serving" in shown.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):  # the master may have replaced it
            os.kill(status["control_pid"], signal.SIGCONT)


def test_reload_by_the_api(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    done = lb.command("reload", "--admin", f"unix:{lb.admin_path}")
    assert (done.returncode, "generation 2 is served" in done.stdout) == (0, True), done.stderr


def test_top_survives_a_reload_and_the_death_of_the_control_process(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream()
    lb = balancer(settings([server.address]))
    with Terminal("top", "--interval", "200ms", "-c", str(lb.file)) as terminal:
        terminal.wait_for(f"main/{server.address}")
        assert fetch(lb.address).status == 200
        lb.reload()
        terminal.wait_for("generation 2")
        old = lb.status()["control_pid"]
        os.kill(old, signal.SIGKILL)
        eventually(lambda: lb.status()["control_pid"] not in (0, old), "there is another one")
        terminal.wait_for("control process")  # the event, or the problem
        assert lb.command("server", f"main/{server.address}", "maint", "-c", str(lb.file)).returncode == 0
        terminal.wait_for("maint")
        terminal.types("q")
        assert terminal.end() == 0
