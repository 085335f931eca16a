"""Series: a key says what it counts and for whom, and a full table loses no figure."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract.cells import WorkerCell
from workers.contract.errors import REASONS
from workers.contract.scoreboard import Capacity, Scoreboard, Slab
from workers.contract.series import (
    CLOSE_3XXX,
    CLOSE_4XXX,
    CLOSE_NONE,
    CLOSE_OTHER,
    INITIATORS,
    METHODS,
    Key,
    Kind,
    SeriesTable,
    close_label,
    pack,
    status_label,
    unpack,
)

CAPACITY = 4
OTHER = 7  # any cell of the row


@pytest.fixture
def slab() -> Iterator[Slab]:
    board = Scoreboard.create(Capacity(2, 1, 1, 1, 1, CAPACITY))
    yield board.slab(1)
    os.close(board.fd)


keys = st.builds(
    Key, st.sampled_from(Kind), st.integers(0, 4095), st.integers(0, 0xFFFF), st.integers(0, 2**31 - 1)
)


def entries(slab: Slab) -> dict[Key, int]:
    """What a reader sees."""
    taken = slab.cells[WorkerCell.SERIES]
    flat = slab.cells[slab.series_base : slab.series_base + 2 * taken].tolist()
    return {unpack(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


# --- keys -----------------------------------------------------------------------------------------------


@given(keys)
def test_a_key_is_one_cell_and_is_told_apart(key: Key) -> None:
    packed = pack(*key)
    assert 0 < packed < 2**63
    assert unpack(packed) == key


@given(keys, keys)
def test_different_keys_are_different_cells(one: Key, other: Key) -> None:
    assert (pack(*one) == pack(*other)) == (one == other)


def test_labels_and_rows_have_room_in_a_key() -> None:
    rows = Capacity()
    assert max(rows.listeners, rows.routes, rows.pools, rows.servers) <= 2**12
    assert (len(METHODS) - 1) << 10 | 0x3FF <= 0xFFFF
    assert (len(INITIATORS) - 1) << 13 | 0x1FFF <= 0xFFFF
    assert len(REASONS) <= 0xFFFF
    assert max(Kind) < 2**4 // 2, "the highest bit of a cell is its sign"


@pytest.mark.parametrize(
    ("status", "label"), [(99, 0), (100, 100), (200, 200), (599, 599), (600, 0), (999, 0), (0, 0)]
)
def test_odd_statuses_are_counted_together(status: int, label: int) -> None:
    assert status_label(status) == label


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (None, CLOSE_NONE),
        (0, CLOSE_OTHER),
        (1, CLOSE_OTHER),
        (999, CLOSE_OTHER),
        (1000, 1000),
        (1015, 1015),
        (1016, CLOSE_OTHER),
        (2999, CLOSE_OTHER),
        (3000, CLOSE_3XXX),
        (3999, CLOSE_3XXX),
        (4000, CLOSE_4XXX),
        (4999, CLOSE_4XXX),
        (5000, CLOSE_OTHER),
        (65535, CLOSE_OTHER),
    ],
)
def test_close_codes_are_bounded(code: int | None, label: int) -> None:
    assert close_label(code) == label
    assert label < 1 << 13


# --- the table ------------------------------------------------------------------------------------------


def test_an_entry_is_taken_once_and_counts_from_zero(slab: Slab) -> None:
    table = SeriesTable(slab, CAPACITY)
    for _ in range(3):
        slab.cells[table.place(Kind.REQUESTS, 3, 200, 9, OTHER)] += 1
    slab.cells[table.place(Kind.REQUESTS, 3, 404, 9, OTHER)] += 1
    slab.cells[table.place(Kind.REQUESTS, 3, 200, 10, OTHER)] += 1
    assert entries(slab) == {
        Key(Kind.REQUESTS, 3, 200, 9): 3,
        Key(Kind.REQUESTS, 3, 404, 9): 1,
        Key(Kind.REQUESTS, 3, 200, 10): 1,
    }
    assert slab.cells[OTHER] == slab.cells[WorkerCell.SERIES_FULL] == 0


def test_a_successor_goes_on_with_the_counters_and_clears_the_gauges(slab: Slab) -> None:
    table = SeriesTable(slab, CAPACITY)
    slab.cells[table.place(Kind.CLOSES, 1, 1000, 2, OTHER)] += 5
    slab.cells[table.place(Kind.TUNNELS, 1, 3, 2, OTHER)] += 6
    successor = SeriesTable(slab, CAPACITY)
    assert entries(slab) == {Key(Kind.CLOSES, 1, 1000, 2): 5, Key(Kind.TUNNELS, 1, 3, 2): 0}
    slab.cells[successor.place(Kind.CLOSES, 1, 1000, 2, OTHER)] += 1
    slab.cells[successor.place(Kind.TUNNELS, 1, 3, 2, OTHER)] += 1
    assert entries(slab) == {Key(Kind.CLOSES, 1, 1000, 2): 6, Key(Kind.TUNNELS, 1, 3, 2): 1}


def fill(slab: Slab, table: SeriesTable) -> list[int]:
    places = [table.place(Kind.RESPONSES, row, 200, 1, OTHER) for row in range(CAPACITY)]
    for place in places:
        slab.cells[place] += 10
    return places


def test_what_finds_no_entry_goes_into_the_other_cell(slab: Slab) -> None:
    table = SeriesTable(slab, CAPACITY)
    places = fill(slab, table)
    assert len({*places}) == CAPACITY
    assert slab.cells[WorkerCell.SERIES_FULL] == 0
    assert table.place(Kind.RESPONSES, CAPACITY, 200, 1, OTHER) == OTHER
    assert slab.cells[WorkerCell.SERIES_FULL] == 1
    assert table.place(Kind.RESPONSES, 0, 200, 1, OTHER) == places[0], "what has an entry keeps it"
    assert slab.cells[WorkerCell.SERIES] == CAPACITY


def test_entries_of_rows_that_changed_hands_are_used_again(slab: Slab) -> None:
    table = SeriesTable(slab, CAPACITY)
    places = fill(slab, table)
    assert not any(table.sweep(lambda key: key.row != 2))
    place = table.place(Kind.RESPONSES, 2, 200, 5, OTHER)
    assert place == places[2]
    assert entries(slab)[Key(Kind.RESPONSES, 2, 200, 5)] == 0
    assert Key(Kind.RESPONSES, 2, 200, 1) not in entries(slab)
    assert table.place(Kind.RESPONSES, 2, 200, 1, OTHER) == OTHER, "one was free, and is taken"
    assert SeriesTable(slab, CAPACITY).place(Kind.RESPONSES, 2, 200, 5, OTHER) == place


def test_a_gauge_of_a_removed_row_stays_until_it_is_zero(slab: Slab) -> None:
    table = SeriesTable(slab, CAPACITY)
    gauge = table.place(Kind.TUNNELS, 0, 3, 1, OTHER)
    slab.cells[gauge] = 1
    for row in range(1, CAPACITY):
        table.place(Kind.CLOSES, row, 1000, 1, OTHER)
    assert not any(table.sweep(lambda key: key.kind != Kind.TUNNELS))
    assert table.place(Kind.CLOSES, 9, 1000, 2, OTHER) == OTHER
    slab.cells[gauge] = 0
    assert not any(table.sweep(lambda key: key.kind != Kind.TUNNELS))
    assert table.place(Kind.CLOSES, 9, 1000, 2, OTHER) == gauge


def test_a_swept_entry_that_is_wanted_again_is_not_given_away(slab: Slab) -> None:
    table = SeriesTable(slab, CAPACITY)
    places = fill(slab, table)
    assert not any(table.sweep(lambda key: key.row != 2))
    assert table.place(Kind.RESPONSES, 2, 200, 1, OTHER) == places[2]
    slab.cells[places[2]] += 1
    assert entries(slab)[Key(Kind.RESPONSES, 2, 200, 1)] == 11
