"""What is measured otherwise than by rounds of a load: memory, starts, reloads, and how work is spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tests.bench import cost, machine
from tests.bench.engine import Options
from tests.bench.generators import Load, LoadError
from tests.bench.measure import Row, Setting, compare
from tests.bench.proxies import Lb, Nginx, Proxy
from tests.bench.workloads import WORKLOADS
from tests.harness.processes import children, descriptors

SETTLE: Final = 2.0  # seconds; after one, lb gives a WebSocket to its keeper
_SPREAD: Final = 2000  # WebSockets that are spread over two workers
_CALM: Final = ("p99_ms", "max_ms")

# WebSockets, TLS, bytes of the one message on each.
MEMORY: Final = {
    "ws-memory": (5000, False, 64),
    "wss-memory": (5000, True, 64),
    "wss-memory-64k": (1000, True, 65_536),
}


def add(setting: Setting, name: str, proxy: str, number: int, row: Row) -> None:
    """Keeps a row and says it."""
    setting.rows.append({"workload": name, "proxy": proxy, "round": number, **row})
    shown = (
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )
    setting.say(f"{name:14} {proxy:16} round {number + 1}: {', '.join(shown)}")


def memory(setting: Setting, name: str, proxies: Sequence[Proxy]) -> None:
    """Memory per idle WebSocket: that of the tree with them, less that before them."""
    wanted, tls, size = MEMORY[name]
    if setting.quick:
        wanted = min(wanted, 1000)
    tunnels = setting.connections(wanted)
    if tunnels < wanted:
        setting.note(f"{name}: {tunnels:,} WebSockets instead of {wanted:,}, for the limit of open files")
    for number in range(setting.few(2)):
        for proxy in proxies:
            proxy.start(setting.cores.proxy)
            options = Options("echo", proxy.tls_port if tls else proxy.port, tunnels, tls=tls, size=size)
            try:
                row = _memory(setting, proxy, options)
            except LoadError as error:
                setting.failed(name, proxy.name, error)
                continue
            add(setting, name, proxy.name, number, row)


def _memory(setting: Setting, proxy: Proxy, options: Options) -> Row:
    with Load(replace(options, connections=100), setting.cores.load):
        pass
    cost.wait_quiet(proxy.pid)
    before = cost.memory(cost.tree(proxy.pid))
    with Load(options, setting.cores.load):
        time.sleep(SETTLE)
        after = cost.memory(cost.tree(proxy.pid))
    each = (after - before) / 1024 / options.connections
    return {"kib": each, "before_mib": before / 2**20, "tunnels": options.connections}


def start(setting: Setting, proxies: Sequence[Proxy]) -> None:
    """Time from the start to the first answer."""
    for number in range(setting.rounds):
        for proxy in proxies:
            proxy.start(setting.cores.proxy)
            add(setting, "start", proxy.name, number, {"ms": 1000 * proxy.started_in})


def workers(setting: Setting, make: Callable[[str], list[Proxy]]) -> None:
    """Rate and cost with one worker and with two, on the same cores. `make` gives proxies in new folders."""
    pair = replace(setting, cores=machine.cores(2), rounds=setting.few())
    if not pair.cores.apart:
        setting.note(
            "workers: the load runs on the same cores as the two workers; four cores would be better"
        )
    started: list[Proxy] = []
    try:
        for number in (1, 2):
            for proxy in make(f"workers-{number}"):
                started.append(proxy)
                proxy.start(pair.cores.proxy, number)
                proxy.name = f"{proxy.name}, {number}"
        for name in ("http-small", "ws-small"):
            workload = replace(WORKLOADS[name], name=f"workers-{name}", connections=256)
            compare(pair, workload, started)
    finally:
        for proxy in started:
            proxy.stop()


def balance(setting: Setting, proxies: Sequence[Proxy]) -> None:
    """How many of 2,000 WebSockets each of two worker processes has."""
    tunnels = setting.connections(_SPREAD)
    cores = machine.cores(2)
    for proxy in proxies:
        if not isinstance(proxy, Lb | Nginx):
            continue  # HAProxy's workers are threads of one process, which show nothing from outside
        proxy.start(cores.proxy, 2)
        try:
            with Load(Options("echo", proxy.port, tunnels), cores.load):
                time.sleep(SETTLE)
                held = _held(proxy)
        except LoadError as error:
            setting.failed("balance", proxy.name, error)
            continue
        row = {"held": held, "most_to_mean": max(held) * len(held) / sum(held)}
        add(setting, "balance", proxy.name, 0, row)


def _held(proxy: Lb | Nginx) -> list[int]:
    """WebSockets of each worker."""
    if isinstance(proxy, Lb):
        return [int(worker["tunnels"]) for worker in proxy.lb.status()["workers"]]
    sockets = (
        sum(target.startswith("socket:") for target in descriptors(pid).values())
        for pid in children(proxy.pid)
    )
    return [count // 2 for count in sockets]


def reload(setting: Setting, proxies: Sequence[Proxy]) -> None:
    """Requests at a fixed rate while the configuration is reloaded, and the same without a reload."""
    options = Options("rate", 0, 64, max(1.0, 2 * setting.seconds), rate=2000.0)
    for number in range(setting.few()):
        for proxy in proxies:
            if not proxy.reloads:
                continue
            options.port = proxy.port
            try:
                calm = rated(setting, options, proxy, lambda: None)
                row = rated(setting, options, proxy, proxy.reload)
            except LoadError as error:
                setting.failed("reload", proxy.name, error)
                continue
            row |= {f"calm_{key}": calm[key] for key in _CALM}
            add(setting, "reload", proxy.name, number, row)


def rated(setting: Setting, options: Options, proxy: Proxy, halfway: Callable[[], None]) -> Row:
    """Requests at a fixed rate, in the middle of which something is done. Raises `LoadError`."""
    cost.wait_quiet(proxy.pid)
    with Load(options, setting.cores.load) as load:
        load.begin()
        time.sleep(options.seconds / 2)
        halfway()
        result = load.result()
    return {key: result[key] for key in ("operations", "failed", *_CALM)}
