"""The balancing policies: who is chosen, how often, and what an absent server changes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract.snapshot import PoolSpec, ServerSpec
from workers.core.balance import Policy, StickyRing, build, hash_key
from workers.core.balance.hashed import FLOOR

Balance = Literal["round-robin", "least-conn", "p2c", "random", "hash"]
ALL: tuple[Balance, ...] = ("round-robin", "least-conn", "p2c", "random", "hash")


def pool(balance: Balance, weights: Sequence[int], backups: Sequence[int] = ()) -> PoolSpec:
    servers = tuple(
        ServerSpec(slot=at, name=f"10.0.0.{at}:9000", host="h", port=9, weight=weight, backup=at in backups)
        for at, weight in enumerate(weights)
    )
    return PoolSpec(name="p", servers=servers, balance=balance)


def policy(balance: Balance, weights: Sequence[int], usable: Sequence[int] | None = None) -> Policy:
    return build(pool(balance, weights), range(len(weights)) if usable is None else usable)


def idle(weights: Sequence[int]) -> list[float]:
    return [1 / weight if weight else 1.0 for weight in weights]


def draw(chosen: Policy, count: int, scores: Sequence[float], ticket: Callable[[int], int]) -> Counter[int]:
    return Counter(chosen.pick(ticket(turn), scores, ()) for turn in range(count))


def random_bits(seed: int) -> Callable[[int], int]:
    source = random.Random(seed)
    return lambda turn: source.getrandbits(32)


# --- what holds for all of them ------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ALL)
def test_nobody_is_usable(balance: Balance) -> None:
    assert policy(balance, [1, 1], usable=[]).pick(7, [1.0, 1.0], ()) == -1


@pytest.mark.parametrize("balance", ALL)
def test_a_single_server_of_several(balance: Balance) -> None:
    chosen = policy(balance, [1, 3, 1], usable=[1])
    assert {chosen.pick(ticket, [1.0, 9.0, 1.0], ()) for ticket in range(20)} == {1}
    assert chosen.pick(5, [1.0, 9.0, 1.0], (1,)) == -1


@pytest.mark.parametrize("balance", ALL)
def test_weight_zero_is_never_chosen(balance: Balance) -> None:
    assert 1 not in draw(policy(balance, [1, 0, 1]), 200, [9.0, 0.0, 9.0], random_bits(1))


@pytest.mark.parametrize("balance", ALL)
def test_longer_and_longer_exclusion_goes_through_all_and_then_to_the_backups(balance: Balance) -> None:
    specification = pool(balance, [1, 5, 2, 1, 3], backups=[0, 3])
    chosen = build(specification, range(5))
    tickets = random_bits(2)
    for _ in range(50):
        ticket = tickets(0)
        excluded: list[int] = []
        while (index := chosen.pick(ticket, [1.0] * 5, excluded)) >= 0:
            assert index not in excluded
            excluded.append(index)
        assert set(excluded[:3]) == {1, 2, 4}
        assert set(excluded[3:]) == {0, 3}


@pytest.mark.parametrize("balance", ALL)
def test_backups_serve_only_while_no_primary_is_usable(balance: Balance) -> None:
    specification = pool(balance, [1, 1, 1], backups=[1, 2])
    assert set(draw(build(specification, [0, 1, 2]), 100, [99.0, 1, 1], random_bits(3))) == {0}
    assert set(draw(build(specification, [1, 2]), 100, [99.0, 1, 1], random_bits(3))) == {1, 2}


@given(
    balance=st.sampled_from(ALL),
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    data=st.data(),
)
def test_only_what_may_be_chosen_is_chosen(balance: Balance, weights: list[int], data: st.DataObject) -> None:
    indexes = st.sets(st.sampled_from(range(len(weights))))
    usable, excluded, backups = (data.draw(indexes) for _ in range(3))
    scores = data.draw(st.lists(st.floats(0.001, 100), min_size=len(weights), max_size=len(weights)))
    chosen = build(pool(balance, weights, sorted(backups)), sorted(usable))
    index = chosen.pick(data.draw(st.integers(0, 2**62)), scores, excluded)
    allowed = {at for at in usable - excluded if weights[at]}
    assert index in (allowed - backups or allowed or {-1})


# --- round-robin ---------------------------------------------------------------------------------------


def test_round_robin_takes_turns() -> None:
    chosen = policy("round-robin", [1, 1, 1])
    assert [chosen.pick(turn, (), ()) for turn in range(6)] == [0, 1, 2, 0, 1, 2]


def test_round_robin_is_smooth() -> None:
    chosen = policy("round-robin", [5, 1, 1])
    turns = [chosen.pick(turn, (), ()) for turn in range(14)]
    assert Counter(turns) == {0: 10, 1: 2, 2: 2}
    assert all({1, 2} & set(turns[at : at + 4]) for at in range(10)), turns


def test_round_robin_reduces_weights() -> None:
    chosen = policy("round-robin", [300, 100])
    assert Counter(chosen.pick(turn, (), ()) for turn in range(4)) == {0: 3, 1: 1}


def test_round_robin_with_huge_weights_stays_small_and_nearly_exact() -> None:
    weights = [1_000_003, 999_983, 1]
    counts = draw(policy("round-robin", weights), 20_000, (), lambda turn: turn)
    assert abs(counts[0] - counts[1]) < 40
    assert 0 < counts[2] < 20


def test_round_robin_hands_an_excluded_turn_to_the_next() -> None:
    chosen = policy("round-robin", [1, 1, 1])
    assert [chosen.pick(turn, (), (1,)) for turn in range(3)] == [0, 2, 2]


# --- random, p2c, least-conn ----------------------------------------------------------------------------


def assert_distribution(counts: Counter[int], weights: Sequence[int]) -> None:
    """Pearson's chi-square: at most four standard deviations above its mean."""
    drawn, total = sum(counts.values()), sum(weights)
    expected = [drawn * weight / total for weight in weights]
    chi_square = sum((counts[at] - want) ** 2 / want for at, want in enumerate(expected))
    freedom = len(weights) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5, (counts, expected)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [5, 1, 1], [10, 20, 70, 3]])
