"""Figures, times and tables as text for people."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final

_SPANS: Final = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns that are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def duration(seconds: float) -> str:
    """Two units at most: 42s, 7m 5s, 3h 12m, 9d 4h."""
    whole = int(seconds)
    for unit, size, smaller, smaller_size in _SPANS:
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller_size}{smaller}"
    return f"{whole}s"


def clock(unix_time: float) -> str:
    """Local time with date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time))


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least one: 512 B, 3.4 KiB, 120 MiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1023.5:
            break
        count /= 1024
        unit = larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def short(count: float) -> str:
    """A figure in five characters: 0, 0.4, 7.5, 950, 12.3k, 4.0M."""
    if count < 99.95:
        return f"{count:.1f}".removesuffix(".0")
    for limit, divisor, unit in ((999.5, 1, ""), (999_500, 1e3, "k"), (999_500_000, 1e6, "M")):
        if count < limit:
            scaled = count / divisor
            return (f"{scaled:.0f}" if scaled >= 99.95 else f"{scaled:.1f}") + unit
    return f"{count / 1e9:.1f}G"


def number(count: float) -> str:
    """A weight or the like without needless zeros: 1, 0.25."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


def clean(text: str) -> str:
    """`text`, which others may have chosen, without what a terminal would obey."""
    return _CONTROL.sub("?", text)


def one_line(text: str) -> str:
    """`text`, cleaned, with spaces for its line ends."""
    return clean(" ".join(text.split()))


def cut(text: str, width: int) -> str:
    """`text` in `width` characters, with "..." where something is left out."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."[: max(0, width)]
