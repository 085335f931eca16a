"""The error log: structured lines (logfmt) on standard error, from the master and every worker alike.

::

    2026-11-22T21:24:04.123Z level=info component="worker 0" event="configuration served" generation=3

Whoever reads standard error may be slow, gone, or shared with other processes. So a line is one write of at
most PIPE_BUF bytes (lines of several processes never tear), it is never waited for (what can't be written
is counted, and told as `dropped=N` on the next line that can), and each event has its own rate (a burst,
then one a second, what was left out told as `suppressed=N`). Whatever a value holds, no line break and no
control character reaches the terminal.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Final

from workers.contract.sink import ATOMIC, Sink

BURST: Final = 20  # lines of one event that may come at once
RATE: Final = 1.0  # lines of one event a second afterwards
MAX_EVENTS: Final = 256  # events with a rate of their own; more share one
MAX_VALUE: Final = 1024  # bytes of one value; the rest is cut off

_BARE: Final = re.compile(r"[A-Za-z0-9_.:/@+\-]+", re.ASCII)
_SHORT_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SHARED: Final = ""  # the key of events beyond MAX_EVENTS
_ROOM_FOR_TAIL: Final = 64  # for dropped=, suppressed= and truncated=


def _escape(character: str) -> str:
    short = _SHORT_ESCAPES.get(character)
    if short is not None:
        return short
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quote(text: str) -> str:
    """`text` in double quotes, on one line, with nothing in it that a terminal would obey."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{"".join(map(_escape, text))}"'


def _text(value: object) -> str:
    match value:
        case str():
            return value
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.6g}"
        case bytes() | bytearray():
            return value.decode("utf-8", "backslashreplace")
        case BaseException():
            return f"{type(value).__name__}: {value}" if str(value) else type(value).__name__
    return str(value)


def _field(name: str, value: object) -> str:
    text = _text(value)
    if len(text) > MAX_VALUE:
        text = text[:MAX_VALUE] + "..."
    if _BARE.fullmatch(text):
        return f" {name}={text}"
    quoted = quote(text)
    while len(quoted.encode()) > MAX_VALUE + 8:
        text = text[: len(text) * 3 // 4]
        quoted = quote(text + "...")
    return f" {name}={quoted}"


class _Rate:
    """A token bucket for one event."""

    __slots__ = ("suppressed", "tokens", "updated")

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.updated = now
        self.suppressed = 0

    def refill(self, now: float) -> None:
        self.tokens = min(float(BURST), self.tokens + (now - self.updated) * RATE)
        self.updated = now

    def take(self, now: float) -> bool:
        self.refill(now)
        if self.tokens < 1.0:
            self.suppressed += 1
            return False
        self.tokens -= 1.0
        return True


class ErrorLog:
    """Structured lines to `fd` (standard error). Any thread may write; nothing here raises or waits.

    An event is a short constant text in the words of the operator ("upstream answers again"); what varies
    goes into the fields. Field names are Python identifiers; values may be anything.
    """

    __slots__ = ("_component", "_dropped", "_fd", "_lock", "_rates", "_sink", "lost")

    def __init__(self, component: str, fd: int = 2) -> None:
        """`component` says who writes: "master", "worker 0". The descriptor is borrowed."""
        self._component = quote(component)
        self._fd = fd
        self._sink: Sink | None = None
        self._rates: dict[str, _Rate] = {}
        self._dropped = 0
        self.lost = 0  # lines that could not be written, ever
        # Guards the counting alone; it is never held while a line is written.
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Lines that could not be written and were not told of yet."""
        return self._dropped

    def info(self, event: str, /, **fields: object) -> None:
        """Something the operator may want to know."""
        self._log("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something that works, but should not stay like this."""
        self._log("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something failed."""
        self._log("error", event, fields)

    def flush(self) -> None:
        """Tells what was suppressed or dropped and not told yet. Call it before the process ends."""
        with self._lock:
            waiting = [(event, rate.suppressed) for event, rate in self._rates.items() if rate.suppressed]
            for rate in self._rates.values():
                rate.suppressed = 0
        for event, count in waiting:
            self._write("warning", event or "other events", {}, count)
        if self._dropped:
            self._write("warning", "log lines were dropped", {}, 0)

    def _log(self, level: str, event: str, fields: dict[str, object]) -> None:
        now = time.monotonic()
        with self._lock:
            rate = self._rate(event, now)
            if not rate.take(now):
                return
            suppressed, rate.suppressed = rate.suppressed, 0
        self._write(level, event, fields, suppressed)

    def _rate(self, event: str, now: float) -> _Rate:
        rate = self._rates.get(event)
        if rate is not None:
            return rate
        if len(self._rates) >= MAX_EVENTS:
            self._forget_idle(now)
        key = event if len(self._rates) < MAX_EVENTS else _SHARED
        return self._rates.setdefault(key, _Rate(now))

    def _forget_idle(self, now: float) -> None:
        for event, rate in list(self._rates.items()):
            rate.refill(now)
            if rate.tokens >= BURST and not rate.suppressed:
                del self._rates[event]

    def _write(self, level: str, event: str, fields: dict[str, object], suppressed: int) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        line = self._line(level, event, fields, suppressed, dropped)
        try:
            if self._sink is None:
                self._sink = Sink(self._fd)
            self._sink.write(line)
        except OSError:
            # Standard error is full, closed or gone: there is no other place to say so. It is counted.
            with self._lock:
                self._dropped += dropped + 1
                self.lost += 1

    def _line(
        self, level: str, event: str, fields: dict[str, object], suppressed: int, dropped: int
    ) -> bytes:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        parts = [f"{stamp}.{int(now % 1 * 1000):03d}Z level={level} component={self._component}"]
        parts.append(f" event={quote(event[:128])}")
        room = ATOMIC - _ROOM_FOR_TAIL - sum(len(part.encode()) for part in parts)
        for name, value in fields.items():
            part = _field(name, value)
            room -= len(part.encode())
            if room < 0:
                parts.append(" truncated=true")
                break
            parts.append(part)
        if suppressed:
            parts.append(f" suppressed={suppressed}")
        if dropped:
            parts.append(f" dropped={dropped}")
        return "".join([*parts, "\n"]).encode("utf-8", "backslashreplace")