def test_random_follows_the_weights(weights: list[int]) -> None:
    assert_distribution(draw(policy("random", weights), 20_000, (), random_bits(4)), weights)


def test_random_with_an_excluded_server_keeps_the_proportions_of_the_others() -> None:
    chosen, bits = policy("random", [2, 5, 1]), random_bits(5)
    counts = Counter(chosen.pick(bits(0), (), (1,)) for _ in range(9000))
    assert_distribution(Counter({0: counts[0], 1: counts[2]}), [2, 1])


def test_two_choices_are_different_servers_and_the_less_loaded_one_wins() -> None:
    counts = draw(policy("p2c", [1, 1, 1]), 9000, [1.0, 2.0, 3.0], random_bits(6))
    # The most loaded one loses every pair; the least loaded one wins both of its three pairs.
    assert counts[2] == 0
    assert_distribution(counts, [2, 1])


@pytest.mark.parametrize("weights", [[1, 9], [9, 1]])
def test_two_choices_between_two_is_the_less_loaded_one(weights: list[int]) -> None:
    assert set(draw(policy("p2c", weights), 500, [1.0, 1.1], random_bits(7))) == {0}
    assert set(draw(policy("p2c", weights), 500, [1.1, 1.0], random_bits(7))) == {1}


def test_two_choices_follow_the_weights_where_loads_are_equal() -> None:
    weights = [1, 1, 2, 4]
    assert_distribution(draw(policy("p2c", weights), 20_000, [1.0] * 4, random_bits(8)), weights)


def test_two_choices_even_out_loads() -> None:
    chosen, bits, active = policy("p2c", [1] * 50), random_bits(9), [0] * 50
    for _ in range(5000):
        active[chosen.pick(bits(0), [float(count + 1) for count in active], ())] += 1
    assert max(active) - min(active) < 12


def test_least_conn_takes_the_lowest_score() -> None:
    chosen = policy("least-conn", [1] * 4)
    assert {chosen.pick(ticket, [3.0, 2.0, 0.5, 2.0], ()) for ticket in range(8)} == {2}
    assert {chosen.pick(ticket, [3.0, 2.0, 0.5, 2.0], (2,)) for ticket in range(8)} == {1, 3}


def test_least_conn_looks_at_usable_servers_alone() -> None:
    chosen = policy("least-conn", [1] * 4, usable=[1, 3])
    assert {chosen.pick(ticket, [0.1, 3.0, 0.1, 2.0], ()) for ticket in range(8)} == {3}


def test_least_conn_breaks_ties_in_rotation() -> None:
    counts = draw(policy("least-conn", [1] * 4), 400, [1.0] * 4, lambda turn: turn)
    assert counts == {0: 100, 1: 100, 2: 100, 3: 100}
    assert set(draw(policy("least-conn", [1] * 4), 8, [1.0, 2.0, 1.0, 2.0], lambda turn: turn)) == {0, 2}


@pytest.mark.parametrize("count", [32, 33, 400])
def test_least_conn_fills_many_servers_evenly(count: int) -> None:
    chosen, bits, scores = policy("least-conn", [1] * count), random_bits(7), [1.0] * count
    for level in (2.0, 3.0):
        for ticket in range(count):
            scores[chosen.pick(bits(ticket), scores, ())] += 1
        assert set(scores) == {level}


def test_least_conn_of_many_finds_a_freed_server_a_few_picks_later() -> None:
    chosen, bits, scores = policy("least-conn", [1] * 100), random_bits(7), [2.0] * 100
    picked = {chosen.pick(bits(0), scores, ())}
    freed = 99 if 99 not in picked else 98
    scores[freed] = 1.0
    picks = [chosen.pick(bits(ticket), scores, ()) for ticket in range(20)]
    assert picks[-1] == freed
    loaded = next(index for index in range(100) if index not in (freed, picks[0]))
    scores[loaded] = 9.0
    scores[freed] = 2.0
    assert loaded not in {chosen.pick(bits(ticket), scores, ()) for ticket in range(200)}


