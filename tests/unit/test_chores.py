"""Long work in the turns of the event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from workers.io.chores import SLICE, Chores, Steps
from workers.io.reactor import Reactor


class Stage:
    """A reactor with chores, and what happened in it."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.reactor = Reactor(lambda error, _callback: self.failures.append(str(error)))
        self.chores = Chores(self.reactor)
        self.happened: list[str] = []

    def chore(self, name: str, steps: int, seconds: float = 0.0) -> Steps:
        try:
            for step in range(steps):
                time.sleep(seconds)
                self.happened.append(f"{name}{step}")
                yield
        except GeneratorExit:
            self.happened.append(f"{name} is told")
            raise

    def run(self) -> None:
        """Until nothing is left to do."""

        def look() -> None:
            if self.chores.busy:
                self.happened.append("turn")
                self.reactor.call_soon(look)
            else:
                self.reactor.stop()

        self.reactor.call_soon(look)
        self.reactor.run()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.reactor.close()


def test_short_chores_are_done_in_one_turn_and_in_order(stage: Stage) -> None:
    stage.chores.begin(stage.chore("a", 2))
    stage.chores.begin(stage.chore("b", 1))
    assert stage.happened == []
    stage.run()
    assert [what for what in stage.happened if what != "turn"] == ["a0", "a1", "b0"]
    assert not stage.chores.busy


def test_others_have_their_turn_between_the_steps_of_a_long_one(stage: Stage) -> None:
    stage.chores.begin(stage.chore("a", 4, SLICE))
    stage.run()
    assert [what for what in stage.happened if what != "turn"] == ["a0", "a1", "a2", "a3"]
    assert stage.happened.count("turn") >= 4
    assert "turn" in stage.happened[stage.happened.index("a0") : stage.happened.index("a1")]


def test_what_is_urgent_comes_between_two_steps(stage: Stage) -> None:
    stage.chores.begin(stage.chore("a", 3, SLICE))
    stage.reactor.call_soon(lambda: stage.chores.begin(stage.chore("b", 1), first=True))
    stage.run()
    assert [what for what in stage.happened if what != "turn"] == ["a0", "b0", "a1", "a2"]


def test_what_is_cancelled_is_told_so_and_the_next_goes_on(stage: Stage) -> None:
    doomed = stage.chore("a", 3, SLICE)
    stage.chores.begin(doomed)
    stage.chores.begin(stage.chore("b", 1))
    stage.reactor.call_soon(lambda: stage.chores.cancel(doomed))
    stage.run()
    assert [what for what in stage.happened if what != "turn"] == ["a0", "a is told", "b0"]
    stage.chores.cancel(doomed)


def test_one_that_fails_does_not_hold_up_the_next(stage: Stage) -> None:
    def fails() -> Steps:
        yield
        raise RuntimeError("a bug")

    stage.chores.begin(fails())
    stage.chores.begin(stage.chore("b", 1))
    stage.run()
    assert stage.failures == ["a bug"]
    assert "b0" in stage.happened
