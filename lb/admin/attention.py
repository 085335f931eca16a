"""What an operator should know now, in sentences, the most important first.

Each says what is wrong and what it means; nothing that is well is mentioned, so an empty list is good news.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from lb.admin.views import ListenerView, PoolView, StatusView
from lb.control.control import Control
from lb.control.figures import Figures

CERTIFICATE: Final = 14 * 86400.0  # seconds before its end from which a certificate is told of
RESTARTED: Final = 60.0  # seconds for which a restart of the control process is told of
DAY: Final = 86400.0
MAX_PROBLEMS: Final = 50


def problems(control: Control, seen: StatusView, figures: Figures) -> tuple[str, ...]:
    """The sentences about `seen`, whose own `problems` is empty yet."""
    found = [
        *_workers(seen),
        *_pools(seen.pools),
        *_keepers(seen),
        *_reload(seen),
        *_upgrade(seen),
        *_certificates(seen.listeners, seen.time),
        *control.check_problems(),
        *_discovery(control),
        *_series(control, figures),
        *_control(control, seen),
    ]
    if len(found) > MAX_PROBLEMS:
        found[MAX_PROBLEMS:] = [f"and {len(found) - MAX_PROBLEMS} more"]
    return tuple(found)


def _workers(seen: StatusView) -> Iterator[str]:
    if seen.state == "stopping":
        yield "it is stopping: nothing new is accepted"
        return
    for worker in seen.workers:
        if worker.wedged:
            yield (
                f"worker {worker.slot} (pid {worker.pid}) hangs since {worker.loop_lag:.0f}s:"
                f" its {worker.connections} connections and {worker.tunnels} tunnels wait"
            )
    serving = sum(worker.state == "serving" and not worker.wedged for worker in seen.workers)
    if serving < seen.workers_wanted:
        yield f"{serving} of {seen.workers_wanted} workers serve; the error log says why"


def _keepers(seen: StatusView) -> Iterator[str]:
    for worker in seen.workers:
        if worker.state == "serving" and worker.movable and not worker.keeper_pid:
            yield (
                f"worker {worker.slot} has no keeper: its {worker.tunnels} tunnels would not outlive it;"
                " the error log says why"
            )


def _upgrade(seen: StatusView) -> Iterator[str]:
    last = seen.last_upgrade
    if last is not None and not last.ok:
        first = last.error.strip().partition("\n")[0]
        yield f"the last upgrade failed, version {last.before} serves on: {first}"


def _pools(pools: tuple[PoolView, ...]) -> Iterator[str]:
    for pool in pools:
        if not pool.servers:
            yield f"pool {pool.name} has no servers: its requests are answered with 503"
        elif pool.panic:
            yield f"pool {pool.name} panics: too few servers are well, so all are used, sick ones too"
        elif not pool.usable:
            states = _states(pool)
            yield f"pool {pool.name} has no usable server ({states}): its requests are answered with 503"
    for pool in pools:
        down = [server.name for server in pool.servers if server.state in ("down", "ejected")]
        if pool.usable and down:
            some = ", ".join(down[:5]) + (", ..." if len(down) > 5 else "")
            yield f"pool {pool.name}: {len(down)} of {len(pool.servers)} servers are down or ejected: {some}"


def _states(pool: PoolView) -> str:
    counts: dict[str, int] = {}
    for server in pool.servers:
        counts[server.state] = counts.get(server.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _reload(seen: StatusView) -> Iterator[str]:
    last = seen.last_reload
    if last is not None and not last.ok:
        first = last.error.strip().partition("\n")[0]
        yield f"the last reload failed, generation {seen.generation} serves on: {first}"


def _certificates(listeners: tuple[ListenerView, ...], now: float) -> Iterator[str]:
    for listener in listeners:
        for certificate in listener.certificates:
            left = certificate.not_after - now
            if not certificate.not_after or left > CERTIFICATE:
                continue
            what = f"certificate {certificate.name} of listener {listener.name}"
            if left <= 0:
                yield f"{what} has expired: clients refuse it"
            else:
                yield (
                    f"{what} expires in {left / DAY:.0f} days"
                    if left > DAY
                    else f"{what} expires within a day"
                )


def _discovery(control: Control) -> Iterator[str]:
    for problem in control.discovery_problems():
        yield f"discovery fails, what was found before is kept: {problem}"


def _series(control: Control, figures: Figures) -> Iterator[str]:
    for worker in figures.workers():
        if worker.series_full and worker.series >= control.board.capacity.series:
            yield (
                f"worker {worker.slot} has no room for more labels: {worker.series_full} figures"
                ' are counted as "other" in the metrics; totals are true'
            )


def _control(control: Control, seen: StatusView) -> Iterator[str]:
    age = time.time() - control.started
    if age < RESTARTED and seen.uptime - age > RESTARTED / 2:
        yield f"the control process was restarted {age:.0f}s ago; traffic was not touched"
