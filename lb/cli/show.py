"""Reports as text for people, who may read them at three in the morning: the verdict comes first."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lb.master.report import Outcome, StatusReport, WorkerReport

_STALE_HEARTBEAT = 2.0  # seconds; shown then
_UNITS = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))


def outcome_text(outcome: Outcome) -> str:
    """What a reload changed, or why nothing did."""
    if not outcome.ok:
        head = f"reload failed; generation {outcome.generation} serves on unchanged"
        return f"{head}\n{outcome.error}"
    head = f"reloaded in {outcome.seconds:.2f}s; generation {outcome.generation} is served"
    if not outcome.changes:
        return f"{head}\nno key changed (certificates and keys were read again)"
    return "\n".join([head, *(f"  {change}" for change in outcome.changes)])


def status_text(report: StatusReport) -> str:
    """The verdict, then workers, listeners, reloads and restarts."""
    return "\n".join(
        [*_verdict(report), "", *_workers(report), "", *_listeners(report), "", *_history(report)]
    )


def _verdict(report: StatusReport) -> list[str]:
    serving = sum(worker.state == "serving" for worker in report.workers)
    missing = report.workers_wanted - serving
    word = report.state.upper() if report.state != "serving" else ("OK" if missing <= 0 else "DEGRADED")
    lines = [
        f"{word}: {serving} of {report.workers_wanted} workers serving, up {duration(report.uptime)}"
        f" (pid {report.pid}, lb {report.version})",
        f"configuration {report.config}, generation {report.generation}",
    ]
    last = report.reloads.last
    if last is not None and not last.ok:
        lines.append(f"LAST RELOAD FAILED at {clock(last.at)}: {last.error}")
    return lines


def _workers(report: StatusReport) -> list[str]:
    rows = [["worker", "pid", "state", "up", "conns", "tunnels", "requests", "config"]]
    rows.extend(_worker(worker) for worker in report.workers)
    return table(rows)


def _worker(worker: WorkerReport) -> list[str]:
    state = worker.state
    if worker.heartbeat_age > _STALE_HEARTBEAT:
        state += f" (silent for {duration(worker.heartbeat_age)})"
    figures = (worker.connections, worker.tunnels, worker.requests, worker.generation)
    return [str(worker.slot), str(worker.pid), state, duration(worker.uptime), *map(str, figures)]


def _listeners(report: StatusReport) -> list[str]:
    rows = [["listener", "address", "conns", "accepted", "rejected"]]
    for listener in report.listeners:
        address = ", ".join(listener.bind) + (" (TLS)" if listener.tls else "")
        figures = (listener.connections, listener.accepted, listener.rejected)
        rows.append([listener.name, address, *map(str, figures)])
    return table(rows)


def _history(report: StatusReport) -> list[str]:
    reloads = report.reloads
    line = f"reloads: {reloads.succeeded} done, {reloads.failed} failed"
    if reloads.last is not None and reloads.last.ok:
        line += f"; last at {clock(reloads.last.at)}, {len(reloads.last.changes)} changes"
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(report.restarts.items())) or "none"
    return [line, f"worker restarts: {causes}"]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns that are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def duration(seconds: float) -> str:
    """Two units at most: 42s, 7m 5s, 3h 12m, 9d 4h."""
    whole = int(seconds)
    for unit, size, smaller, smaller_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller_size}{smaller}"
    return f"{whole}s"


def clock(unix_time: float) -> str:
    """Local time with date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time))
