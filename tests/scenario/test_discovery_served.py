"""What is discovered is served: by the real load balancer, under traffic."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually, fetch
from tests.harness import websocket as ws
from tests.harness.client import RawClient
from tests.harness.load import Background, HttpLoad
from tests.harness.nameserver import DNSMASQ, NameServer
from tests.harness.settings import settings
from tests.harness.upstream import Connection, Upstream, reply

pytestmark = pytest.mark.scenario
needs_dnsmasq = pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is not installed")


def echo_target(connection: Connection) -> None:
    """A handler: each request is answered with its target."""
    while (request := connection.read_request()) is not None:
        connection.send(reply(request.target.encode()))


def write(file: Path, *servers: Upstream) -> None:
    """Lists `servers`, as a careful program does: the file is there as a whole or not at all."""
    whole = file.with_suffix(".new")
    whole.write_text(json.dumps([{"targets": [server.address for server in servers]}]), encoding="utf-8")
    whole.replace(file)


def serves(lb: LoadBalancer, *names: str) -> bool:
    """Whether the next requests go to all of `names`, and to nobody else."""
    return {fetch(lb.address).text for _ in range(3 * len(names) + 1)} == set(names)


def kill_control(lb: LoadBalancer) -> None:
    """Kills the control process."""
    os.kill(lb.control_pid, signal.SIGKILL)


@contextmanager
def traffic(lb: LoadBalancer) -> Iterator[HttpLoad]:
    """Requests without a pause until the end of the block; none may be lost."""
    with Background() as background:
        load = HttpLoad(lb.port, connections=8, pause=0.005)
        running = asyncio.run_coroutine_threadsafe(load.run(), background.loop)
        try:
            eventually(lambda: load.done > 50, "requests are answered")
            yield load
        finally:
            background.loop.call_soon_threadsafe(load.stop)
            running.result(30)
    assert load.failures == []


def test_a_file_adds_and_removes_servers_under_traffic(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    one, two = upstream(echo_target, name="one"), upstream(echo_target, name="two")
    file = tmp_path / "servers.json"
    write(file, one)
    lb = balancer(settings([], pool={"discover": {"file": str(file), "refresh": "100ms"}}))
    pids = lb.worker_pids()
    with traffic(lb) as load:
        write(file, one, two)
        eventually(lambda: len(two.requests) > 20, "the second server is used")
        write(file, two)
        eventually(lambda: one.open_connections() == 0, "the first server is left")
        seen, done = len(one.requests), load.done
        eventually(lambda: load.done > done + 50, "requests are answered")
        assert len(one.requests) == seen
        write(file, one, two)
        eventually(lambda: len(one.requests) > seen + 20, "the first server is used again")
    assert lb.worker_pids() == pids


def test_a_tunnel_on_a_server_that_left_the_file_lives_on(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    one, two = upstream(ws.serve_echo, name="one"), upstream(ws.serve_echo, name="two")
    file = tmp_path / "servers.json"
    write(file, one)
    lb = balancer(settings([], pool={"discover": {"file": str(file), "refresh": "100ms"}}))
    with ws.connect(lb.address) as tunnel:
        write(file, two)
        eventually(lambda: serves(lb, "two"), "the other server is used")
        tunnel.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"
        file.unlink()
        eventually(lambda: 'event="discovery failed"' in lb.stderr, "the failure is logged")
        lb.reload()
        assert serves(lb, "two")


@needs_dnsmasq
def test_services_and_their_names_are_followed(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    one, two = upstream(ws.serve_echo, name="one"), upstream(ws.serve_echo, name="two")
    with NameServer(tmp_path) as names:
        names.set_hosts(a="127.0.0.1", b="127.0.0.1")
        lb = balancer(settings(["srv://_ws._tcp.test"], dns={"nameservers": [names.address]}))
        assert fetch(lb.address).status == 503
        names.restart(f"srv-host=_ws._tcp.test,a.test,{one.port}")
        eventually(lambda: serves(lb, "one"), "the server is found")
        with RawClient(lb.address) as client:
            names.restart(
                f"srv-host=_ws._tcp.test,a.test,{one.port}", f"srv-host=_ws._tcp.test,b.test,{two.port}"
            )
            eventually(lambda: serves(lb, "one", "two"), "both servers are found")
            names.stop()
            kill_control(lb)
            failed = 'source=srv://_ws._tcp.test reason="Could not contact DNS servers" kept=false'
            eventually(lambda: failed in lb.stderr, "the next control process finds nothing")
            assert serves(lb, "one", "two")
            names.options = (f"srv-host=_ws._tcp.test,b.test,{two.port}",)
            names.start()
            eventually(lambda: serves(lb, "two"), "one server is left")
            assert client.request("/").text == "two"


@needs_dnsmasq
def test_a_name_gets_another_address(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    one = upstream(ws.serve_echo, name="one")
    with NameServer(tmp_path) as names:
        names.set_hosts(app="127.0.0.9")  # nobody listens there
        lb = balancer(settings([f"app.test:{one.port}"], dns={"nameservers": [names.address]}))
        eventually(lambda: fetch(lb.address).status == 502, "the address is tried")
        names.set_hosts(app="127.0.0.1")
        eventually(lambda: serves(lb, "one"), "the new address is used")
