"""Tables that fit: where it gets narrow, the least important columns go, and names are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from rich.text import Text

from lb.cli.text import cut

Row = TypeVar("Row")

_GAP: Final = 2
_TITLE_STYLE: Final = "bold dim"


def plain(row: object) -> str:
    """No style."""
    return ""


class Column(NamedTuple, Generic[Row]):
    """A column. `rank` is its importance: the lowest goes first. `least` is the width that it may be cut
    to, where it is text; figures (0) stay whole, and stand to the right."""

    title: str
    rank: int
    cell: Callable[[Row], str]
    least: int = 0
    style: Callable[[Row], str] = plain


class _Filled(NamedTuple):
    """A column with its cells."""

    title: str
    rank: int
    cells: list[tuple[str, str]]
    least: int
    natural: int

    @property
    def smallest(self) -> int:
        return min(self.natural, self.least) if self.least else self.natural


def fitted(
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    width: int,
    height: int,
    urgent: Callable[[Row], bool],
) -> list[Text]:
    """Titles and `rows` in `width` columns and `height` lines. Where not all rows fit, the `urgent` come
    first, and a last line says how many more there are."""
    shown, left = list(rows), 0
    if len(rows) > height - 1:
        shown = sorted(rows, key=lambda row: not urgent(row))[: max(0, height - 2)]
        left = len(rows) - len(shown)
    filled = _chosen([_fill(column, shown) for column in columns], width)
    widths = _widths(filled, width)
    title = Text(_line([column.title for column in filled], filled, widths), _TITLE_STYLE)
    lines = [title, *(_row(filled, widths, index) for index in range(len(shown)))]
    if left:
        lines.append(Text(f"... and {left} more", "dim"))
    for line in lines:
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _fill(column: Column[Row], rows: Sequence[Row]) -> _Filled:
    cells = [(column.cell(row), column.style(row)) for row in rows]
    natural = max([len(column.title), *(len(text) for text, _ in cells)])
    return _Filled(column.title, column.rank, cells, column.least, natural)


def _chosen(columns: list[_Filled], width: int) -> list[_Filled]:
    # A column of text without a text says nothing.
    chosen = [column for column in columns if not column.least or any(text for text, _ in column.cells)]
    while len(chosen) > 1 and sum(column.smallest + _GAP for column in chosen) - _GAP > width:
        chosen.remove(min(chosen, key=lambda column: column.rank))
    return chosen


def _widths(columns: Sequence[_Filled], width: int) -> list[int]:
    spare = width - sum(column.smallest + _GAP for column in columns) + _GAP
    widths = []
    for column in columns:
        more = max(0, min(spare, column.natural - column.smallest))
        spare -= more
        widths.append(column.smallest + more)
    return widths


def _line(cells: Sequence[str], columns: Sequence[_Filled], widths: Sequence[int]) -> str:
    return (" " * _GAP).join(map(_placed, cells, columns, widths))


def _placed(cell: str, column: _Filled, width: int) -> str:
    return cut(cell, width).ljust(width) if column.least else cut(cell, width).rjust(width)


def _row(columns: Sequence[_Filled], widths: Sequence[int], index: int) -> Text:
    line = Text()
    for column, width in zip(columns, widths, strict=True):
        text, style = column.cells[index]
        line.append(_placed(text, column, width), style)
        line.append(" " * _GAP)
    return line
