"""The tables of a run, in Markdown. What was not measured is `-`; nothing else stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.figures import PEERS, Figures
from tests.bench.own import COMPARISONS
from tests.bench.scenes import MEMORY
from tests.bench.workloads import WORKLOADS

BEGIN: Final = "<!-- bench: begin (written by make bench ARGS=--write-docs) -->"
END: Final = "<!-- bench: end -->"
OURS: Final = "lb"
NONE: Final = "-"

Goals = Mapping[str, tuple[float | None, float | None]]


def number(value: float | None) -> str:
    """A figure with three significant digits."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(ours: float | None, theirs: float | None) -> str:
    """`ours` as a multiple of `theirs`."""
    return f"{ours / theirs:.2f}" if ours is not None and theirs else NONE


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *lines)) + "\n"


GOALS: Final = {
    "ws-memory": (0.6, 0.4),
    "wss-memory": (1.0, 0.8),
    "wss-memory-64k": (0.6, 0.4),
    "http-rate": (2.0, 1.2),
}


FULL: Final = 0.95  # share of its core from which on a proxy counts as fully loaded
_RESTING: Final = ("rate", "fan")  # loads that leave a proxy time to rest, whatever it costs


def _share(figures: Figures, name: str, proxy: str) -> str:
    """How much of its core a proxy used that had less to do than it could have done; else nothing."""
    share = figures.of(name, proxy, "busy")
    resting = name in WORKLOADS and WORKLOADS[name].mode in _RESTING
    return "" if share is None or resting or round(share, 2) >= FULL else f" ({share:.0%})"


def _compared(figures: Figures, names: Sequence[str], key: str, goals: Goals) -> str:
    lines = []
    for name in names:
        if not figures.rows(name):
            continue
        cells = [figures.of(name, proxy, key) for proxy in (OURS, *PEERS)]
        shown = [number(cell) for cell in cells]
        if key == "cpu_us":
            shown = [
                cell + _share(figures, name, proxy) for cell, proxy in zip(shown, (OURS, *PEERS), strict=True)
            ]
        ratios = (
            ratio(cells[0], figures.better(name, key)),
            ratio(figures.of(name, OURS, key, min), figures.better(name, key, min)),
        )
        goal = goals.get(name, (None, None))
        lines.append([name, *shown, *ratios, *(f"{g:.2f}" if g else NONE for g in goal)])
    heads = ("workload", OURS, *PEERS, "ratio", "ratio of minima", "must", "aim")
    return table(heads, lines) if lines else ""


def _cpu(figures: Figures) -> str:
    goals = {name: (workload.must, workload.aim) for name, workload in WORKLOADS.items()}
    compared = _compared(figures, list(WORKLOADS), "cpu_us", goals)
    lines = []
    for name in WORKLOADS:
        shares = [figures.of(name, proxy, "busy") for proxy in (OURS, *PEERS)]
        if any(shares):
            lines.append([name, *(NONE if share is None else f"{share:.0%}" for share in shares)])
    busy = table(("share of its core that the proxy used", OURS, *PEERS), lines)
    return f"{compared}\n{busy}" if lines else compared


def _memory(figures: Figures) -> str:
    return _compared(figures, list(MEMORY), "kib", GOALS)


def _latency(figures: Figures) -> str:
    return _compared(figures, ("http-rate-500", "http-rate", "http-rate-8k"), "p99_ms", GOALS)


def _starts(figures: Figures) -> str:
    return _compared(figures, ("start",), "ms", {})


def _own(figures: Figures) -> str:
    lines = []
    for name in COMPARISONS:
        first, *_ = figures.proxies(name) or [""]
        for proxy in figures.proxies(name):
            cpu = figures.of(name, proxy, "cpu_us")
            least = figures.of(name, proxy, "cpu_us", min)
            lines.append(
                [
                    f"{name}: {proxy}",
                    number(cpu),
                    ratio(cpu, figures.of(name, first, "cpu_us")),
                    ratio(least, figures.of(name, first, "cpu_us", min)),
                    number(figures.of(name, proxy, "rate")),
                ]
            )
    heads = ("what", "CPU us/operation", "ratio to the first", "ratio of minima", "operations/s")
    return table(heads, lines) if lines else ""


