"""Which worker gives how many tunnels to which."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from lb.master.sharing import Load, Move, rebalanced, spread

counts = st.lists(st.integers(0, 2000), min_size=2, max_size=16)
PLENTY = 1_000_000


def free(tunnels: list[int]) -> list[Load]:
    """Workers whose tunnels can all move, to wherever."""
    return [Load(slot, count, count, PLENTY) for slot, count in enumerate(tunnels)]


def moved(loads: list[Load], move: Move) -> list[Load]:
    """What `move` makes of `loads`."""
    after = []
    for load in loads:
        change = move.tunnels * ((load.slot == move.taker) - (load.slot == move.giver))
        after.append(Load(load.slot, load.tunnels + change, load.movable + change, load.room - change))
    return after


def worth(loads: list[Load]) -> int:
    return sum(load.tunnels**2 for load in loads)


@given(counts, st.integers(1, 100), st.integers(1, 100), st.integers(1, 500))
def test_it_converges_and_never_goes_back(tunnels: list[int], most: int, percent: int, pace: int) -> None:
    loads = free(tunnels)
    gave, took = set(), set()
    while (move := rebalanced(loads, most, percent, pace)) is not None:
        assert 0 < move.tunnels <= pace
        before, loads = loads, moved(loads, move)
        assert worth(loads) < worth(before)  # so that it ends
        # Whoever gave does not end below whoever took: nothing is ever to go back.
        assert loads[move.giver].tunnels >= loads[move.taker].tunnels
        gave.add(move.giver)
        took.add(move.taker)
    left = [load.tunnels for load in loads]
    assert max(left) - min(left) <= max(most, percent * sum(left) / len(left) / 100)
    assert sum(left) == sum(tunnels)


@given(counts, st.integers(1, 100), st.integers(1, 100))
def test_what_is_even_enough_is_left_alone(tunnels: list[int], most: int, percent: int) -> None:
    difference = max(tunnels) - min(tunnels)
    even = difference <= most or difference <= percent * sum(tunnels) / len(tunnels) / 100
    assert (rebalanced(free(tunnels), most, percent, 10) is None) == even


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)), max_size=12))
def test_nobody_gives_or_gets_more_than_is_possible(raw: list[tuple[int, int, int]]) -> None:
    loads = [Load(slot, a + b, b, room) for slot, (a, b, room) in enumerate(raw)]
    move = rebalanced(loads, 1, 1, PLENTY)
    assume(move is not None)
    assert move is not None
    assert move.tunnels <= loads[move.giver].movable
    assert move.tunnels <= loads[move.taker].room


def test_one_whose_tunnels_stay_is_passed_over() -> None:
    loads = [Load(0, 900, 0, 9), Load(1, 500, 500, 9000), Load(2, 0, 0, 9000)]
    assert rebalanced(loads, 50, 10, 200) == Move(1, 2, 200)


def test_a_new_worker_is_filled_at_the_pace() -> None:
    loads = free([1000, 1000, 0])
    first = rebalanced(loads, 50, 10, 200)
    assert first == Move(0, 2, 200)
    assert rebalanced(moved(loads, first), 50, 10, 200) == Move(1, 2, 200)


def test_half_the_difference_goes() -> None:
    assert rebalanced(free([100, 0]), 50, 10, 200) == Move(0, 1, 50)
    assert rebalanced(free([50, 0]), 50, 10, 200) is None


def test_a_full_worker_gets_nothing() -> None:
    loads = [Load(0, 1000, 1000, PLENTY), Load(1, 100, 100, 0), Load(2, 300, 300, PLENTY)]
    assert rebalanced(loads, 50, 10, 1000) == Move(0, 2, 350)
    assert rebalanced([Load(0, 1000, 1000, 0), Load(1, 0, 0, 0)], 50, 10, 1000) is None


@given(st.integers(0, 5000), counts)
def test_spread_makes_even(count: int, tunnels: list[int]) -> None:
    shares = spread(count, free(tunnels))
    assert sum(shares.values()) == count
    after = [have + shares.get(slot, 0) for slot, have in enumerate(tunnels)]
    # Whoever got some ends no more than one above anybody else.
    assert all(after[slot] <= min(after) + 1 for slot in shares)


@given(st.integers(0, 5000), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=12))
def test_spread_keeps_to_the_room(count: int, raw: list[tuple[int, int]]) -> None:
    loads = [Load(slot, tunnels, 0, room) for slot, (tunnels, room) in enumerate(raw)]
    shares = spread(count, loads)
    assert all(0 < share <= loads[slot].room for slot, share in shares.items())
    assert sum(shares.values()) == min(count, sum(load.room for load in loads))
