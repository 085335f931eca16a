"""The load balancer as a whole, and its workers."""

from __future__ import annotations

import time
from typing import Final

from lb.control import processes
from lb.control.control import Control
from lb.control.figures import Figures
from lb.control.rows import WorkerFigures
from lb.master.report import StatusReport, WorkerReport
from lb.metrics.sheet import Sheet
from workers.core.wheel import TICK

SERVING: Final = "serving"


def collect_overall(sheet: Sheet, control: Control) -> None:
    """What the master told."""
    status = control.status
    started = processes.start_time(status.pid) or control.started
    sheet.add("lb_up", int(status.state in ("serving", "reloading")))
    sheet.add("lb_build_info", 1, status.version, status.form)
    sheet.add("lb_start_time_seconds", started)
    sheet.add("lb_config_generation", control.snapshot.generation)
    sheet.add("lb_workers", sum(worker.state == SERVING for worker in status.workers))
    sheet.add("lb_workers_wanted", status.workers_wanted)
    sheet.add_each("lb_worker_restarts_total", status.restarts)
    sheet.add_each("lb_control_restarts_total", status.control_restarts)
    sheet.add_each("lb_keeper_restarts_total", status.keeper_restarts)
    upgrades = {"success": status.upgrades.succeeded, "failure": status.upgrades.failed}
    sheet.add_each("lb_upgrades_total", upgrades)
    _collect_reloads(sheet, status, started)


def _collect_reloads(sheet: Sheet, status: StatusReport, started: float) -> None:
    reloads = status.reloads
    last = reloads.last
    sheet.add_each("lb_config_reloads_total", {"success": reloads.succeeded, "failure": reloads.failed})
    sheet.add("lb_config_last_reload_successful", int(last is None or last.ok))
    sheet.add("lb_config_last_reload_success_timestamp_seconds", reloads.last_success or started)


def collect_workers(sheet: Sheet, control: Control, figures: Figures) -> None:
    """The workers' own figures: gauges of those that are there, counters of all that ever were."""
    now = time.monotonic()
    slots = {figure.slot: figure for figure in figures.workers()}
    for report in control.status.workers:
        figure = slots.get(report.slot)
        if figure is not None:
            _collect_worker(sheet, report, figure, now)
    for slot, figure in slots.items():
        sheet.add("lb_worker_long_turns_total", figure.long_turns, str(slot))
        sheet.add("lb_worker_faults_total", figure.faults, str(slot))
        sheet.add("lb_worker_cpu_seconds_total", figure.cpu, str(slot))
    total = list(slots.values())
    sheet.add("lb_accept_paused_total", sum(figure.accept_paused for figure in total))
    sheet.add("lb_access_log_dropped_total", sum(figure.log_dropped for figure in total))
    sheet.add("lb_error_log_dropped_total", sum(figure.error_log_dropped for figure in total))
    sheet.add("lb_scoreboard_series_full_total", sum(figure.series_full for figure in total))
    sheet.add("lb_tls_handshakes_total", sum(figure.tls_12 for figure in total), "1.2", "ok")
    sheet.add("lb_tls_handshakes_total", sum(figure.tls_13 for figure in total), "1.3", "ok")
    sheet.add("lb_tls_handshakes_total", sum(figure.tls_failed for figure in total), "none", "failed")
    sheet.add("lb_tls_handshakes_total", sum(figure.tls_timeout for figure in total), "none", "timeout")
    sheet.add("lb_websocket_drain_queue_length", sum(figure.paced for figure in total))
    for (reason, result), count in figures.migrations.items():
        sheet.add("lb_websocket_migrations_total", count, reason, result)


def _collect_worker(sheet: Sheet, report: WorkerReport, figure: WorkerFigures, now: float) -> None:
    slot = str(report.slot)
    sheet.add("lb_worker_connections", figure.connections, slot)
    sheet.add("lb_worker_tunnels", figure.tunnels, slot)
    sheet.add("lb_worker_tunnels_crash_safe", figure.crash_safe, slot)
    sheet.add("lb_worker_tunnels_movable", figure.movable, slot)
    sheet.add("lb_worker_loop_lag_seconds", loop_lag(report, figure, now), slot)
    sheet.add("lb_worker_longest_turn_seconds", figure.longest_turn, slot)
    memory = processes.resident_memory(report.pid)
    if memory is not None:
        sheet.add("lb_worker_resident_memory_bytes", memory, slot)
    files = processes.open_files(report.pid)
    if files is not None:
        sheet.add("lb_worker_open_files", files, slot)


def loop_lag(report: WorkerReport, figure: WorkerFigures | None, now: float) -> float:
    """How late the worker's event loop is at `now` (monotonic seconds): what its last tick was late by, or by
    how long the next one is overdue where that is more. A worker that has not written its
    first heartbeat yet is as late as the master has seen it."""
    if figure is None or figure.pid != report.pid:
        return report.heartbeat_age
    return max(figure.lag, now - figure.heartbeat - TICK, 0.0)
