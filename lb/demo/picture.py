"""What `lb demo chaos` shows: a picture that fits into a terminal, or a line a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Group
from rich.text import Text

from lb.cli.text import duration, short, size
from lb.demo.load import Account
from lb.master.report import WorkerReport

_BARS: Final = " ▁▂▃▄▅▆▇█"
_HISTORY: Final = 120  # seconds
_LATE: Final = 1.0  # seconds; what a user begins to feel


class Second(NamedTuple):
    """What is known after a second."""

    at: float  # seconds since the start
    account: Account
    rate: float  # messages a second
    longest: float  # seconds that a message was overdue, at most, in this second
    workers: Sequence[WorkerReport]


def line(second: Second, event: str) -> str:
    """A second in a line."""
    now = second.account
    return (
        f"{second.at:5.0f}s  {now.open:5,} open  {second.rate:7,.0f} msg/s  {now.lost} lost"
        f"  {now.duplicated} duplicated  {second.longest * 1000:5.0f} ms longest pause  {event}"
    ).rstrip()


class Picture:
    """The seconds so far, drawn."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._events: deque[tuple[float, str]] = deque(maxlen=100)
        self._longest = 0.0

    def add(self, second: Second, events: Sequence[str]) -> None:
        """Another second, with what was done in it."""
        self._rates.append(second.rate)
        self._longest = max(self._longest, second.longest)
        self._events.extend((second.at, event) for event in events)

    def draw(self, second: Second, width: int, height: int) -> Group:
        """The picture in `width` columns and `height` lines."""
        head = [
            *self._figures(second),
            Text(),
            self._curve(width),
            Text(),
            *self._workers(second.workers, width),
            Text(),
        ]
        events = [
            Text.assemble((f"{at:6.0f}s  ", "dim"), (event, "red" if " failed" in event else ""))
            for at, event in list(self._events)[::-1][: max(0, height - len(head))]
        ]
        lines = [*head, *events][:height]
        for one in lines:
            one.truncate(width, overflow="ellipsis")
            one.no_wrap = True
        return Group(*lines)

    def _figures(self, second: Second) -> list[Text]:
        now = second.account
        bad = "bold reverse red"
        closed = now.finished + sum(now.closed.values()) + now.refused
        return [
            Text.assemble(
                ("lb demo chaos", "bold"),
                f"   {duration(second.at)} of {duration(self._total)}",
                ("   Ctrl-C ends it", "dim"),
            ),
            Text.assemble(
                (f"{now.open:,}", "bold green" if now.open == now.tunnels else bad),
                f" of {now.tunnels:,} tunnels open   ",
                (f"{now.lost}", bad if now.lost else "bold green"),
                " lost   ",
                (f"{now.duplicated}", bad if now.duplicated else "bold green"),
                " duplicated   ",
                (f"{now.corrupt}", bad if now.corrupt else "bold green"),
                " corrupt   ",
                (f"{closed}", bad if closed else "bold green"),
                " closed",
            ),
            Text.assemble(
                (short(second.rate), "bold"),
                " messages/s   ",
                (short(now.received), "bold"),
                f" messages, {size(now.received_bytes)}, each compared   longest pause ",
                (
                    f"{second.longest * 1000:.0f} ms",
                    "bold yellow" if second.longest > _LATE else "bold",
                ),
                f" now, {self._longest * 1000:.0f} ms so far",
            ),
        ]

    def _curve(self, width: int) -> Text:
        rates = list(self._rates)[-max(1, width - 12) :]
        most = max([1.0, *rates])
        bars = "".join(_BARS[round(rate / most * (len(_BARS) - 1))] for rate in rates)
        return Text.assemble(("messages/s  ", "dim"), (bars, "green"))

    @staticmethod
    def _workers(workers: Sequence[WorkerReport], width: int) -> list[Text]:
        most = max([1, *(worker.tunnels for worker in workers)])
        room = max(5, width - 52)
        return [
            Text.assemble(
                f"worker {worker.slot:<3} pid {worker.pid:<8}",
                (f"{worker.state:<11}", "green" if worker.state == "serving" else "yellow"),
                f"{worker.tunnels:6,} tunnels  ",
                ("█" * round(worker.tunnels / most * room), "green"),
            )
            for worker in workers
        ]