def test_least_conn_fills_by_weight() -> None:
    weights = [1, 2, 5]
    chosen, active = policy("least-conn", weights), [0] * 3
    for ticket in range(800):
        scores = [(count + 1) / weight for count, weight in zip(active, weights, strict=True)]
        active[chosen.pick(ticket, scores, ())] += 1
    assert active == pytest.approx([100, 200, 500], abs=1)


# --- hash and the ring ----------------------------------------------------------------------------------

KEYS = [f"203.0.{high}.{low}".encode() for high in range(40) for low in range(250)]


def test_hash_key_is_stable() -> None:
    assert (hash_key(b""), hash_key(b"203.0.113.7")) == (0, 3_542_497_657)


@pytest.mark.parametrize(
    "keys",
    [
        KEYS,
        [str(number).encode() for number in range(10_000)],
        [b"/static/%04d.js" % number for number in range(10_000)],
        [bytes([a, b]) * 8 for a in range(100) for b in range(100)],
    ],
    ids=["addresses", "numbers", "paths", "repeats"],
)
def test_hash_key_spreads_patterned_keys(keys: list[bytes]) -> None:
    hashes = [hash_key(key) for key in keys]
    assert len(set(hashes)) > len(keys) - 3
    assert_distribution(Counter(value >> 26 for value in hashes), [1] * 64)
    assert_distribution(Counter(value & 63 for value in hashes), [1] * 64)
    assert_distribution(Counter(value % 61 for value in hashes), [1] * 61)


@pytest.mark.parametrize("count", [3, 10, 100])
def test_hash_shares_are_near_the_weights(count: int) -> None:
    weights = [1 + at % 2 for at in range(count)]
    counts = draw(policy("hash", weights), len(KEYS), idle(weights), lambda turn: hash_key(KEYS[turn]))
    for at, weight in enumerate(weights):
        assert counts[at] == pytest.approx(len(KEYS) * weight / sum(weights), rel=0.45)


@pytest.mark.parametrize("count", [3, 10, 100])
@pytest.mark.parametrize("how", ["down", "removed"])
def test_only_the_keys_of_a_server_that_leaves_move(count: int, how: str) -> None:
    full = pool("hash", [1] * count)
    before = build(full, range(count))
    gone = count // 2
    if how == "down":
        after = build(full, [at for at in range(count) if at != gone])
    else:
        rest = tuple(server for server in full.servers if server.slot != gone)
        after = build(PoolSpec(name="p", servers=rest, balance="hash"), range(count - 1))
    moved = 0
    for key in map(hash_key, KEYS):
        old, new = before.pick(key, [1.0] * count, ()), after.pick(key, [1.0] * count, ())
        name = new if how == "down" or new < gone else new + 1
        moved += old != name
        assert old in (name, gone)
    assert 0 < moved < 1.4 * len(KEYS) / count


def test_the_keys_of_a_server_that_leaves_spread_over_all_others() -> None:
    before, after = policy("hash", [1] * 5), policy("hash", [1] * 5, usable=[0, 1, 3, 4])
    heirs = Counter(
        after.pick(key, [1.0] * 5, ()) for key in map(hash_key, KEYS) if before.pick(key, [1.0] * 5, ()) == 2
    )
    assert len(heirs) == 4
    assert min(heirs.values()) > sum(heirs.values()) / 10


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 5]])
def test_hash_bounds_the_load_of_one_hot_key(weights: list[int]) -> None:
    chosen, active, hot = policy("hash", weights), [0] * len(weights), hash_key(b"hot")
    for placed in range(1, 1001):
        scores = [(count + 1) / weight for count, weight in zip(active, weights, strict=True)]
        active[chosen.pick(hot, scores, ())] += 1
        for count, weight in zip(active, weights, strict=True):
            assert count <= max(FLOOR, 1.25 * placed * weight / sum(weights) + 1)


def test_hash_keeps_a_key_where_it_is_while_loads_are_even() -> None:
    chosen = policy("hash", [1] * 10)
    for key in map(hash_key, KEYS[:500]):
        assert chosen.pick(key, [21.0] * 10, ()) == chosen.pick(key, [1.0] * 10, ())


def test_sticky_ring_does_not_look_at_loads_and_knows_backups() -> None:
    specification = pool("least-conn", [1, 1, 1, 1], backups=[3])
    ring = StickyRing(specification, range(4))
    key = hash_key(b"session-1")
    first = ring.pick(key)
    assert first == ring.pick(key) != 3
    second = ring.pick(key, (first,))
    assert StickyRing(specification, [at for at in range(4) if at != first]).pick(key) == second
    assert ring.pick(key, (0, 1, 2)) == 3
    assert ring.pick(key, (0, 1, 2, 3)) == -1
    assert StickyRing(specification, []).pick(key) == -1


def test_the_ring_is_closed() -> None:
    for count in range(2, 30):
        ring = StickyRing(pool("hash", [1] * count), range(count))
        assert ring.pick(2**32 - 1) == ring.pick(0)


def test_the_ring_of_a_thousand_servers_is_bounded() -> None:
    chosen = policy("hash", [100] * 1000)
    counts = draw(chosen, len(KEYS), [0.01] * 1000, lambda turn: hash_key(KEYS[turn]))
    assert len(counts) > 950
