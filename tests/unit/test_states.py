"""What others say of the servers, by columns of the scoreboard."""

from __future__ import annotations

from typing import Any, cast

import pytest

from workers.contract.cells import ServerCell, StateCell
from workers.contract.scoreboard import Capacity, Scoreboard
from workers.io.states import Loads, States

CAPACITY = Capacity(workers=3, listeners=1, routes=1, pools=1, servers=8, series=8)


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard.create(CAPACITY)


@pytest.mark.parametrize(
    "cell",
    [
        StateCell.OWNER,
        StateCell.HEALTH,
        StateCell.ADMIN,
        StateCell.WEIGHT,
        StateCell.RETURNED,
        StateCell.EJECTED_UNTIL,
    ],
)
def test_a_state_that_changes_is_seen_once(board: Scoreboard, cell: StateCell) -> None:
    states = States(board, 8)
    assert states.changed() == set()
    for row in (0, 7):
        board.control[board.state_base(row) + cell] += 1
    assert states.changed() == {0, 7}
    assert states.changed() == set()


def test_a_check_that_changes_nothing_is_not_seen(board: Scoreboard) -> None:
    states = States(board, 8)
    board.control[board.state_base(3) + StateCell.CHECKED_AT] = 17
    board.control[board.state_base(3) + StateCell.CHECKS] += 1
    assert states.changed() == set()


def test_rows_beyond_the_own_are_left_out(board: Scoreboard) -> None:
    states = States(board, 3)
    board.control[board.state_base(3) + StateCell.HEALTH] = 2
    assert states.changed() == set()
    assert States(board, 0).changed() == set()


class Siblings:
    """Stands in for a worker."""

    def __init__(self, board: Scoreboard) -> None:
        self.slab = board.slab(0)
        self.siblings = [board.slab(1).cells, board.slab(2).cells]

    def sibling_cells(self) -> list[memoryview]:
        return self.siblings

    def load(self, sibling: int, row: int, count: int) -> None:
        self.siblings[sibling][self.slab.server_base(row) + ServerCell.ACTIVE] = count


@pytest.mark.parametrize("count", [0, 1, 2])
def test_loads_are_those_of_all_others(board: Scoreboard, count: int) -> None:
    worker = Siblings(board)
    loads = Loads(cast("Any", worker), 8)
    worker.load(0, 2, 5)
    worker.load(1, 2, 7)
    worker.siblings = worker.siblings[:count]
    assert {*loads.changed()} == {*range(8)}  # nothing was known
    assert loads.totals == [0, 0, (0, 5, 12)[count], 0, 0, 0, 0, 0]
    assert [*loads.changed()] == []
    if count:
        worker.load(0, 6, 1)
        assert [*loads.changed()] == [6]
        assert loads.totals[6] == 1
    worker.siblings = []
    assert {*loads.changed()} == ({2, 6} if count else set())
    assert not any(loads.totals)
