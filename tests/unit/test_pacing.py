"""When which tunnel is asked to leave: evenly, once, and not at all when it is called off."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from workers.core.pacing import Timetable, times, window

SECONDS = st.floats(0, 1000)


@given(st.integers(0, 300), SECONDS, st.floats(0.001, 1000), st.randoms(use_true_random=False))
def test_one_in_each_part_of_the_time(count: int, start: float, spread: float, source: random.Random) -> None:
    found = times(count, start, spread, source.random)
    assert len(found) == count
    step = spread / count if count else 0.0
    for index, time in enumerate(sorted(found)):
        assert start + index * step - 1e-6 <= time <= start + (index + 1) * step + 1e-6


def test_they_are_in_no_order() -> None:
    found = times(1000, 0.0, 30.0, random.Random(1).random)
    assert found != sorted(found)
    assert sum(after > before for before, after in itertools.pairwise(found)) < 600


def test_without_a_spread_all_are_due_at_once() -> None:
    assert times(3, 7.0, 0.0, random.Random(1).random) == [7.0] * 3
    assert times(0, 7.0, 30.0, random.Random(1).random) == []


@given(st.floats(0.01, 10_000), st.floats(0, 10_000), st.floats(0.01, 60), st.booleans())
def test_a_window_leaves_time_to_answer(grace: float, spread: float, patience: float, late: bool) -> None:
    wait, cut = window(grace, spread, patience, late=late)
    assert 0 <= cut <= spread
    assert wait >= 0
    assert wait + cut <= grace - min(patience, grace / 3) + 1e-6
    if late:
        assert wait >= grace / 2
    else:
        assert wait == 0


def test_a_long_grace_leaves_the_spread_as_it_is() -> None:
    assert window(600.0, 30.0, 5.0, late=False) == (0.0, 30.0)
    assert window(600.0, 30.0, 5.0, late=True) == (564.0, 30.0)
    assert window(30.0, 30.0, 5.0, late=False) == (0.0, 24.0)


class Planned(RuleBasedStateMachine):
    """A timetable beside a plain list of what was planned."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Timetable[str] = Timetable()
        self.known: dict[tuple[int, str], float] = {}
        self.now = 0.0

    @rule(keys=st.lists(st.integers(0, 20), unique=True), cause=st.sampled_from("abc"), data=st.data())
    def plan(self, keys: list[int], cause: str, data: st.DataObject) -> None:
        at = [self.now + data.draw(st.floats(-5, 50)) for _ in keys]
        self.table.plan(keys, cause, at)
        for key, time in zip(keys, at, strict=True):
            self.known[key, cause] = min(time, self.known.get((key, cause), time))

    @rule(step=st.floats(0, 20))
    def pass_time(self, step: float) -> None:
        self.now += step
        former = float("-inf")
        while (due := self.table.next_due(self.now)) is not None:
            time = self.known[due]
            assert former <= time <= self.now
            former = time
            self._drop(due[0])
        assert all(time > self.now for time in self.known.values())

    @rule(keys=st.lists(st.integers(0, 20)))
    def forget(self, keys: list[int]) -> None:
        self.table.forget(keys)
        for key in keys:
            self._drop(key)

    @rule(cause=st.sampled_from("abc"))
    def call_off(self, cause: str) -> None:
        self.table.call_off(cause)
        self.known = {which: time for which, time in self.known.items() if which[1] != cause}

    def _drop(self, key: int) -> None:
        self.known = {which: time for which, time in self.known.items() if which[0] != key}

    @invariant()
    def the_same_keys(self) -> None:
        keys = {key for key, _ in self.known}
        assert set(self.table) == keys
        assert len(self.table) == len(keys)
        assert self.table.without(range(10)) == [key for key in self.table if key >= 10]


TestPlanned = Planned.TestCase
TestPlanned.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_is_called_off_is_not_kept() -> None:
    """Tunnels that come and go while far plans wait must not fill the memory."""
    table: Timetable[str] = Timetable()
    for key in range(10_000):
        table.plan([key], "far", [1e6])
        table.forget([key])
    assert len(table._heap) <= 100
    assert not table
    assert table.next_due(2e6) is None


def test_a_key_is_due_once_for_all_its_causes() -> None:
    table: Timetable[str] = Timetable()
    table.plan([1, 2], "order", [5.0, 6.0])
    table.plan([1, 2], "drain", [9.0, 3.0])
    found = Counter()  # type: Counter[tuple[int, str]]
    while (due := table.next_due(10.0)) is not None:
        found[due] += 1
    assert found == {(2, "drain"): 1, (1, "order"): 1}


def test_many_at_once_are_due_in_order() -> None:
    table: Timetable[str] = Timetable()
    at = times(500, 0.0, 10.0, random.Random(3).random)
    table.plan(range(500), "drain", at)
    table.plan([7], "order", [-1.0])
    found = []
    while (due := table.next_due(10.0)) is not None:
        found.append(due[0])
    assert found == [7, *(key for key in sorted(range(500), key=lambda key: at[key]) if key != 7)]
