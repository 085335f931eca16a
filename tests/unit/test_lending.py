"""Shares of max_connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb.master.lending import fair_shares, limits_of
from workers.contract.snapshot import PoolSpec, ServerSpec, Snapshot

demands = st.lists(st.integers(0, 1000), min_size=1, max_size=64)


@given(st.integers(0, 5000), demands)
def test_shares_add_up_to_the_limit(limit: int, wanted: list[int]) -> None:
    shares = fair_shares(limit, wanted)
    assert sum(shares) == limit
    assert min(shares) >= 0


@given(st.integers(0, 5000), demands)
def test_nobody_starves_while_another_has_more(limit: int, wanted: list[int]) -> None:
    """Max-min fair: who gets less than it asks for gets no less, but for one, than any other."""
    shares = fair_shares(limit, wanted)
    short = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    if short:
        assert min(short) >= max(shares) - 1


@given(demands)
def test_all_get_what_they_ask_for_where_there_is_enough(wanted: list[int]) -> None:
    shares = fair_shares(sum(wanted) + 7, wanted)
    assert all(share >= want for share, want in zip(shares, wanted, strict=True))


def test_what_nobody_asks_for_is_spread() -> None:
    assert sorted(fair_shares(10, [0, 0, 0, 0])) == [2, 2, 3, 3]
    assert fair_shares(3, [0, 0, 0, 4]) == [0, 0, 0, 3]


def test_only_servers_with_a_limit_are_looked_at() -> None:
    servers = (
        ServerSpec(slot=4, name="a", host="127.0.0.1", port=1, max_connections=7),
        ServerSpec(slot=5, name="b", host="127.0.0.1", port=2),
    )
    assert limits_of(Snapshot(generation=1, pools=(PoolSpec(name="p", servers=servers),))) == {4: 7}
