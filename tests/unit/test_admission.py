"""Admission's arithmetic: the bucket, and shares that together never exceed the whole."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.core.admission import (
    MARGIN,
    MAX_RETRY_AFTER,
    Bucket,
    Share,
    burst_share,
    patience,
    retry_after,
)

# --- the bucket -----------------------------------------------------------------------------------------


def bucket(rate: float, burst: float) -> Bucket:
    """A full one, at time 0."""
    made = Bucket(0.0)
    made.fit(rate, burst, 0.0)
    made.fill_up()
    return made


def test_a_bucket_starts_empty_and_fills_at_its_rate() -> None:
    made = Bucket(100.0)
    made.fit(2.0, 3.0, 100.0)
    assert not made.take(100.0)
    assert made.wait() == 0.5
    assert not made.take(100.4)
    assert made.wait() == pytest.approx(0.1)
    assert made.take(100.5)
    assert [made.take(200.0) for _ in range(4)] == [True, True, True, False]


def test_a_smaller_bucket_loses_what_it_can_not_hold() -> None:
    made = bucket(1.0, 10.0)
    made.fit(1.0, 2.0, 0.0)
    made.fit(1.0, 10.0, 0.0)
    assert [made.take(0.0) for _ in range(3)] == [True, True, False]


def test_without_a_rate_there_is_nothing_to_wait_for() -> None:
    made = Bucket(0.0)
    assert not made.take(5.0)
    assert made.wait() == math.inf


def test_what_runs_dry_gives_what_it_has() -> None:
    made = bucket(1.0, 3.0)
    assert made.take(0.0)
    made.run_dry(0.5)
    assert [made.take(1000.0) for _ in range(3)] == [True, True, False]
    assert made.wait() == math.inf
    made.fit(1.0, 3.0, 1000.0)
    assert made.take(1001.0)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    made = bucket(1.0, 1.0)
    assert made.take(0.0)
    assert not made.take(-1.0)
    assert not made.take(0.5)


@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(1, 1000),
    steps=st.lists(st.floats(0, 0.5), max_size=200),
)
def test_a_bucket_never_gives_more_than_burst_and_rate(rate: float, burst: float, steps: list[float]) -> None:
    made = bucket(rate, burst)
    now = 0.0
    taken = 0
    for step in steps:
        now += step
        while made.take(now):
            taken += 1
        assert taken <= burst + rate * now + 1e-6
        # Whoever waits as long as it says gets one, and not before.
        if made.wait() > 1e-9:
            assert not made.take(now + made.wait() * 0.99)


# --- shares ---------------------------------------------------------------------------------------------


class Peers:
    """Workers that look at each other, each at its own time, as they do over the scoreboard."""

    def __init__(self, workers: int, rate: float, burst: int, places: int) -> None:
        self.rate, self.burst, self.places = rate, burst, places
        self.shares = [Share() for _ in range(workers)]
        self.buckets = [Bucket(0.0) for _ in range(workers)]
        self.waiting = [0] * workers
        self.published = [0] * workers
        self.admitted = 0
        self.left: set[int] = set()
        for number in range(workers):
            self.tick(number, 0.0)
            self.buckets[number].fill_up()

    def tick(self, number: int, now: float) -> None:
        self.published[number] = self.waiting[number]
        share = self.shares[number]
        others = [
            count
            for other, count in enumerate(self.published)
            if other != number and (count or other not in self.left)
        ]
        share.look(self.waiting[number], others)
        self.fit(number, now)

    def fit(self, number: int, now: float) -> None:
        part = self.shares[number].part
        if part:
            self.buckets[number].fit(self.rate * part, burst_share(self.burst, part), now)
        else:
            self.buckets[number].run_dry(now)

    def leave(self, number: int, now: float) -> None:
        self.left.add(number)
        self.shares[number].leave()
        self.fit(number, now)

    def come(self, number: int, count: int, now: float) -> None:
        for _ in range(count):
            if self.waiting[number] < self.shares[number].room(self.places):
                self.waiting[number] += 1
        self.serve(number, now)

    def serve(self, number: int, now: float) -> None:
        while self.waiting[number] and self.buckets[number].take(now):
            self.waiting[number] -= 1
            self.admitted += 1


@settings(max_examples=60)
@given(
    workers=st.integers(1, 8),
    rate=st.sampled_from([1.0, 50.0, 3000.0]),
    burst=st.sampled_from([1, 10, 500]),
    places=st.sampled_from([0, 1, 100, 5000]),
    arrivals=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2000)), max_size=60),
)
def test_all_workers_together_keep_the_rate_and_the_queue(
    workers: int, rate: float, burst: int, places: int, arrivals: list[tuple[int, int]]
) -> None:
    peers = Peers(workers, rate, burst, places)
    now = 0.0
    for where, count in arrivals:
        # Within one tick of 0.1 s every worker looks once, none at the time of another one.
        for number in range(workers):
            now += 0.1 / workers
            peers.tick(number, now)
            peers.come(where % workers, count // workers, now)
            peers.serve(number, now)
            assert peers.admitted <= burst + workers + rate * now + 1e-6
            assert sum(share.part for share in peers.shares) <= 1 + 1e-9
            # (One that grows as another one shrinks may be seen late: by a few in a hundred.)
            assert sum(peers.waiting) <= (places * 1.05 + workers if places else 0)


@settings(max_examples=60)
@given(
    workers=st.integers(2, 8),
    rate=st.sampled_from([50.0, 3000.0]),
    burst=st.sampled_from([10, 500]),
    arrivals=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2000)), max_size=40),
    leaves=st.integers(0, 40),
    leaving=st.integers(1, 7),
)
def test_those_that_leave_with_a_queue_have_their_part_of_the_rate(
    workers: int, rate: float, burst: int, arrivals: list[tuple[int, int]], leaves: int, leaving: int
) -> None:
    """All but one may leave, as in an upgrade; handshakes may still come to them."""
    peers = Peers(workers, rate, burst, 5000)
    now = 0.0
    for step, (where, count) in enumerate(arrivals):
        for number in range(workers):
            now += 0.1 / workers
            if step == leaves and 0 < number <= leaving:
                peers.leave(number, now)
            peers.tick(number, now)
            peers.come(where % workers, count // workers, now)
            peers.serve(number, now)
            # What those that left had saved may be used as well.
            assert peers.admitted <= 2 * burst + 2 * workers + rate * now + 1e-6
            assert sum(share.part for share in peers.shares) <= 1 + 1e-9


def test_one_that_leaves_has_a_part_as_long_as_some_wait() -> None:
    share = Share()
    share.look(3, [0])
    share.leave()  # the others don't know yet that three wait
    assert share.part == 0.0
    share.look(3, [0])
    assert share.part == 0.8
    share.look(1, [0])
    assert share.part == pytest.approx(2 / 3)
    share.look(0, [0])
    assert share.part == 0.0


def test_who_has_more_waiting_gets_more() -> None:
    busy, idle = Share(), Share()
    for _ in range(2):
        busy.look(98, [0])
        idle.look(0, [98])
    assert busy.part == pytest.approx(0.99)
    assert idle.part == pytest.approx(0.01)
    assert (busy.elsewhere, idle.elsewhere, idle.workers) == (0, 98, 2)


def test_demand_counts_from_its_second_look_on() -> None:
    share = Share()
    share.look(99, [0])
    assert share.part == 0.5
    share.look(99, [0])
    assert share.part == pytest.approx(100 / 101)
    share.look(0, [0])
    assert share.part == 0.5


def test_alone_it_has_all() -> None:
    share = Share()
    share.look(7, [])
    assert share.part == 1.0
    assert share.room(10) == 10


def test_free_places_are_divided() -> None:
    share = Share()
    share.look(10, [20, 30])
    assert share.room(110) == 20  # of which 10 are taken: the others have not seen them
    share.look(10, [20, 30])
    assert share.room(120) == 10 + 20
    assert share.room(61) == 10 + 1
    assert share.room(60) == 10
    assert share.room(5) == 10


def test_a_shorter_queue_is_divided_by_who_waits() -> None:
    share = Share()
    share.look(10, [30])
    assert share.keep(10, 40) == 10
    assert share.keep(10, 20) == 5
    assert share.keep(10, 1) == 1
    assert share.keep(10, 0) == 0
    assert share.keep(0, 0) == 0


def test_a_worker_can_always_hold_one_token() -> None:
    assert burst_share(1, 0.01) == 1.0
    assert burst_share(1000, 0.25) == 250.0


# --- what the client is told ----------------------------------------------------------------------------


def test_patience_outlasts_a_full_queue() -> None:
    assert patience(500.0, 5000) == 10.0 + MARGIN
    assert patience(1.0, 0) == MARGIN


@given(
    waiting=st.integers(0, 10**6),
    rate=st.floats(0.01, 10**6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_retry_after_is_bounded(waiting: int, rate: float, chance: float) -> None:
    seconds = retry_after(waiting, rate, chance)
    assert 1 <= seconds <= MAX_RETRY_AFTER * 1.5
    assert seconds >= min(MAX_RETRY_AFTER, waiting / rate)


def test_retry_after_is_when_the_queue_has_drained_and_not_the_same_for_all() -> None:
    assert [retry_after(5000, 500.0, chance) for chance in (0.0, 0.5, 0.99)] == [10, 12, 14]
    assert {retry_after(0, 500.0, chance / 10) for chance in range(10)} == {1, 2}
