"""The cells: no two share a place in their row, and what takes several has room for them."""

from __future__ import annotations

import enum

import pytest

from workers.contract import cells
from workers.contract.cells import (
    CheckResult,
    ControlCell,
    EjectReason,
    HandshakeResult,
    ListenerCell,
    PoolCell,
    RouteCell,
    ServerCell,
    StateCell,
    StickyResult,
    WorkerCell,
)

ROWS = [WorkerCell, ListenerCell, RouteCell, PoolCell, ServerCell, ControlCell, StateCell]
# Cells that are the first of several, and how many.
WIDE: dict[enum.IntEnum, int] = {
    RouteCell.HANDSHAKES: len(HandshakeResult),
    RouteCell.SECONDS: len(cells.HTTP_SECONDS) + 1,
    RouteCell.HANDSHAKE: len(cells.HANDSHAKE_SECONDS) + 1,
    RouteCell.TUNNEL: len(cells.TUNNEL_SECONDS) + 1,
    PoolCell.STICKY: len(StickyResult),
    PoolCell.CONNECT: len(cells.CONNECT_SECONDS) + 1,
    StateCell.CHECKS: len(CheckResult),
    StateCell.EJECTIONS: len(EjectReason),
}


@pytest.mark.parametrize("row", ROWS)
def test_no_two_cells_of_a_row_share_a_place(row: type[enum.IntEnum]) -> None:
    width = row["WIDTH"].value
    taken: list[int] = []
    for cell in row:
        if cell.name != "WIDTH":
            # Members of different enumerations with the same value are equal: look the cell up by its name.
            count = next((WIDE[wide] for wide in WIDE if wide is cell), 1)
            taken.extend(range(cell.value, cell.value + count))
    assert len(set(taken)) == len(taken)
    assert max(taken) < width


def test_the_table_of_wide_cells_is_whole() -> None:
    assert len(WIDE) == 8


@pytest.mark.parametrize("row", ROWS)
def test_a_name_stands_for_a_cell_of_its_own(row: type[enum.IntEnum]) -> None:
    assert len(row.__members__) == len(list(row)), "two names of one number are one member"


@pytest.mark.parametrize(
    "bounds", [cells.HTTP_SECONDS, cells.HANDSHAKE_SECONDS, cells.CONNECT_SECONDS, cells.TUNNEL_SECONDS]
)
def test_bounds_of_buckets_grow(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bounds[0] > 0


@pytest.mark.parametrize("results", [HandshakeResult, StickyResult, CheckResult, EjectReason])
def test_results_are_counted_in_neighbouring_cells(results: type[enum.IntEnum]) -> None:
    assert [result.value for result in results] == list(range(len(results)))
