"""Workers: do the processes keep up, and is the load spread over them?"""

from __future__ import annotations

from typing import Final

from grafana.source.model import (
    GREEN,
    NONE_IS_GOOD,
    RED,
    YELLOW,
    Json,
    Query,
    Row,
    graph,
    increase,
    rate,
    stat,
)
from grafana.source.page import HOST, WORKER, page

CPU: Final = rate("lb_worker_cpu_seconds_total", WORKER)
LAG: Final = f"lb_worker_loop_lag_seconds{{{WORKER}}}"
TURN: Final = f"lb_worker_longest_turn_seconds{{{WORKER}}}"
LONG: Final = ((None, GREEN), (0.1, YELLOW), (0.5, RED))
LATE: Final = ((None, GREEN), (0.75, YELLOW), (2.0, RED))
BUSY: Final = ((None, GREEN), (0.7, YELLOW), (0.9, RED))
EACH: Final = "{{instance}} worker {{worker}}"


def dashboard() -> Json:
    """For those who run the load balancer itself."""
    return page(
        "workers",
        "Workers",
        "Do the processes keep up, and is the load spread over them?",
        ("worker",),
        (_now(), _load(), _spread(), _trouble()),
    )


def _now() -> Row:
    return Row(
        "Now",
        (
            stat("Serving", "How many workers serve?", Query(f"sum(lb_workers{{{HOST}}})")),
            stat(
                "Missing",
                "How many should serve, and do not?",
                Query(f"sum(lb_workers_wanted{{{HOST}}} - lb_workers{{{HOST}}})"),
                thresholds=NONE_IS_GOOD,
            ),
            stat(
                "Latest event loop",
                "Is a worker stuck? Up to 0.5 s is normal.",
                Query(f"max({LAG})"),
                unit="s",
                thresholds=LATE,
            ),
            stat(
                "Busiest worker",
                "How much of a core does the busiest worker use? A worker can't use more than one.",
                Query(f"max({CPU})"),
                unit="percentunit",
                thresholds=BUSY,
            ),
            stat("CPU", "How many cores do all workers use?", Query(f"sum({CPU})"), unit="short", decimals=2),
            stat(
                "Memory",
                "How much memory do all workers have? What they share is counted in each.",
                Query(f"sum(lb_worker_resident_memory_bytes{{{WORKER}}})"),
                unit="bytes",
            ),
            stat(
                "Replaced",
                "How many workers ended unasked in this time, and were replaced?",
                Query(f"sum({_restarts('lb_worker_restarts_total')})"),
                thresholds=NONE_IS_GOOD,
                decimals=0,
            ),
            stat(
                "Faults",
                "How many callbacks failed in this time? Each is a bug: the error log has the traceback.",
                Query(f"sum({increase('lb_worker_faults_total', WORKER)})", instant=True),
                thresholds=NONE_IS_GOOD,
                decimals=0,
            ),
        ),
    )


def _restarts(metric: str) -> str:
    """How much a counter grew in the time shown whose series appear with their first event: where none was
    at the beginning, it began with 0."""
    now = f"(sum by (instance) ({metric}{{{HOST}}}) or sum by (instance) (lb_up{{{HOST}}}) * 0)"
    return f"{now} - min_over_time({now}[$__range:])"


def _load() -> Row:
    return Row(
        "Load",
        (
            graph(
                "Lateness of the event loop",
                "Which worker can't keep up? Up to some 0.5 s is normal;"
                " one that is stuck for process.wedged_after is replaced.",
                Query(LAG, EACH),
                unit="s",
                thresholds=LATE,
            ),
            graph(
                "Longest turn of the event loop",
                "For how long at most did all connections of a worker wait?"
                " What the worker does itself, reloads among it, stays below 20 ms.",
                Query(TURN, EACH),
                unit="s",
                thresholds=LONG,
            ),
            graph(
                "Long turns of the event loop",
                "How often did all connections of a worker wait for more than 20 ms?",
                Query(rate("lb_worker_long_turns_total", WORKER), EACH),
                unit="cps",
            ),
            graph(
                "CPU by worker",
                "Is a worker at the end of its core?",
                Query(CPU, EACH),
                unit="percentunit",
                thresholds=BUSY,
            ),
            graph(
                "Memory by worker",
                "Does memory grow without connections?",
                Query(f"lb_worker_resident_memory_bytes{{{WORKER}}}", EACH),
                unit="bytes",
            ),
            graph(
                "Open files by worker",
                "How near is the limit of open files?"
                " Absent where the system does not tell, as with process.user.",
                Query(f"lb_worker_open_files{{{WORKER}}}", EACH),
            ),
            graph(
                "Memory of a connection",
                "What does a connection cost? Memory of the workers by their connections.",
                Query(
                    f"sum by (instance) (lb_worker_resident_memory_bytes{{{WORKER}}})"
                    f" / (sum by (instance) (lb_worker_connections{{{WORKER}}}) > 0)",
                    "{{instance}}",
                ),
                unit="bytes",
            ),
            graph(
                "CPU of a request",
                "Did requests become dearer? CPU time of the workers by the requests that ended.",
                Query(
                    f"sum by (instance) ({CPU}) / sum by (instance) ({rate('lb_http_requests_total', HOST)})",
                    "{{instance}}",
                ),
                unit="s",
            ),
        ),
    )


