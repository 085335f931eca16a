"""The scoreboard: no cell has two meanings, every process sees the same, counters outlive their writer."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract.cells import (
    ControlCell,
    ListenerCell,
    PoolCell,
    RouteCell,
    ServerCell,
    StateCell,
    WorkerCell,
)
from workers.contract.scoreboard import CELL, HEADER_CELLS, Capacity, Scoreboard, ScoreboardError, Slab

# The children only count and leave: that other tests have started threads does not matter to them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

SMALL = Capacity(workers=3, listeners=2, routes=5, pools=2, servers=4, series=8)


@contextlib.contextmanager
def scoreboard(capacity: Capacity | None = SMALL) -> Iterator[Scoreboard]:
    board = Scoreboard.create(capacity)
    try:
        yield board
    finally:
        os.close(board.fd)


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    with scoreboard() as made:
        yield made


def in_child(work: Callable[[], bool]) -> bool:
    """Runs `work` in a forked process; whether it said yes."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def rows(slab: Slab, capacity: Capacity) -> list[tuple[int, int]]:
    """(first cell, cells) of everything in a slab."""
    return [
        (0, WorkerCell.WIDTH),
        *((slab.listener_base(slot), int(ListenerCell.WIDTH)) for slot in range(capacity.listeners)),
        *((slab.route_base(slot), int(RouteCell.WIDTH)) for slot in range(capacity.routes)),
        *((slab.pool_base(slot), int(PoolCell.WIDTH)) for slot in range(capacity.pools)),
        *((slab.server_base(slot), int(ServerCell.WIDTH)) for slot in range(capacity.servers)),
        (slab.series_base, 2 * capacity.series),
    ]


# --- layout ---------------------------------------------------------------------------------------------

capacities = st.builds(
    Capacity,
    workers=st.integers(1, 4),
    listeners=st.integers(0, 8),
    routes=st.integers(0, 12),
    pools=st.integers(0, 12),
    servers=st.integers(0, 30),
    series=st.integers(0, 40),
)


@given(capacities)
def test_no_two_rows_share_a_cell(capacity: Capacity) -> None:
    with scoreboard(capacity) as board:
        end = 0
        for start, width in rows(board.slab(0), capacity):
            assert start == end
            end = start + width
        assert end <= len(board.slab(0).cells)
        assert len(board.slabs()) == capacity.workers


@given(capacities, st.integers(1, 2**62))
def test_no_two_slabs_nor_what_lies_around_them_share_a_cell(capacity: Capacity, value: int) -> None:
    with scoreboard(capacity) as board:
        for worker, slab in enumerate(board.slabs()):
            slab.cells[0] = slab.cells[-1] = value + worker
        for index in range(len(board.grants)):
            board.grants[index] = -1 - index
        for index in range(len(board.control)):
            board.control[index] = 1 + index
        for worker, slab in enumerate(board.slabs()):
            assert slab.cells[0] == slab.cells[-1] == value + worker
            assert len(slab.cells) < 3 or not any(slab.cells[1:3])
        assert {
            board.grant_index(w, s) for w in range(capacity.workers) for s in range(capacity.servers)
        } == {*range(capacity.workers * capacity.servers)}
        assert board.grants.tolist() == [-1 - index for index in range(len(board.grants))]
        assert Scoreboard.attach(board.fd).capacity == capacity


@given(capacities)
def test_the_states_of_all_servers_lie_in_the_control_area(capacity: Capacity) -> None:
    with scoreboard(capacity) as board:
        bases = [board.state_base(server) for server in range(capacity.servers + 1)]
        assert bases == [*range(ControlCell.WIDTH, len(board.control) + 1, StateCell.WIDTH)]


def test_a_slab_is_used_from_the_first_heartbeat_on(board: Scoreboard) -> None:
    board.slab(1).cells[WorkerCell.HEARTBEAT] = 1
    assert [slab.used for slab in board.slabs()] == [False, True, False]


def test_slabs_are_whole_pages(board: Scoreboard) -> None:
    assert all(len(slab.cells) * CELL % mmap.PAGESIZE == 0 for slab in board.slabs())


def test_a_server_row_is_a_view_of_its_cells(board: Scoreboard) -> None:
    slab = board.slab(1)
    row = slab.server_row(3)
    row[ServerCell.ACTIVE] = 7
    assert slab.cells[slab.server_base(3) + ServerCell.ACTIVE] == 7
    assert len(row) == ServerCell.WIDTH


@pytest.mark.parametrize("worker", [-1, SMALL.workers, SMALL.workers + 1])
def test_there_is_no_slab_beyond_the_capacity(board: Scoreboard, worker: int) -> None:
    with pytest.raises(IndexError, match="beyond the capacity of 3"):
        board.slab(worker)


def test_unused_capacity_costs_no_memory() -> None:
    with scoreboard(None) as board:
        board.slab(2).cells[WorkerCell.REQUESTS] = 1
        status = os.fstat(board.fd)
        assert status.st_size > 100 * 2**20
        assert status.st_blocks * 512 < 2**16


def test_clearing_the_gauges_of_the_dead_costs_no_memory() -> None:
    with scoreboard(None) as board:
        slab = board.slab(2)
        slab.cells[WorkerCell.HEARTBEAT] = 1
        slab.own_listener(0, 1)
        slab.own_route(0, 1)
        slab.own_pool(1, 1)
        slab.own_server(2, 1)
        before = os.fstat(board.fd).st_blocks
        slab.clear_gauges()
        assert os.fstat(board.fd).st_blocks == before
        assert before * 512 < 2**17


# --- processes ------------------------------------------------------------------------------------------


