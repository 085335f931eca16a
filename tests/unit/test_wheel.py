"""The timeout wheel: nothing early, nothing more than two ticks late, everything once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.core.wheel import ALL, NEVER, TICK, Timed, Wheel

pytestmark = pytest.mark.interpreted  # no class can be made of a compiled one


class Item(Timed):
    """Something with a deadline that notes when it was called."""

    def __init__(self, on_call: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.calls = 0
        self.on_call = on_call

    def on_deadline(self) -> None:
        self.calls += 1
        self.on_call()


def slots(wheel: Wheel) -> int:
    return len(wheel._buckets)


# --- against a model ------------------------------------------------------------------------------------

delays = st.one_of(
    st.sampled_from([0.0, TICK, 2 * TICK, 0.3, 0.7, 75.0, 86400.0 * 7]),
    st.floats(-1, 3, allow_nan=False),
)


class Model(RuleBasedStateMachine):
    """A dictionary of deadlines says what the wheel must do. Time goes on in ticks, or stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: dict[Item, float] = {}
        self.since: dict[Item, float] = {}  # when the deadline was set
        self.items: list[Item] = []

    @initialize(start=st.sampled_from([0.0, 0.05, 12345.678, 4e6]), phase=st.floats(0, TICK))
    def start(self, start: float, phase: float) -> None:
        self.now = start + phase
        self.wheel = Wheel(self.now)
        self.items = [Item() for _ in range(5)]
        for number, item in enumerate(self.items):
            item.on_call = lambda number=number: self.called(number)  # type: ignore[misc]
        self.reaction: list[tuple[str, int, float]] = []

    def called(self, number: int) -> None:
        item = self.items[number]
        assert self.deadlines.pop(item) <= self.now
        assert item.due == NEVER
        if self.reaction:
            what, other, delay = self.reaction.pop()
            self.drop(other) if what == "drop" else self.arm(other, delay)

    @rule(number=st.integers(0, 4), delay=delays)
    def arm(self, number: int, delay: float) -> None:
        item = self.items[number]
        self.deadlines[item] = self.now + delay
        self.since[item] = self.now
        self.wheel.arm(item, self.now + delay)

    @rule(number=st.integers(0, 4), delay=delays)
    def arm_as_the_hot_path_does(self, number: int, delay: float) -> None:
        item = self.items[number]
        self.deadlines[item] = item.deadline = self.now + delay
        self.since[item] = self.now
        if item.deadline < item.due:
            self.wheel.move(item)

    @rule(number=st.integers(0, 4))
    def drop(self, number: int) -> None:
        self.deadlines.pop(self.items[number], None)
        self.wheel.drop(self.items[number])

    @rule(number=st.integers(0, 4), other_infinity=st.booleans())
    def forget_the_deadline(self, number: int, other_infinity: bool) -> None:
        self.deadlines.pop(self.items[number], None)
        self.items[number].deadline = float("inf") if other_infinity else NEVER

    @rule(what=st.sampled_from(["drop", "arm"]), other=st.integers(0, 4), delay=delays)
    def next_call_touches(self, what: str, other: int, delay: float) -> None:
        self.reaction.append((what, other, delay))

    @rule(ticks=st.integers(1, 12), most=st.sampled_from([1, 2, ALL]))
    def run(self, ticks: int, most: int) -> None:
        for _ in range(ticks):
            self.now += TICK
            while self.wheel.advance(self.now, most):
                pass
            self.check_lateness()

    @rule(pause=st.sampled_from([0.0, 0.01, 1.0, 60.0, 86400.0 * 8]))
    def stand_still(self, pause: float) -> None:
        self.now += pause
        self.wheel.advance(self.now)
        waiting = {item: max(deadline, self.now) for item, deadline in self.deadlines.items()}
        self.since.update(waiting)

    def check_lateness(self) -> None:
        for item, deadline in self.deadlines.items():
            assert self.now <= max(deadline, self.since[item]) + 2 * TICK + 1e-6

    @invariant()
    @precondition(lambda self: bool(self.items))
    def every_item_with_a_deadline_is_in_a_bucket(self) -> None:
        assert set(self.deadlines) <= {item for item in self.items if item.due != NEVER}
        assert len(self.wheel) == sum(item.due != NEVER for item in self.items)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# --- one by one -----------------------------------------------------------------------------------------


def advance_until(wheel: Wheel, now: float, item: Item, calls: int = 1) -> float:
    while item.calls < calls:
        now += TICK
        wheel.advance(now)
        assert now < 1e7
    return now


@given(st.floats(0, 1e6), st.floats(0, 20))
def test_an_item_is_called_once_at_or_after_its_deadline(start: float, delay: float) -> None:
    wheel, item = Wheel(start), Item()
    wheel.arm(item, start + delay)
    fired = advance_until(wheel, start, item)
    assert start + delay <= fired <= start + delay + 2 * TICK + 1e-6
    for _ in range(5):
        fired += TICK
        wheel.advance(fired)
    assert (item.calls, len(wheel), slots(wheel)) == (1, 0, 0)