def _spread() -> Row:
    connections = f"lb_worker_connections{{{WORKER}}}"
    tunnels = f"lb_worker_tunnels{{{WORKER}}}"
    return Row(
        "Spread",
        (
            graph(
                "Connections by worker",
                "Are connections spread over the workers? WebSockets are among them.",
                Query(connections, EACH),
                stack=True,
            ),
            graph(
                "WebSockets by worker",
                "Are WebSockets spread over the workers?",
                Query(tunnels, EACH),
                stack=True,
            ),
            graph(
                "Fullest worker to the average",
                "How uneven is it? 1 is even; with few connections it is not.",
                Query(
                    f"max by (instance) ({connections}) / avg by (instance) ({connections})",
                    "{{instance}}",
                ),
            ),
        ),
    )


def _trouble() -> Row:
    return Row(
        "Trouble",
        (
            graph(
                "Workers",
                "Were there fewer workers than there should be?",
                Query(f"sum(lb_workers{{{HOST}}})", "serving"),
                Query(f"sum(lb_workers_wanted{{{HOST}}})", "wanted"),
            ),
            graph(
                "Workers that ended unasked",
                "Why do workers end? wedged: the event loop stood still; a signal, or an exit code:"
                " the error log says more. Since the start.",
                Query(
                    f"sum by (instance, reason) (lb_worker_restarts_total{{{HOST}}})",
                    "{{instance}} {{reason}}",
                ),
            ),
            graph(
                "Control processes that ended unasked",
                "Did checks, metrics and the admin API pause? Traffic does not notice. Since the start.",
                Query(
                    f"sum by (instance, reason) (lb_control_restarts_total{{{HOST}}})",
                    "{{instance}} {{reason}}",
                ),
            ),
            graph(
                "Keepers that ended unasked",
                "Was a crash of a worker not covered for a moment? No WebSocket notices. Since the start.",
                Query(
                    f"sum by (instance, reason) (lb_keeper_restarts_total{{{HOST}}})",
                    "{{instance}} {{reason}}",
                ),
            ),
            graph(
                "Upgrades",
                "Did the last upgrade succeed? One that failed has changed nothing. Since the start.",
                Query(
                    f"sum by (instance, result) (lb_upgrades_total{{{HOST}}})",
                    "{{instance}} {{result}}",
                ),
            ),
            graph(
                "Accepting put off",
                "Do clients wait for want of file descriptors or memory? Raise the limit of open files.",
                Query(f"sum by (instance) ({rate('lb_accept_paused_total', HOST)})", "{{instance}}"),
                unit="ops",
            ),
            graph(
                "Log lines lost",
                "Is the disk or the pipe that takes the logs too slow?",
                Query(
                    f"sum by (instance) ({rate('lb_access_log_dropped_total', HOST)})",
                    "{{instance}} access log",
                ),
                Query(
                    f"sum by (instance) ({rate('lb_error_log_dropped_total', HOST)})",
                    "{{instance}} error log",
                ),
                unit="ops",
            ),
            graph(
                "Counted as other",
                "Is the room for label combinations on the scoreboard used up? Totals are true all the same.",
                Query(f"sum by (instance) ({rate('lb_scoreboard_series_full_total', HOST)})", "{{instance}}"),
                unit="ops",
            ),
        ),
    )
