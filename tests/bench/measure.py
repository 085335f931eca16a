"""Rounds of a workload, interleaved between the load balancers: CPU time per operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.bench.cost import Meter, wait_quiet
from tests.bench.figures import PEERS
from tests.bench.generators import Load, LoadError
from tests.bench.machine import Cores
from tests.bench.proxies import Proxy
from tests.bench.workloads import Workload

_DISTURBED: Final = 0.10  # share of the proxy's core that others may use in a round
_AGAIN: Final = 2  # times that such a round is repeated
_WARM_UP: Final = 0.3  # seconds

Row = dict[str, Any]


@dataclass
class Setting:
    """What all measurements share."""

    cores: Cores
    server_port: int
    rounds: int
    seconds: float
    file_limit: int
    say: Callable[[str], None]
    quick: bool = False  # less of all that takes long
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # what of lb could not be measured

    def connections(self, wanted: int) -> int:
        """As many of `wanted` connections as one process can hold through a proxy, two descriptors each."""
        return min(wanted, (self.file_limit - 300) // 2)

    def few(self, most: int = 3) -> int:
        """Rounds of what takes long or differs little."""
        return 1 if self.quick else min(most, self.rounds)

    def failed(self, workload: str, proxy: str, error: Exception) -> None:
        """A measurement failed: it gives no figure."""
        self.note(f"{workload}, {proxy}: not measured: {error}")
        if proxy not in PEERS:
            self.failures.append(workload)

    def note(self, text: str) -> None:
        """Something that the reader of the figures has to know."""
        self.notes.append(text)
        self.say(text)


def compare(setting: Setting, workload: Workload, proxies: Sequence[Proxy]) -> None:
    """Measures `workload` in as many rounds as set, one proxy after the other in each."""
    failed: set[str] = set()
    for number in range(setting.rounds):
        for proxy in proxies:
            if proxy.name in failed:
                continue
            try:
                if number == 0 and not setting.quick:
                    _once(setting, workload, proxy, min(_WARM_UP, setting.seconds))
                row = measure(setting, workload, proxy)
            except LoadError as error:
                failed.add(proxy.name)
                setting.failed(workload.name, proxy.name, error)
                continue
            row |= {"workload": workload.name, "proxy": proxy.name, "round": number}
            setting.rows.append(row)
            setting.say(
                f"{workload.name:14} {proxy.name:16} round {number + 1}: {row['cpu_us']:8.1f} us CPU, "
                f"{row['rate']:8,.0f}/s, p99 {row['p99_ms']:.2f} ms, {row['busy']:.0%} of its core"
                + (f", {row['foreign']:.0%} by others" if row["foreign"] > _DISTURBED else "")
            )
    if failed:  # a failed one's rows would look like a result
        setting.rows[:] = [
            row for row in setting.rows if row["workload"] != workload.name or row["proxy"] not in failed
        ]


def measure(setting: Setting, workload: Workload, proxy: Proxy) -> Row:
    """One round; again where others used the proxy's core meanwhile. Raises `LoadError`."""
    best = _once(setting, workload, proxy, setting.seconds)
    for _ in range(0 if setting.quick else _AGAIN):
        if best["foreign"] <= _DISTURBED:
            break
        row = _once(setting, workload, proxy, setting.seconds)
        best = min(best, row, key=lambda row: float(row["foreign"]))
    return best


def _once(setting: Setting, workload: Workload, proxy: Proxy, seconds: float) -> Row:
    wait_quiet(proxy.pid)
    port = proxy.tls_port if workload.tls else proxy.port
    connections = setting.connections(workload.connections)
    options = workload.options(port, seconds, setting.server_port, connections)
    with Load(options, setting.cores.load) as load:
        time.sleep(0.05)  # what the opening of the connections left to do
        meter = Meter(proxy.pid, setting.cores.proxy)
        load.begin()
        result = load.result()
        spent = meter.read()
    if result["failed"]:
        raise LoadError(f"{result['failed']} of {result['operations']} operations failed: {result['errors']}")
    operations = result["operations"]
    return {
        **result,
        "rate": operations / result["seconds"],
        "cpu_us": 1e6 * spent.total / operations,
        "user_us": 1e6 * spent.user / operations,
        "busy": spent.share,
        "foreign": spent.foreign,
    }
