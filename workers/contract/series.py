"""Counters by labels that are not known before they are used: request codes, close codes, error reasons.

The series area of a slab is a table of (key, value) pairs. An entry is taken when its combination of labels
is used first; the number of taken entries stands in `WorkerCell.SERIES`. A key packs what is counted, the row
that it belongs to, the labels and the row's owner, so that entries of a row that changed hands are told
apart. Where no entry is left, the figure goes into the row's own OTHER_* cell: totals stay true.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from workers.contract.cells import WorkerCell
from workers.contract.scoreboard import Slab

# Methods that have a label of their own; all others are counted as the last one.
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
OTHER_METHOD: Final = len(METHODS) - 1
# Who ended a tunnel.
INITIATORS: Final = ("client", "server", "lb", "none")
# Codes of Close frames beside 1000-1015: 3000-3999, 4000-4999, no Close frame, any other.
CLOSE_3XXX: Final = 3000
CLOSE_4XXX: Final = 4000
CLOSE_NONE: Final = 1
CLOSE_OTHER: Final = 0

_KIND: Final = 59  # where the kind stands in a key
_SWEPT: Final = 32  # entries that are looked at in a step of `sweep`


class Kind(enum.IntEnum):
    """What an entry counts; `detail` of its key in brackets."""

    REQUESTS = 1  # of a route [method << 10 | status]
    CLOSES = 2  # tunnels of a route that ended [initiator << 13 | code]
    TUNNELS = 3  # gauge: tunnels of a route [row of the server]
    RESPONSES = 4  # of a server [status]
    ERRORS = 5  # of a server [index in errors.REASONS]
    REJECTED = 6  # by a listener [index in errors.REASONS]


class Key(NamedTuple):
    """A key, unpacked."""

    kind: int
    row: int
    detail: int
    owner: int


def pack(kind: int, row: int, detail: int, owner: int) -> int:
    """The key as one cell: 4 bits kind, 12 row, 16 detail, 31 owner."""
    return kind << _KIND | row << 47 | detail << 31 | owner & 0x7FFF_FFFF


def unpack(key: int) -> Key:
    """The inverse of `pack`."""
    return Key(key >> _KIND, key >> 47 & 0xFFF, key >> 31 & 0xFFFF, key & 0x7FFF_FFFF)


def status_label(status: int) -> int:
    """The status that a response is counted under: its own from 100 to 599, else 0 ("other")."""
    return status if 100 <= status <= 599 else 0


def close_label(code: int | None) -> int:
    """The code that a tunnel's end is counted under; `None` is no Close frame."""
    if code is None:
        return CLOSE_NONE
    if 1000 <= code <= 1015:
        return code
    if 3000 <= code <= 4999:
        return CLOSE_3XXX if code < 4000 else CLOSE_4XXX
    return CLOSE_OTHER


class SeriesTable:
    """The series of one worker's slab; the worker alone writes them."""

    __slots__ = ("_base", "_capacity", "_cells", "_free", "_places")

    def __init__(self, slab: Slab, capacity: int) -> None:
        """Finds the entries that a predecessor left: its counters go on, its gauges are gone."""
        self._cells = slab.cells
        self._base = slab.series_base
        self._capacity = capacity
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        cells = self._cells
        for place in range(self._base, self._base + 2 * cells[WorkerCell.SERIES], 2):
            self._places[cells[place]] = place + 1
            if cells[place] >> _KIND == Kind.TUNNELS:
                cells[place + 1] = 0

    def place(self, kind: int, row: int, detail: int, owner: int, other: int) -> int:
        """The index of the cell to count in; `other` where the table is full."""
        key = pack(kind, row, detail, owner)
        place = self._places.get(key)
        if place is None:
            place = self._take(key)
        if place is None:
            self._cells[WorkerCell.SERIES_FULL] += 1
            return other
        return place

    def count(self, kind: int, row: int, detail: int, owner: int, other: int) -> None:
        """Adds one; for what is rare. What counts with every request keeps the `place`."""
        self._cells[self.place(kind, row, detail, owner, other)] += 1

    def _take(self, key: int) -> int | None:
        cells = self._cells
        taken = cells[WorkerCell.SERIES]
        if taken < self._capacity:
            place = self._base + 2 * taken + 1
        elif self._free:
            old = self._free.pop()
            place = self._places.pop(old)
        else:
            return None
        # The value first, and the number of entries last: whoever reads meanwhile sees no wrong figure.
        cells[place] = 0
        cells[place - 1] = key
        if taken < self._capacity:
            cells[WorkerCell.SERIES] = taken + 1
        self._places[key] = place
        return place

    def sweep(self, live: Callable[[Key], bool]) -> Generator[None, None, None]:
        """Marks the entries whose row has another owner now as free, for when the table is full. To be
        done, in steps, when a configuration is committed."""
        cells = self._cells
        free = []
        for count, (key, place) in enumerate(tuple(self._places.items())):
            if not live(unpack(key)) and not (key >> _KIND == Kind.TUNNELS and cells[place]):
                free.append(key)
            if count % _SWEPT == 0:
                yield
        # One that was free before may have been given away meanwhile, and a place with it.
        self._free = [key for key in free if key in self._places]
