"""lb where much is configured and much is open: 1,000 routes with 2,000 servers, and as many WebSockets as
the limit of open files allows."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any, Final

from tests.bench import cost, machine
from tests.bench.engine import Options
from tests.bench.generators import Load, server
from tests.bench.measure import Row, Setting
from tests.bench.proxies import Lb, Site
from tests.bench.scenes import SETTLE, add, rated
from tests.harness import eventually
from tests.harness.figures import Scrape

ROUTES: Final = 1000
SERVERS: Final = 2000
_WORKERS: Final = 4
_SPARE: Final = 300  # descriptors of a process that belong to no WebSocket
_EVEN: Final = 0.97  # the kernel spreads connections by hash, so no worker may be planned to its very limit
_QUICK: Final = 4000


class Large(Lb):
    """An lb with 1,000 routes, each to a pool of its own with two servers; the bench's is in the first."""

    def tables(self, workers: int) -> dict[str, Any]:
        """The configuration."""
        tables = super().tables(workers)
        (real,) = tables["pool"].pop("main")["servers"]
        each = SERVERS // ROUTES
        for number in range(ROUTES):
            high, low = divmod(number, 250)
            addresses = [f"127.1.{high}.{low + 1}:{9000 + index}" for index in range(each)]
            tables["pool"][f"p{number}"] = {"servers": [real] * 1 if number == 0 else addresses}
        tables["route"] = [
            {"name": f"r{number}", "path": f"/s/r{number:03d}/*", "pool": f"p{number}"}
            for number in range(1, ROUTES)
        ] + [{"name": "r0", "pool": "p0"}]
        return tables


def reload(setting: Setting, site: Site) -> None:
    """How long a client waits who asks every millisecond, while all of a large configuration changes."""
    lb = Large(site, "large")
    try:
        lb.start(setting.cores.proxy)
        lb.lb.wait_control()
        took: list[float] = []

        def change() -> None:
            began = time.perf_counter()
            lb.reload()
            took.append(time.perf_counter() - began)

        for number in range(setting.few()):
            options = Options("rate", lb.port, 8, 2.0, rate=1000.0)
            calm = rated(setting, options, lb, lambda: None)
            before = _long_turns(lb)
            row = rated(setting, options, lb, change)
            row |= {
                "calm_max_ms": calm["max_ms"],
                "reload_ms": 1000 * took[-1],
                "long_turns": _long_turns(lb) - before,
            }
            add(setting, "reload-large", "lb", number, row)
    finally:
        lb.stop()


def _long_turns(lb: Lb) -> float:
    """How many turns of the workers' event loops took more than 20 ms so far."""
    return Scrape(lb.lb).total("lb_worker_long_turns_total")


class Many(Lb):
    """An lb over several servers, each of which one address can have 28,000 connections to."""

    ports: tuple[int, ...] = ()

    def tables(self, workers: int) -> dict[str, Any]:
        """The configuration."""
        tables = super().tables(workers)
        tables["pool"]["main"] |= {
            "servers": [f"127.0.0.1:{port}" for port in self.ports],
            "balance": "least-conn",
        }
        return tables


def tunnels(setting: Setting, site: Site) -> None:
    """As many idle WebSockets over four workers as may be, all of which work."""
    most = int((setting.file_limit - _SPARE) / 2 * _WORKERS * _EVEN)
    wanted = min(most, _QUICK) if setting.quick else most
    processes = math.ceil(wanted / min(15_000, setting.file_limit - _SPARE))
    share = wanted // processes
    everywhere = machine.cores(_WORKERS)
    with ExitStack() as stack:
        ports = [stack.enter_context(server(everywhere.load))[0] for _ in range(processes)]
        lb = Many(site, "many")
        lb.ports = tuple(ports)
        stack.callback(lb.stop)
        lb.start(everywhere.proxy, _WORKERS)
        with Load(Options("echo", lb.port, 100), everywhere.load):
            pass
        cost.wait_quiet(lb.pid)
        before = cost.memory(cost.tree(lb.pid))
        began = time.perf_counter()
        loads = [
            Load(Options("echo", lb.port, share, 0.0, first=number * share), everywhere.load)
            for number in range(processes)
        ]
        for load in loads:
            stack.enter_context(load)
        opened = time.perf_counter() - began
        time.sleep(SETTLE)
        row = _idle(lb, share * processes, before)
        for load in loads:  # each WebSocket echoes once more
            load.begin()
            row["echoed"] = row.get("echoed", 0) + load.result()["operations"]
        row["opened_a_second"] = share * processes / opened
        add(setting, "tunnels", "lb", 0, row)


def _idle(lb: Lb, tunnels: int, before: int) -> Row:
    """What idle WebSockets cost."""
    held = [int(worker["tunnels"]) for worker in lb.lb.status()["workers"]]
    eventually(lambda: sum(w["tunnels"] for w in lb.lb.status()["workers"]) >= tunnels, "all are counted")
    meter = cost.Meter(lb.pid, set())
    time.sleep(2.0)
    spent = meter.read()
    after = cost.memory(cost.tree(lb.pid))
    return {
        "tunnels": tunnels,
        "held": held,
        "most_to_mean": max(held) * len(held) / sum(held),
        "kib": (after - before) / 1024 / tunnels,
        "idle_cpu_percent": 100 * spent.total / spent.seconds,
    }
