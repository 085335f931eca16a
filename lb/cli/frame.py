"""One picture of `lb top`: what is known, drawn into as many columns and lines as there are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Group
from rich.text import Text

from lb.admin.views import EventView, ServerView, StatusView, WorkerView
from lb.cli.columns import Column, fitted
from lb.cli.rates import Rates
from lb.cli.show import report_of, verdict_word, weight_text
from lb.cli.text import clean, duration, short, size

_MAX_PROBLEMS: Final = 3
_MAX_EVENTS: Final = 8
_WHOLE: Final = 99  # columns; nothing is that wide
_STYLES: Final = {
    "up": "green",
    "serving": "green",
    "unchecked": "green",
    "starting": "cyan",
    "loading": "cyan",
    "caretaking": "cyan",
    "drain": "yellow",
    "maint": "yellow",
    "leaving": "yellow",
    "ejected": "bold red",
    "down": "bold red",
    "wedged": "bold red",
}


class Shown(NamedTuple):
    """What to draw. `trouble` says why `view` is not of now."""

    view: StatusView
    rates: Rates
    events: Sequence[EventView]
    trouble: str = ""


def draw(shown: Shown, width: int, height: int) -> Group:
    """The picture in `width` columns and `height` lines."""
    view = shown.view
    head = _head(shown, width, height)
    servers = [server for pool in view.pools for server in pool.servers]
    events = list(reversed(shown.events))[:_MAX_EVENTS]
    shares = _shares(height - len(head) - 3, len(view.workers), len(servers), len(events))
    lines = [
        *head,
        Text(),
        *fitted(_worker_columns(shown.rates), view.workers, width, shares[0], _worker_troubled),
        Text(),
        *fitted(_server_columns(shown.rates), servers, width, shares[1], _server_troubled),
        Text(),
        *(_event(event, width) for event in events[: shares[2]]),
    ]
    return Group(*lines[:height])


def _shares(rest: int, workers: int, servers: int, events: int) -> tuple[int, int, int]:
    """How many lines of `rest` the workers, servers (with a line of titles each) and events get."""
    wanted_workers, wanted_servers = workers + 1, servers + 1
    for_events = min(events, max(2, rest // 5))
    rest -= for_events
    for_workers = min(wanted_workers, max(3, rest // 3, rest - wanted_servers))
    for_servers = min(wanted_servers, max(3, rest - for_workers))
    spare = max(0, rest - for_workers - for_servers)
    return for_workers, for_servers, min(events, for_events + spare)


# --- the head ------------------------------------------------------------------------------------------


def _head(shown: Shown, width: int, height: int) -> list[Text]:
    view = shown.view
    word = verdict_word(report_of(view), view)
    first = Text.assemble(
        ("lb ", "bold"),
        (f" {word} ", "bold reverse green" if word == "OK" else "bold reverse red"),
        f"  up {duration(view.uptime)}  generation {view.generation}  {_clock(view.time)}",
        (f"  {clean(view.config)}", "dim"),
    )
    lines = [first, _figures(shown)]
    if shown.trouble:
        lines.append(Text(shown.trouble, "bold reverse red"))
    lines += _problems(view.problems, min(_MAX_PROBLEMS, height // 8))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _problems(problems: Sequence[str], most: int) -> list[Text]:
    lines = [Text(f"! {clean(problem)}", "red") for problem in problems[:most]]
    if len(problems) > most:
        lines[-1:] = [Text(f"! {len(problems) - most + 1} more problems: lb status lists them", "red")]
    return lines


def _figures(shown: Shown) -> Text:
    view, rates = shown.view, shown.rates
    errors = rates.errors()
    line = Text()
    tunnels = sum(worker.tunnels for worker in view.workers)
    lag = max((worker.loop_lag for worker in view.workers), default=0.0)
    queued = sum(pool.queued for pool in view.pools)
    admission = sum(pool.admission.waiting for pool in view.pools if pool.admission is not None)
    closing = sum(worker.closing for worker in view.workers)
    moved = rates.migrations()
    for figure, unit, style in (
        (_rate(rates.requests()), "req/s", "bold"),
        (_rate(errors), "err/s", "bold red" if errors else "bold"),
        (str(tunnels), "tunnels", "bold"),
        (_rate(rates.messages()), "msg/s", "bold"),
        (_size_rate(rates.bytes()), "", "bold"),
        (f"{lag * 1000:.0f} ms", "lag", "bold red" if lag > 1 else "bold"),
        (_rate(moved) if moved else "", "moved/s", "bold cyan"),
        (str(closing) if closing else "", "closing", "bold yellow"),
        (str(admission) if admission else "", "wait for admission", "bold yellow"),
        (str(queued) if queued else "", "queued", "bold red"),
    ):
        if figure:
            line.append(figure, style)
            line.append(f" {unit}".rstrip() + "   ")
    return line


def _rate(value: float | None) -> str:
    return "-" if value is None else short(value)


def _size_rate(value: float | None) -> str:
    return "-" if value is None else f"{size(value)}/s"


def _clock(unix_time: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_time))


def _event(event: EventView, width: int) -> Text:
    bad = event.kind.endswith(("failed", "ended", "down", "ejected"))
    line = Text.assemble((_clock(event.at), "dim"), "  ", (clean(event.text), "red" if bad else ""))
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


# --- the tables ----------------------------------------------------------------------------------------


def _worker_state(worker: WorkerView) -> str:
    return "wedged" if worker.wedged else worker.state


def _worker_troubled(worker: WorkerView) -> bool:
    return _worker_state(worker) != "serving"


def _server_troubled(server: ServerView) -> bool:
    return server.state not in ("up", "unchecked")


def _worker_columns(rates: Rates) -> list[Column[WorkerView]]:
    return [
        Column("worker", 10, lambda worker: str(worker.slot)),
        Column("pid", 4, lambda worker: str(worker.pid)),
        Column("state", 9, _worker_state, _WHOLE, lambda worker: _STYLES.get(_worker_state(worker), "")),
        Column("conns", 7, lambda worker: str(worker.connections)),
        Column("tunnels", 8, lambda worker: str(worker.tunnels)),
        Column("safe", 4, lambda worker: str(worker.crash_safe)),
        Column("req/s", 8, lambda worker: _rate(rates.worker(worker, "requests"))),
        Column("cpu", 6, lambda worker: _share(rates.worker(worker, "cpu_seconds"))),
        Column("memory", 5, lambda worker: size(worker.memory_bytes)),
        Column("lag", 5, lambda worker: f"{worker.loop_lag * 1000:.0f} ms"),
        Column("files", 3, lambda worker: str(worker.open_files)),
        Column("up", 2, lambda worker: duration(worker.uptime)),
        Column("keeper", 0, lambda worker: str(worker.keeper_pid or "-")),
        Column("config", 1, lambda worker: str(worker.generation)),
    ]


def _server_columns(rates: Rates) -> list[Column[ServerView]]:
    return [
        Column("server", 10, _server_name, 40),
        Column("state", 9, lambda server: server.state, _WHOLE, lambda server: _STYLES.get(server.state, "")),
        Column("active", 8, lambda server: str(server.active)),
        Column("tunnels", 7, lambda server: str(server.tunnels)),
        Column("req/s", 6, lambda server: _rate(rates.server(server, "requests"))),
        Column("err/s", 5, lambda server: _rate(rates.server(server, "errors"))),
        Column("weight", 2, weight_text),
        Column("conns", 3, lambda server: str(server.connections)),
        Column("requests", 1, lambda server: short(server.requests)),
        Column("why", 4, lambda server: clean(server.why), 24),
    ]


def _server_name(server: ServerView) -> str:
    return f"{server.pool}/{clean(server.name)}{' (backup)' if server.backup else ''}"


def _share(rate: float | None) -> str:
    return "-" if rate is None else f"{rate * 100:.0f}%"