def test_a_child_and_its_parent_see_the_same_cells(board: Scoreboard) -> None:
    cells = board.slab(1).cells
    cells[WorkerCell.REQUESTS] = 41

    def work() -> bool:
        cells[WorkerCell.REQUESTS] += 1
        cells[WorkerCell.LAG] = -5
        return cells[WorkerCell.REQUESTS] == 42

    assert in_child(work)
    assert (cells[WorkerCell.REQUESTS], cells[WorkerCell.LAG]) == (42, -5)


def test_a_child_finds_the_scoreboard_by_its_descriptor(board: Scoreboard) -> None:
    slab = board.slab(2)
    slab.cells[slab.route_base(4) + RouteCell.CLIENT_BYTES] = 9

    def work() -> bool:
        found = Scoreboard.attach(board.fd)
        theirs = found.slab(2)
        theirs.cells[theirs.server_base(3) + ServerCell.ACTIVE] = -3
        return (found.capacity, theirs.cells[theirs.route_base(4) + RouteCell.CLIENT_BYTES]) == (SMALL, 9)

    assert in_child(work)
    assert slab.cells[slab.server_base(3) + ServerCell.ACTIVE] == -3


def test_the_descriptor_does_not_survive_exec(board: Scoreboard) -> None:
    assert not os.get_inheritable(board.fd)


def test_a_successor_clears_the_gauges_and_keeps_the_counters(board: Scoreboard) -> None:
    slab = board.slab(1)
    for slab_of_all in board.slabs():
        for index in range(len(slab_of_all.cells)):
            slab_of_all.cells[index] = 5
    slab.cells[WorkerCell.LISTENER_ROWS] = SMALL.listeners
    slab.cells[WorkerCell.ROUTE_ROWS] = SMALL.routes
    slab.cells[WorkerCell.POOL_ROWS] = SMALL.pools - 1  # the last one never had an owner
    slab.cells[WorkerCell.SERVER_ROWS] = SMALL.servers
    slab.clear_gauges()
    gauges = {
        WorkerCell.CONNECTIONS, WorkerCell.TUNNELS, WorkerCell.LISTENERS,
        WorkerCell.MOVABLE, WorkerCell.SAFE, WorkerCell.PACED,
        *(slab.listener_base(slot) + ListenerCell.CONNECTIONS for slot in range(SMALL.listeners)),
        *(slab.route_base(slot) + cell for slot in range(SMALL.routes)
          for cell in (RouteCell.IN_FLIGHT, RouteCell.TUNNELS, RouteCell.OTHER_TUNNELS)),
        *(slab.pool_base(slot) + cell for slot in range(SMALL.pools - 1)
          for cell in (PoolCell.QUEUED, PoolCell.ADMISSION_QUEUED)),
        *(slab.server_base(slot) + cell for slot in range(SMALL.servers)
          for cell in (ServerCell.ACTIVE, ServerCell.TUNNELS, ServerCell.CONNECTIONS, ServerCell.WAITING,
                       ServerCell.BOUND, ServerCell.IDLE)),
    }  # fmt: skip
    assert {index for index, value in enumerate(slab.cells) if value == 0} == gauges


def test_a_row_that_changes_hands_counts_from_zero_and_keeps_its_gauges(board: Scoreboard) -> None:
    slab = board.slab(0)
    base = slab.server_base(2)
    slab.own_server(2, 7)
    for cell in (ServerCell.ACTIVE, ServerCell.ERRORS):
        slab.cells[base + cell] = 3
    slab.own_server(2, 7)
    assert slab.cells[base + ServerCell.ERRORS] == 3
    slab.own_server(2, 8)
    assert slab.cells[base + ServerCell.ERRORS] == 0
    assert slab.cells[base + ServerCell.ACTIVE] == 3  # whoever is still there takes himself off
    assert slab.cells[base + ServerCell.OWNER] == 8
    assert slab.cells[WorkerCell.SERVER_ROWS] == 3


def test_nobody_can_cut_it_short(board: Scoreboard) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, 0)


def test_other_slabs_stay_as_they_are(board: Scoreboard) -> None:
    for slab_of_all in board.slabs():
        for index in range(len(slab_of_all.cells)):
            slab_of_all.cells[index] = 5
    board.slab(1).clear_gauges()
    assert all(value == 5 for other in (0, 2) for value in board.slab(other).cells)


# --- what is no scoreboard ------------------------------------------------------------------------------


def damaged(board: Scoreboard, cell: int, value: int) -> None:
    os.pwrite(board.fd, struct.pack("q", value), cell * CELL)


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        (0, 0, "no scoreboard of format"),
        (1, 99, "no scoreboard of format"),
        (2, 2, "laid out otherwise"),
        (2, 2**40, "laid out otherwise"),
        (3, -1, "laid out otherwise"),
        (7, 2**20, "laid out otherwise"),
        *((cell, 1, "laid out otherwise") for cell in (4, 5, 6, *range(8, 22))),
    ],
)
def test_what_would_be_misread_is_refused(board: Scoreboard, cell: int, value: int, message: str) -> None:
    damaged(board, cell, value)
    with pytest.raises(ScoreboardError, match=message):
        Scoreboard.attach(board.fd)


@pytest.mark.parametrize(
    "size", [0, 7, HEADER_CELLS * CELL - 1, HEADER_CELLS * CELL, HEADER_CELLS * CELL + 8]
)
def test_what_is_cut_short_is_refused(board: Scoreboard, size: int) -> None:
    data = os.pread(board.fd, size, 0)
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        with pytest.raises(ScoreboardError, match="short"):
            Scoreboard.attach(fd)
    finally:
        os.close(fd)
