"""Established WebSockets survive what happens to the processes: every message arrives, once and in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.demo.load import Load
from lb.demo.messages import Terms
from tests.conftest import StartBalancer
from tests.harness import eventually
from tests.harness.chaos import Ordeal, broken_release, http_load, release, tables, whole

pytestmark = pytest.mark.scenario

LIBRARY = "tests.harness.library_traffic"
STEADY = Terms(rate=20)
PACKED = Terms(rate=20, deflate=True)


@pytest.fixture
def load() -> Iterator[Load]:
    """Clients and servers."""
    with Load() as made:
        yield made


def go_on(load: Load, messages: int = 200) -> None:
    """Waits until so many more messages have come, and nothing else has happened."""
    begun = load.account().received
    deadline = time.monotonic() + 20
    while load.account().received < begun + messages and time.monotonic() < deadline:
        time.sleep(0.05)
    account = load.account()
    whole(account)
    assert account.received >= begun + messages, f"the traffic stands still: {account}"


def test_kills_of_random_workers(balancer: StartBalancer, load: Load) -> None:
    lb = balancer(tables(load, workers=3))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    load.open(lb.port, 20, PACKED)
    for _ in range(6):
        ordeal.wait_held(60)
        ordeal.kill()
        go_on(load)
    assert lb.status()["restarts"]
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_kills_without_a_pause_in_between(balancer: StartBalancer, load: Load) -> None:
    """Also a worker that has just begun to take over what its predecessor left."""
    lb = balancer(tables(load, workers=2))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    ordeal.wait_held(40)
    for _ in range(5):
        ordeal.kill()
    go_on(load)
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_kills_with_the_library_at_both_ends(balancer: StartBalancer) -> None:
    with Load(clients=LIBRARY, serving=LIBRARY) as load:
        lb = balancer(tables(load, workers=2))
        ordeal = Ordeal(lb)
        load.open(lb.port, 10, STEADY)
        load.open(lb.port, 10, PACKED)
        for _ in range(3):
            ordeal.wait_held(20)
            ordeal.kill()
            go_on(load, 100)
        whole(load.stop())
        ordeal.assert_nothing_is_left()


def test_upgrades_scalings_and_reloads_at_once_with_requests(
    balancer: StartBalancer, load: Load, tmp_path: Path
) -> None:
    lb = balancer(tables(load, workers=2), code=release(tmp_path / "release"))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    load.open(lb.port, 10, PACKED)
    with http_load(lb.port) as http:
        for workers in (4, 1):
            ordeal.upgrade()
            ordeal.scale(workers)
            ordeal.reload()
            go_on(load)
        with broken_release(lb):
            assert "a broken release" in ordeal.upgrade(works=False)["error"]
        go_on(load)
        assert http.done > 50
    assert http.lost == []
    ordeal.wait_held(50)
    ordeal.kill()
    go_on(load)
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_what_is_known_about_a_tunnel_outlives_its_worker(balancer: StartBalancer, load: Load) -> None:
    """Age, bytes and messages of its life, not of its time with the last worker."""
    lb = balancer(tables(load, workers=1))
    ordeal = Ordeal(lb)
    load.open(lb.port, 3, Terms(rate=50, profile="32"))

    def counted(messages: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = lb.admin("tunnels")["tunnels"]
        return found if all(one["client_messages"] >= messages for one in found) else []

    before = eventually(lambda: counted(120), "120 messages each")
    ordeal.wait_held(3)
    ordeal.kill()
    ordeal.wait_held(3)
    after = eventually(lambda: counted(100), "the figures are back", 0.3)
    assert all(one["client_bytes"] > 120 * 32 and one["server_bytes"] > 100 * 32 for one in after)
    assert min(one["age"] for one in after) > min(one["age"] for one in before)
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_an_upgrade_keeps_the_workers_that_signals_asked_for(
    balancer: StartBalancer, load: Load, tmp_path: Path
) -> None:
    lb = balancer(tables(load, workers=1), code=release(tmp_path / "release"))
    ordeal = Ordeal(lb)
    lb.send_signal(signal.SIGTTIN)
    ordeal.wait_serving(2)
    assert lb.ask("upgrade", timeout=60)["upgrade"]["ok"]
    eventually(lambda: {worker["state"] for worker in lb.status()["workers"]} == {"serving"}, "all serve")
    assert len(lb.status()["workers"]) == 2
