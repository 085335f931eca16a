"""The balancing policies over real servers and several workers; their distributions are unit-tested."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import (
    Connection,
    LoadBalancer,
    RawClient,
    Upstream,
    eventually,
    fetch,
    open_clients,
    reply,
)
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import settings
from workers.core.balance.hashed import FLOOR

pytestmark = pytest.mark.scenario


def counts(lb: LoadBalancer, number: int, **headers: str) -> Counter[str]:
    """Which servers answer `number` requests on connections of their own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Counter(fetch(lb.address, "/", headers=named).text.split(" ")[0] for _ in range(number))


@pytest.fixture
def servers(upstream: StartUpstream) -> list[Upstream]:
    """Three servers that say their name."""
    return [upstream(name=f"s{number}") for number in range(3)]


def weighted(servers: list[Upstream], *weights: int) -> list[dict[str, object]]:
    """`[[server]]` tables."""
    return [
        {"name": server.name, "address": server.address, "weight": weight}
        for server, weight in zip(servers, weights, strict=True)
    ]


def test_round_robin_by_weight(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(settings(weighted(servers, 3, 2, 1), workers=1))
    assert counts(lb, 60) == {"s0": 30, "s1": 20, "s2": 10}


@pytest.mark.parametrize("policy", ["random", "p2c", "least-conn"])
def test_every_server_gets_some(policy: str, balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(settings([server.address for server in servers], pool={"balance": policy}))
    assert len(counts(lb, 60)) == 3


def test_backups_serve_only_when_the_others_are_down(
    balancer: StartBalancer, servers: list[Upstream]
) -> None:
    members = weighted(servers, 1, 1, 1)
    members[2]["backup"] = True
    lb = balancer(settings(members, route={"retry": {"attempts": 3}}))
    assert set(counts(lb, 20)) == {"s0", "s1"}
    servers[0].close()
    assert set(counts(lb, 20)) == {"s1"}
    servers[1].close()
    assert set(counts(lb, 20)) == {"s2"}


def test_hash_sends_equal_keys_to_equal_servers(balancer: StartBalancer, servers: list[Upstream]) -> None:
    """Right after each other, though the other worker's figures still show the request before."""
    pool = {"balance": "hash", "hash_on": "header:X-Key"}
    lb = balancer(settings([server.address for server in servers], workers=2, pool=pool))
    chosen = [counts(lb, 10, X_Key=str(key)) for key in range(12)]
    assert [len(counter) for counter in chosen] == [1] * 12
    assert len({next(iter(counter)) for counter in chosen}) > 1


def test_hash_sends_equal_keys_to_equal_servers_at_the_same_time(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """A bound of 1.25 times the share, of eight requests over three servers, would send half elsewhere."""
    opened = threading.Event()

    def handler(connection: Connection) -> None:
        while connection.read_request() is not None:
            opened.wait(20)
            connection.send(reply(connection.upstream.name.encode()))

    servers = [upstream(handler, name=f"s{number}") for number in range(3)]
    pool = {"balance": "hash", "hash_on": "header:X-Key"}
    lb = balancer(settings([server.address for server in servers], workers=2, pool=pool))
    with open_clients(lb.address, FLOOR) as clients:
        for client in clients:
            client.send(request_bytes("/", headers={"X-Key": "one"}))
        eventually(lambda: sum(len(server.requests) for server in servers) == FLOOR, "all are asked")
        opened.set()
        assert len({client.read_response().text for client in clients}) == 1


def test_least_conn_sees_the_tunnels_of_all_workers(balancer: StartBalancer, upstream: StartUpstream) -> None:
    """With each worker seeing only its own tunnels, four workers would fill three servers unevenly."""
    servers = [upstream(ws.serve_echo, name=f"s{number}") for number in range(3)]
    pool = {"balance": "least-conn"}
    lb = balancer(settings([server.address for server in servers], workers=4, pool=pool))
    clients: list[RawClient] = []
    try:
        for number in range(24):
            clients.append(ws.connect(lb.address))
            _wait_seen(lb, number + 1)
        held = [server.open_connections() for server in servers]
        assert max(held) - min(held) <= 2, held
    finally:
        for client in clients:
            client.close()


def _wait_seen(lb: LoadBalancer, number: int) -> None:
    """Waits until the scoreboard has `number` tunnels, and the workers have had a look at it."""

    def seen() -> bool:
        return bool(sum(worker["tunnels"] for worker in lb.status()["workers"]) >= number)

    eventually(seen, f"{number} tunnels on the scoreboard")
    wait_tick(lb)


def wait_tick(lb: LoadBalancer) -> None:
    """Waits until every worker has ticked."""
    started = time.monotonic()

    def ticked() -> bool:
        elapsed = time.monotonic() - started
        return all(worker["heartbeat_age"] < elapsed for worker in lb.status()["workers"])

    eventually(ticked, "every worker ticks")


def test_weights_change_by_reload(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(settings(weighted(servers, 1, 1, 1), workers=1))
    assert counts(lb, 30) == {"s0": 10, "s1": 10, "s2": 10}
    lb.tables["pool"]["main"]["server"] = weighted(servers, 4, 1, 1)
    lb.reload()
    assert counts(lb, 30) == {"s0": 20, "s1": 5, "s2": 5}


def test_a_server_that_comes_up_is_used(balancer: StartBalancer, upstream: StartUpstream) -> None:
    port = free_port()
    lb = balancer(settings([upstream(name="s0").address, f"127.0.0.1:{port}"], workers=1))
    assert set(counts(lb, 10)) == {"s0"}
    upstream(name="s1", port=port)
    assert set(counts(lb, 10)) == {"s0", "s1"}


def test_least_conn_knows_the_load_of_a_server_whose_weight_changed(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    servers = [upstream(ws.serve_echo, name=name) for name in ("a", "b")]
    lb = balancer(settings(weighted(servers, 1, 1), workers=1, pool={"balance": "least-conn"}))
    found: Counter[str | None] = Counter()
    with contextlib.ExitStack() as stack:
        for weight, expected in ((1, {"a": 5, "b": 5}), (2, {"a": 10, "b": 5}), (1, {"a": 10, "b": 10})):
            if lb.tables["pool"]["main"]["server"][0]["weight"] != weight:
                lb.tables["pool"]["main"]["server"][0]["weight"] = weight
                lb.reload()
            for _ in range(sum(expected.values()) - found.total()):
                client = stack.enter_context(RawClient(lb.address))
                found[ws.upgrade(client).header("x-server")] += 1
            assert found == expected
