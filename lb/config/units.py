"""Durations ("250ms", "1h30m") and sizes ("32KiB") as the configuration writes them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_MILLISECONDS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_BYTES: Final = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")
# Nothing sensible is longer, and the cost of parsing digits grows with their square.
_LONGEST: Final = 32


def parse_duration(text: str) -> float:
    """Seconds in `text`: one or more numbers with a unit (ms, s, m, h, d), the larger unit first.

    Raises `ValueError` with what is wrong; a duration is a whole number of milliseconds.
    """
    parts = _parts(text)
    if not parts:
        raise ValueError('expected a duration such as "250ms", "10s" or "1h"')
    if len(parts) == 1 and not parts[0][1]:
        raise ValueError(f'a duration needs a unit: "{text}s" or "{text}ms"')
    order = list(_MILLISECONDS)
    total = Decimal(0)
    last = -1
    for number, unit in parts:
        if unit not in _MILLISECONDS:
            raise ValueError(f"unknown unit {unit!r}: ms, s, m, h and d are known")
        if order.index(unit) <= last:
            raise ValueError('units go from large to small, each once: "1h30m"')
        last = order.index(unit)
        total += Decimal(number) * _MILLISECONDS[unit]
    if total != total.to_integral_value():
        raise ValueError("a duration is a whole number of milliseconds")
    return int(total) / 1000


def parse_size(text: str) -> int:
    """Bytes in `text`: one number with a unit (B, KiB, MiB, GiB, TiB).

    Raises `ValueError` with what is wrong.
    """
    parts = _parts(text)
    if len(parts) != 1:
        raise ValueError('expected a size such as "32KiB" or "100MiB"')
    number, unit = parts[0]
    if not unit:
        raise ValueError(f'a size needs a unit: "{text}B" or "{text}KiB"')
    if unit not in _BYTES:
        raise ValueError(f"unknown unit {unit!r}: B, KiB, MiB, GiB and TiB are known (1 KiB is 1024 bytes)")
    total = Decimal(number) * _BYTES[unit]
    if total != total.to_integral_value():
        raise ValueError("a size is a whole number of bytes")
    return int(total)


def format_duration(seconds: float) -> str:
    """The shortest text with one unit that `parse_duration` reads as `seconds`."""
    milliseconds = round(seconds * 1000)
    if not milliseconds:
        return "0s"
    unit = next(unit for unit, factor in _MILLISECONDS.items() if milliseconds % factor == 0)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}"


def format_size(size: int) -> str:
    """The shortest text with one unit that `parse_size` reads as `size`."""
    if not size:
        return "0B"
    unit = next(unit for unit, factor in _BYTES.items() if size % factor == 0)
    return f"{size // _BYTES[unit]}{unit}"


def _parts(text: str) -> list[tuple[str, str]]:
    """The (number, unit) pairs that make up all of `text`; empty where it is something else."""
    if len(text) > _LONGEST:
        return []
    parts: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            return []
        parts.append((match[1], match[2]))
        position = match.end()
    return parts
