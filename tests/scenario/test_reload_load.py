"""A hundred reloads under load lose nothing and leak nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.conftest import StartBalancer
from tests.harness import LoadBalancer, eventually, processes
from tests.harness.load import Backend, Background, HttpLoad, WebSocketLoad
from tests.harness.ports import free_port
from tests.harness.settings import Tables, settings

pytestmark = pytest.mark.scenario

RELOADS = 100
WEBSOCKETS = 200


@contextmanager
def backend() -> Iterator[tuple[Background, Backend]]:
    """A backend on a background loop."""
    with Background() as background:
        made = Backend()
        serving = made.serving()
        background.run(serving.__aenter__())
        try:
            yield background, made
        finally:
            background.run(serving.__aexit__(None, None, None))


def tables(made: Backend) -> Tables:
    """HTTP to one pool, WebSockets to another."""
    result = settings([made.address], workers=2)
    result["process"]["rebalance"] = "off"  # descriptors would move with the tunnels
    result["route"].insert(0, {"name": "ws", "path": "/ws", "pool": "ws"})
    result["pool"]["ws"] = {"servers": [made.websocket_address], "balance": "least-conn"}
    return result


def change(lb: LoadBalancer, number: int) -> None:
    """Changes something for reload `number`: routes, pools, weights, limits, a second listener."""
    changes = lb.tables
    changes["listen"]["public"]["limits"] = {"connections": 5000 + number}
    changes["pool"]["main"]["balance"] = ("round-robin", "least-conn", "p2c", "random")[number % 4]
    changes["pool"]["main"]["keep_alive"] = {"max_idle": 16 + number % 3}
    changes["route"] = [route for route in changes["route"] if route["name"] != "extra"]
    if number % 3 == 0:
        changes["route"].insert(0, {"name": "extra", "host": f"h{number}.example", "pool": "main"})
    if number % 10 == 0:
        changes["listen"]["second"] = {"bind": [f"127.0.0.1:{free_port()}"]}
    elif number % 10 == 5:
        changes["listen"].pop("second", None)


def progressed(load: HttpLoad | WebSocketLoad, beyond: int) -> bool:
    """Whether more than `beyond` exchanges are done, or something was lost."""
    return load.done > beyond or bool(load.failures)


def growth(before: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """How many descriptors and bytes each process has gained."""
    return {
        pid: (len(processes.descriptors(pid)) - fds, processes.resident_bytes(pid) - memory)
        for pid, (fds, memory) in before.items()
    }


def measure(lb: LoadBalancer) -> dict[int, tuple[int, int]]:
    """Descriptors and memory of master and workers."""
    return {
        pid: (len(processes.descriptors(pid)), processes.resident_bytes(pid))
        for pid in (lb.pid, *lb.worker_pids())
    }


def test_a_hundred_reloads_lose_nothing_and_leak_nothing(balancer: StartBalancer) -> None:
    with backend() as (background, made):
        lb = balancer(tables(made))
        pids = lb.worker_pids()
        http = HttpLoad(lb.port, connections=8, pause=0.01)
        websockets = WebSocketLoad(f"ws://127.0.0.1:{lb.port}/ws", WEBSOCKETS, pause=0.2)
        running = [
            asyncio.run_coroutine_threadsafe(load.run(), background.loop) for load in (http, websockets)
        ]
        try:
            assert websockets.all_open.wait(30)
            for number in range(10):  # caches fill up, allocators settle
                change(lb, number)
                lb.reload()
            before = measure(lb)
            for number in range(10, RELOADS):
                http_seen, websockets_seen = http.done, websockets.done
                change(lb, number)
                assert lb.reload()["changes"]
                eventually(partial(progressed, http, http_seen), "HTTP goes on", 30)
                eventually(partial(progressed, websockets, websockets_seen), "WebSockets go on", 30)
            grown = growth(before)
            assert lb.worker_pids() == pids
        finally:
            for load in (http, websockets):
                background.loop.call_soon_threadsafe(load.stop)
            for future in running:
                future.result(30)
        assert http.failures == []
        assert http.reopened == 0
        assert websockets.failures == []
        for pid, (fds, memory) in grown.items():
            assert fds <= 4, (pid, fds)
            assert memory < 6_000_000, (pid, memory)
        _assert_quiet(lb)


def _assert_quiet(lb: LoadBalancer) -> None:
    """All gauges are back at zero."""

    def quiet() -> bool:
        return all(w["connections"] == 0 and w["tunnels"] == 0 for w in lb.status()["workers"])

    eventually(quiet, "all gauges are zero")


def test_the_number_of_workers_changes_under_load(balancer: StartBalancer) -> None:
    with backend() as (background, made):
        lb = balancer(tables(made))
        http = HttpLoad(lb.port, connections=8, pause=0.005)
        running = asyncio.run_coroutine_threadsafe(http.run(), background.loop)
        try:
            for count in (4, 1, 3, 2):
                lb.tables["process"]["workers"] = count
                seen = http.done
                lb.reload()

                def settled(count: int = count) -> bool:
                    workers = lb.status()["workers"]
                    return len([w for w in workers if w["state"] == "serving"]) == count

                eventually(settled, f"{count} workers serve", 20)
                eventually(partial(progressed, http, seen), "HTTP goes on", 30)
        finally:
            background.loop.call_soon_threadsafe(http.stop)
            running.result(30)
        # A worker that leaves ends its idle connections. A request that crosses such an end on the wire finds
        # no answer, and HTTP clients send it again (RFC 9112 section 9.3.1); an answer is never cut.
        assert [failure for failure in http.failures if "0 bytes read" not in failure] == []