def _workers(figures: Figures) -> str:
    lines = []
    for name in ("workers-http-small", "workers-ws-small"):
        for proxy in (OURS, *PEERS):
            one, two = f"{proxy}, 1", f"{proxy}, 2"
            if not {one, two} <= set(figures.proxies(name)):
                continue
            cells = [figures.of(name, which, key) for key in ("cpu_us", "rate") for which in (one, two)]
            lines.append([f"{name.removeprefix('workers-')}, {proxy}", *map(number, cells)])
            lines[-1] += [ratio(cells[1], cells[0]), ratio(cells[3], cells[2])]
    heads = (
        "what",
        "CPU us, 1",
        "CPU us, 2",
        "operations/s, 1",
        "operations/s, 2",
        "CPU ratio",
        "rate ratio",
    )
    return table(heads, lines) if lines else ""


def _plain(workload: str, columns: Mapping[str, str]) -> Callable[[Figures], str]:
    """A table with a line for each proxy: the medians of `columns`, which are figures by their heads."""

    def made(figures: Figures) -> str:
        lines = []
        for proxy in figures.proxies(workload):
            cells = [number(figures.of(workload, proxy, key)) for key in columns.values()]
            lines.append([proxy, *cells])
        return table(("", *columns), lines) if lines else ""

    return made


def _spread(figures: Figures) -> str:
    lines = [
        [f"{name}, {row['proxy']}", ", ".join(map(str, row["held"])), number(row["most_to_mean"])]
        for name in ("balance", "tunnels")
        for row in figures.rows(name)
    ]
    return table(("", "WebSockets of each worker", "most / mean"), lines) if lines else ""


_RELOAD: Final = {
    "requests": "operations",
    "failed": "failed",
    "p99 ms": "p99_ms",
    "longest ms": "max_ms",
    "p99 ms without": "calm_p99_ms",
    "longest ms without": "calm_max_ms",
}
_LARGE: Final = {
    "longest ms": "max_ms",
    "longest ms without": "calm_max_ms",
    "failed": "failed",
    "reload took ms": "reload_ms",
    "turns of a worker over 20 ms": "long_turns",
}
_TUNNELS: Final = {
    "WebSockets": "tunnels",
    "KiB each": "kib",
    "CPU % while idle": "idle_cpu_percent",
    "opened a second": "opened_a_second",
    "echoed afterwards": "echoed",
}
_PARTS: Final[tuple[tuple[str, Callable[[Figures], str]], ...]] = (
    ("CPU microseconds per operation", _cpu),
    ("Memory per idle WebSocket, KiB", _memory),
    ("Latency at fixed rates: p99, ms", _latency),
    ("From the start to the first answer, ms", _starts),
    ("Reload under 2,000 requests a second", _plain("reload", _RELOAD)),
    ("Reload of 1,000 routes and 2,000 servers", _plain("reload-large", _LARGE)),
    ("lb compared with itself", _own),
    ("One worker and two", _workers),
    ("How WebSockets fall on workers", _spread),
    ("As many idle WebSockets as open files allow", _plain("tunnels", _TUNNELS)),
)


def machine_line(machine: Mapping[str, Any]) -> str:
    """What ran where, in a sentence."""
    missing = [peer for peer in PEERS if not machine.get(peer)]
    versions = ", ".join(f"{peer} {machine[peer]}" for peer in PEERS if machine.get(peer))
    form = "compiled" if machine["compiled"] else "interpreted"
    text = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_mib']:,} MiB, "
        f"Linux {machine['kernel']}; lb {machine['lb']} ({form}) on Python {machine['python']}"
    )
    text += f"; {versions}" if versions else ""
    text += f"; not installed: {', '.join(missing)}" if missing else ""
    return f"{text}. The load generator is {machine['generator']}."


def markdown(result: Mapping[str, Any]) -> str:
    """The whole result, as the JSON has it."""
    figures = Figures(result["rows"])
    rounds = f"{result['date']}, {result['rounds']} rounds of {result['seconds']:g} s each."
    parts = [f"{machine_line(result['machine'])} {rounds}\n"]
    for title, make in _PARTS:
        if text := make(figures):
            parts.append(f"### {title}\n\n{text}")
    if result["notes"]:
        parts.append("### Notes\n\n" + "\n".join(f"- {note}" for note in result["notes"]) + "\n")
    return "\n".join(parts)


def write_between(path: Path, text: str) -> None:
    """Puts `text` between the two marks in the document at `path`. Raises `ValueError` where they are not."""
    document = path.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the tables: {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
