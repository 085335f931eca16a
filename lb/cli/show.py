"""Reports as text for people, who may read them at three in the morning: the verdict comes first."""

from __future__ import annotations

from typing import Final

import msgspec

from lb.admin.views import PoolView, ServerView, StatusView, WorkerView
from lb.cli.text import clean, clock, duration, number, table
from lb.cli.version import named
from lb.master.report import (
    ListenerReport,
    Outcome,
    ReloadReport,
    StatusReport,
    UpgradeOutcome,
    UpgradeReport,
    WorkerReport,
)

_STALE_HEARTBEAT = 2.0  # seconds; shown then
_MANY_SERVERS: Final = 20  # of a pool; beyond, `lb status` shows those alone that something is wrong with


def outcome_text(outcome: Outcome) -> str:
    """What a reload changed, or why nothing did."""
    if not outcome.ok:
        head = f"reload failed; generation {outcome.generation} serves on unchanged"
        return f"{head}\n{outcome.error}"
    head = f"reloaded in {outcome.seconds:.2f}s; generation {outcome.generation} is served"
    if not outcome.changes:
        return f"{head}\nno key changed (certificates and keys were read again)"
    return "\n".join([head, *(f"  {change}" for change in outcome.changes)])


def report_of(view: StatusView) -> StatusReport:
    """What the admin API says, as the master would. The age of a heartbeat is the loop's lag."""
    last = view.last_reload
    outcome = None if last is None else msgspec.convert(last, Outcome, from_attributes=True)
    return StatusReport(
        version=view.version,
        form=view.form,
        pid=view.pid,
        config=view.config,
        uptime=view.uptime,
        state=view.state,
        generation=view.generation,
        workers=tuple(_worker_report(worker) for worker in view.workers),
        workers_wanted=view.workers_wanted,
        listeners=msgspec.convert(view.listeners, tuple[ListenerReport, ...], from_attributes=True),
        reloads=ReloadReport(succeeded=view.reloads_succeeded, failed=view.reloads_failed, last=outcome),
        restarts=view.restarts,
        control_pid=view.control_pid,
        keeper_restarts=view.keeper_restarts,
        upgrades=_upgrades(view),
    )


def _upgrades(view: StatusView) -> UpgradeReport:
    last = view.last_upgrade
    outcome = None if last is None else msgspec.convert(last, UpgradeOutcome, from_attributes=True)
    return UpgradeReport(succeeded=view.upgrades_succeeded, failed=view.upgrades_failed, last=outcome)


def _worker_report(worker: WorkerView) -> WorkerReport:
    told = {"heartbeat_age": worker.loop_lag, "listening_sockets": 0, "tunnels_held": worker.crash_safe}
    figures = msgspec.structs.asdict(worker) | told
    return msgspec.convert(figures, WorkerReport)


def status_text(report: StatusReport, view: StatusView | None = None, note: str = "") -> str:
    """The verdict, then workers, listeners, pools, reloads and restarts. `note` says why there is no
    `view`, which has the pools."""
    lines = [*_verdict(report, view, note), "", *_workers(report), "", *_listeners(report), ""]
    if view is not None:
        lines += [*pools_text(view.pools), ""]
    return "\n".join([*lines, *_history(report), *([] if view is None else tunnels_text(view))])


def verdict_word(report: StatusReport, view: StatusView | None) -> str:
    """One word for how it is: OK, DEGRADED, NOT READY, or what it is doing."""
    if report.state != "serving":
        return report.state.upper()
    if view is not None and not view.ready:
        return "NOT READY"
    serving = sum(worker.state == "serving" for worker in report.workers)
    troubled = serving < report.workers_wanted or (view is not None and view.problems)
    return "DEGRADED" if troubled else "OK"


def _verdict(report: StatusReport, view: StatusView | None, note: str) -> list[str]:
    serving = sum(worker.state == "serving" for worker in report.workers)
    lines = [
        f"{verdict_word(report, view)}: {serving} of {report.workers_wanted} workers serving,"
        f" up {duration(report.uptime)} (pid {report.pid}, {named(report.version, report.form)})",
        f"configuration {report.config}, generation {report.generation}",
    ]
    if view is not None:
        lines += [f"! {clean(problem)}" for problem in view.problems]
    if note:
        lines.append(f"! {note}")
    last = report.reloads.last
    # The first line of the error is among the problems.
    if last is not None and not last.ok and (view is None or "\n" in last.error.strip()):
        lines.append(f"LAST RELOAD FAILED at {clock(last.at)}: {last.error}")
    return lines


