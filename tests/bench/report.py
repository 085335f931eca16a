"""The tables of a run, in Markdown. What was not measured is `-`; nothing else stands in for it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.workloads import WORKLOADS

BEGIN: Final = "<!-- bench: begin (written by make bench ARGS=--write-docs) -->"
END: Final = "<!-- bench: end -->"
OURS: Final = "lb"
PEERS: Final = ("nginx", "haproxy")
NONE: Final = "-"

Row = Mapping[str, Any]


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


class Figures:
    """The rounds of a run, asked by workload and proxy."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def values(self, workload: str, proxy: str, key: str) -> list[float]:
        """One figure of every round."""
        return [
            row[key]
            for row in self._rows
            if row["workload"] == workload and row["proxy"] == proxy and row.get(key) is not None
        ]

    def of(
        self,
        workload: str,
        proxy: str,
        key: str,
        choose: Callable[[list[float]], float] = statistics.median,
    ) -> float | None:
        """The median of a figure, or what else `choose` takes; None where it was not measured."""
        values = self.values(workload, proxy, key)
        return choose(values) if values else None

    def better(self, workload: str, key: str, choose: Callable[[list[float]], float]) -> float | None:
        """The better of the peers' figures."""
        found = [value for peer in PEERS if (value := self.of(workload, peer, key, choose)) is not None]
        return min(found, default=None)

    def has(self, *workloads: str) -> bool:
        """Whether there is a row of any of them."""
        return any(row["workload"] in workloads for row in self._rows)

    def proxies(self, workload: str) -> list[str]:
        """Who was measured, in the order of the first round."""
        return list(dict.fromkeys(row["proxy"] for row in self._rows if row["workload"] == workload))


def _compared(figures: Figures, names: Sequence[str], key: str) -> list[list[str]]:
    lines = []
    for name in names:
        if not figures.has(name):
            continue
        workload = WORKLOADS.get(name)
        cells = [figures.of(name, proxy, key) for proxy in (OURS, *PEERS)]
        medians = ratio(cells[0], figures.better(name, key, statistics.median))
        minima = ratio(figures.of(name, OURS, key, min), figures.better(name, key, min))
        goals = (workload.must, workload.aim) if workload else (None, None)
        lines.append([name, *map(number, cells), medians, minima, *(f"{g:g}" if g else NONE for g in goals)])
    return lines


def _side_by_side(figures: Figures) -> list[str]:
    heads = ("workload", OURS, *PEERS, "ratio", "ratio of minima", "must", "aim")
    parts = []
    for title, key, names in (
        ("CPU microseconds per operation", "cpu_us", list(WORKLOADS)),
        ("Memory per idle WebSocket, KiB", "kib", ["ws-memory", "wss-memory", "wss-memory-64k"]),
        ("Latency at 2,000 requests a second, p99 in milliseconds", "p99_ms", ["http-rate"]),
    ):
        if lines := _compared(figures, names, key):
            parts.append(f"### {title}\n\n{table(heads, lines)}")
    return parts


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
    return text + (f"; not installed: {', '.join(missing)}" if missing else "") + "."


def markdown(result: Mapping[str, Any]) -> str:
    """The whole result, as the JSON has it."""
    figures = Figures(result["rows"])
    parts = [
        f"{machine_line(result['machine'])} {result['date']}, {result['rounds']} rounds of "
        f"{result['seconds']:g} s each.\n",
        *_side_by_side(figures),
    ]
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