def test_putting_off_is_an_attribute_write_and_moves_lazily() -> None:
    wheel, item = Wheel(0), Item()
    wheel.arm(item, 1.0)
    due = item.due
    wheel.arm(item, 5.0)
    assert (item.due, len(wheel), slots(wheel)) == (due, 1, 1)
    assert advance_until(wheel, 0, item) == pytest.approx(5.0, abs=2 * TICK)


def test_bringing_forward_moves_at_once() -> None:
    wheel, item = Wheel(0), Item()
    wheel.arm(item, 50.0)
    wheel.arm(item, 1.0)
    assert item.due == pytest.approx(1.1)
    assert (len(wheel), slots(wheel)) == (1, 1)
    assert advance_until(wheel, 0, item) == pytest.approx(1.0, abs=2 * TICK)


def test_a_deadline_in_the_past_is_called_at_the_next_turn() -> None:
    wheel, item = Wheel(100), Item()
    wheel.advance(100)
    wheel.arm(item, 3.0)
    wheel.advance(100 + 1.5 * TICK)
    assert item.calls == 1


def test_an_item_that_is_due_again_at_once_is_called_once_a_turn() -> None:
    wheel, now = Wheel(0), 0.0
    item = Item(lambda: wheel.arm(item, 0.0))
    wheel.arm(item, 0.0)
    for turn in range(1, 6):
        now += 1.5 * TICK
        wheel.advance(now)
        assert item.calls == turn
    wheel.advance(now)
    assert item.calls == 5


def test_dropped_items_are_not_called_and_leave_nothing() -> None:
    wheel, item = Wheel(0), Item()
    wheel.drop(item)
    wheel.arm(item, 1.0)
    wheel.drop(item)
    wheel.drop(item)
    wheel.advance(10.0)
    assert (item.calls, item.due, len(wheel), slots(wheel)) == (0, NEVER, 0, 0)
    wheel.arm(item, 11.0)
    advance_until(wheel, 10.0, item)


@pytest.mark.parametrize("pause", [TICK, 1.0, 1000.0, 1e6])
def test_whoever_is_called_first_may_drop_or_move_the_others(pause: float) -> None:
    wheel, items = Wheel(0), [Item() for _ in range(30)]

    def call() -> None:
        for place, item in enumerate(items):
            item.on_call = lambda: None
            if item.calls == 0 and place % 2:
                wheel.drop(item)
            elif item.calls == 0:
                wheel.arm(item, pause + 500.0)
                wheel.move(item)

    for place, item in enumerate(items):
        item.on_call = call
        wheel.arm(item, 0.05 + place % 3 * TICK)
    wheel.advance(0.05 + pause)
    assert sum(item.calls for item in items) == 1
    wheel.advance(pause + 501.0)
    assert sum(item.calls for item in items) in (15, 16)  # the first was one of those to drop, or not
    assert (len(wheel), slots(wheel)) == (0, 0)


def test_a_failing_handler_does_not_cost_the_others_their_timeouts() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    wheel, items = Wheel(0), [Item(fail if place == 7 else lambda: None) for place in range(40)]
    for place, item in enumerate(items):
        wheel.arm(item, place % 10 * TICK)
    with pytest.raises(ZeroDivisionError):
        wheel.advance(5.0)
    wheel.advance(5.0 + 1.5 * TICK)
    assert [item.calls for item in items] == [1] * 40
    assert (len(wheel), slots(wheel)) == (0, 0)


def test_a_long_stand_still_costs_what_is_there_not_what_passed() -> None:
    wheel, item = Wheel(0), Item()
    wheel.arm(item, 1e9)
    wheel.advance(1e9 + 1)  # ten thousand million buckets
    assert item.calls == 1


@pytest.mark.parametrize("others", [0, 100_000])
def test_what_is_due_in_the_very_bucket_of_now_is_called(others: int) -> None:
    wheel, item = Wheel(0), Item()
    for place in range(others):
        wheel.arm(Item(), 5000.0 + place * TICK)
    wheel.arm(item, 1000.03)
    wheel.advance(1000.15)
    assert item.calls == 1


def test_thousands_are_called_a_few_at_a_time() -> None:
    wheel, items = Wheel(0), [Item() for _ in range(100)]
    for place, item in enumerate(items):
        wheel.arm(item, 1.0 + place % 3 * TICK)
    calls = []
    while wheel.advance(5.0, 30):
        calls.append(sum(item.calls for item in items))
        wheel.arm(Item(), 4.0)  # also due, meanwhile
    assert calls == [30, 60, 90]
    assert [item.calls for item in items] == [1] * 100
    wheel.advance(5.0 + 2 * TICK)
    assert (len(wheel), slots(wheel)) == (0, 0)


def test_length() -> None:
    wheel, items = Wheel(0), [Item() for _ in range(100)]
    for item in items:
        wheel.arm(item, 1.0)
    assert (len(wheel), slots(wheel)) == (100, 1)
