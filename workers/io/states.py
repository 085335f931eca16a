"""What others say of the servers, by rows of the scoreboard: which of it has changed since the last look.

With thousands of servers, to look at each of them costs more than a turn of the event loop may; to read a
column of cells costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from operator import ne
from typing import TYPE_CHECKING, Final

from workers.contract.cells import ServerCell, StateCell
from workers.contract.scoreboard import Scoreboard

if TYPE_CHECKING:
    from workers.io.worker import Worker

# What the workers go by; the other cells of a row change with every check.
_COLUMNS: Final = tuple(
    map(
        int,
        (
            StateCell.OWNER,
            StateCell.HEALTH,
            StateCell.ADMIN,
            StateCell.WEIGHT,
            StateCell.RETURNED,
            StateCell.EJECTED_UNTIL,
        ),
    )
)
_STRIDE: Final = int(StateCell.WIDTH)
_LOADS: Final = int(ServerCell.WIDTH)  # ACTIVE stands first in a row


class Loads:
    """What the other workers have on the first `rows` servers, by row."""

    __slots__ = ("_rows", "_worker", "totals")

    def __init__(self, worker: Worker, rows: int) -> None:
        self._worker = worker
        self._rows = rows
        self.totals = [-1] * rows  # nothing is known yet

    def changed(self) -> Iterable[int]:
        """The rows whose total has changed since the last call; the totals are those of now."""
        slab = self._worker.slab
        start, end = slab.server_base(0), slab.server_base(self._rows)
        columns = [cells[start:end:_LOADS].tolist() for cells in self._worker.sibling_cells()]
        before, totals = self.totals, self.totals
        if len(columns) == 1:
            totals = columns[0]
        elif columns:
            totals = list(map(sum, zip(*columns, strict=True)))
        else:
            totals = [0] * self._rows
        self.totals = totals
        return () if before == totals else compress(range(self._rows), map(ne, before, totals))


class States:
    """The states of the first `rows` servers: what checks saw and what the operator wants. The control
    process writes them, and rings when it did."""

    __slots__ = ("_board", "_rows", "_seen")

    def __init__(self, board: Scoreboard, rows: int) -> None:
        self._board = board
        self._rows = rows
        self._seen = self._read()

    def changed(self) -> set[int]:
        """The rows that have changed since the last call, or since this was made."""
        seen, self._seen = self._seen, self._read()
        found: set[int] = set()
        for before, now in zip(seen, self._seen, strict=True):
            if before != now:
                found.update(compress(range(self._rows), map(ne, before, now)))
        return found

    def _read(self) -> list[list[int]]:
        start = self._board.state_base(0)
        end = self._board.state_base(self._rows)
        cells = self._board.control
        return [cells[start + column : end : _STRIDE].tolist() for column in _COLUMNS]