def _workers(report: StatusReport) -> list[str]:
    rows = [["worker", "pid", "state", "up", "conns", "tunnels", "safe", "requests", "config", "keeper"]]
    rows.extend(_worker(worker) for worker in report.workers)
    return table(rows)


def _worker(worker: WorkerReport) -> list[str]:
    state = worker.state
    if worker.heartbeat_age > _STALE_HEARTBEAT:
        state += f" (silent for {duration(worker.heartbeat_age)})"
    figures = (worker.connections, worker.tunnels, worker.tunnels_held, worker.requests, worker.generation)
    keeper = str(worker.keeper_pid or "-")
    return [str(worker.slot), str(worker.pid), state, duration(worker.uptime), *map(str, figures), keeper]


def _listeners(report: StatusReport) -> list[str]:
    rows = [["listener", "address", "conns", "accepted", "rejected"]]
    for listener in report.listeners:
        address = ", ".join(listener.bind) + (" (TLS)" if listener.tls else "")
        figures = (listener.connections, listener.accepted, listener.rejected)
        rows.append([listener.name, address, *map(str, figures)])
    return table(rows)


def pools_text(pools: tuple[PoolView, ...], *, every: bool = False) -> list[str]:
    """Each pool's servers, with what is wrong with them; of large pools, unless `every`, those alone that
    something is wrong with."""
    rows = [["server", "state", "weight", "active", "tunnels", "requests", "errors", "why"]]
    notes = []
    for pool in pools:
        shown = pool.servers
        if not every and len(shown) > _MANY_SERVERS:
            shown = tuple(server for server in shown if server.state not in ("up", "unchecked"))
            notes.append(f"pool {pool.name}: {len(pool.servers) - len(shown)} more servers are well")
        rows.extend(_server(server) for server in shown)
        if pool.queued:
            notes.append(f"pool {pool.name}: {pool.queued} requests queue")
        if pool.admission is not None and pool.admission.waiting:
            rate = number(pool.admission.rate)
            notes.append(
                f"pool {pool.name}: {pool.admission.waiting} WebSocket handshakes wait, {rate} a second pass"
            )
    return [*table(rows), *notes]


def _server(server: ServerView) -> list[str]:
    figures = (server.active, server.tunnels, server.requests, server.errors)
    state = server.state + (" (backup)" if server.backup else "")
    name = f"{server.pool}/{server.name}"
    return [name, state, weight_text(server), *map(str, figures), clean(server.why)]


def weight_text(server: ServerView) -> str:
    """The configured weight, and the effective one where it differs: 4, 4 (now 1.5)."""
    if server.effective_weight in (server.weight, 0):
        return str(server.weight)
    return f"{server.weight} (now {number(server.effective_weight)})"


def _history(report: StatusReport) -> list[str]:
    reloads = report.reloads
    line = f"reloads: {reloads.succeeded} done, {reloads.failed} failed"
    if reloads.last is not None and reloads.last.ok:
        line += f"; last at {clock(reloads.last.at)}, {len(reloads.last.changes)} changes"
    lines = [line, f"worker restarts: {_causes(report.restarts)}"]
    if report.keeper_restarts:
        lines.append(f"keeper restarts: {_causes(report.keeper_restarts)}")
    upgrades = report.upgrades
    if upgrades.last is not None:
        lines.append(f"upgrades: {upgrades.succeeded} done, {upgrades.failed} failed")
        if upgrades.last.ok:
            lines[-1] += f"; last at {clock(upgrades.last.at)}, from {upgrades.last.before}"
    return lines


def _causes(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in sorted(counts.items())) or "none"


def tunnels_text(view: StatusView) -> list[str]:
    """What became of tunnels that had to change hands, and how many are being closed; nothing where there
    was nothing of it."""
    lines = []
    kept = {reason: results.get("ok", 0) for reason, results in view.migrations.items()}
    lost = sum(results.get("unproved", 0) for results in view.migrations.values())
    if any(kept.values()) or lost:
        reasons = ", ".join(f"{reason} {count}" for reason, count in kept.items() if count)
        lines.append(f"tunnels moved: {sum(kept.values())}" + (f" ({reasons})" if reasons else ""))
        lines[-1] += f", {lost} lost"
    closing = sum(worker.closing for worker in view.workers)
    if closing:
        lines.append(f"tunnels being closed: {closing} wait for their turn")
    return lines
