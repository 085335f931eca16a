"""One source: when it asks, what it keeps, what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from lb.control.discovery import source as module
from lb.control.discovery.source import Answer, Failed, Source, back_off, clamp
from tests.harness.control import StandInControl

Ask = Callable[[], Coroutine[Any, Any, Answer[str]]]


def test_ttls_are_clamped() -> None:
    assert [clamp(ttl) for ttl in (0, 1, 30, 3600, 604800)] == [1.0, 1.0, 30.0, 3600.0, 3600.0]


def test_back_off_grows_to_half_a_minute() -> None:
    assert [back_off(failures) for failures in (1, 2, 3, 4, 5, 6, 7, 1000)] == [1, 2, 4, 8, 16, 30, 30, 30]


class Bench:
    """A source that asks what the test says: a text is an answer, an exception is raised, and `None` never
    ends. After the last, nothing is answered any more."""

    def __init__(self, control: StandInControl, looks_every: float | None = None) -> None:
        self.control = control
        self.script: list[str | Exception | None] = []
        self.asked = 0
        self.at_once = 0  # questions that were not answered yet
        self.most_at_once = 0
        self.changes = 0
        self.release = asyncio.Event()
        self.source: Source[str] = Source(
            "host a", self._ask, self._changed, control.log, control.events, looks_every=looks_every
        )

    def _changed(self) -> None:
        self.changes += 1

    async def _ask(self) -> Answer[str]:
        step = self.script[self.asked] if self.asked < len(self.script) else None
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if step is None:
                await self.release.wait()
                step = "late"
            if isinstance(step, Exception):
                raise step
            return Answer(step, 0.0)
        finally:
            self.at_once -= 1

    async def until(self, condition: Callable[[], bool], *script: str | Exception | None) -> None:
        self.script = [*script]
        task = asyncio.ensure_future(self.source.run())
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        await asyncio.sleep(0)
        assert self.at_once == 0  # nothing is left behind


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInControl]:
    monkeypatch.setattr(module, "LONGEST_BACK_OFF", 0.0)
    with StandInControl() as made:
        yield made


def test_equal_answers_are_no_change(control: StandInControl) -> None:
    async def main() -> None:
        bench = Bench(control)
        await bench.until(lambda: bench.asked == 5, "x", "x", "y", "y")
        assert (bench.source.value, bench.changes, bench.source.answers) == ("y", 2, 4)

    asyncio.run(main())


def test_a_failure_keeps_the_answer_and_is_told_once(control: StandInControl) -> None:
    async def main() -> None:
        bench = Bench(control)
        refused, broken = Failed("refused"), Failed("broken")
        await bench.until(lambda: bench.asked == 6, "x", refused, refused, broken, refused)
        assert bench.source.value == "x"
        assert bench.source.problem == "refused"
        assert bench.source.failures == 4

    asyncio.run(main())
    assert control.kinds() == ["discovery-failed"]
    assert control.last_event("discovery-failed").fields == {"source": "host a", "reason": "refused"}
    assert control.log_text().count("reason=broken") == 1


def test_the_end_of_an_outage_is_logged_and_the_next_one_is_told(control: StandInControl) -> None:
    async def main() -> None:
        bench = Bench(control)
        await bench.until(lambda: bench.asked == 5, Failed("refused"), "x", Failed("refused"), "x")
        assert (bench.source.value, bench.source.problem, bench.changes) == ("x", "", 4)

    asyncio.run(main())
    assert control.kinds() == ["discovery-failed", "discovered"] * 2
    assert control.last_event("discovered").fields == {"source": "host a"}
    assert control.log_text().count('event="discovery works again" source="host a"') == 2


def test_each_thing_that_is_wrong_in_a_file_is_told(control: StandInControl) -> None:
    async def main() -> None:
        bench = Bench(control, looks_every=0.0)
        await bench.until(lambda: bench.asked == 4, Failed("one"), Failed("one"), Failed("two"))

    asyncio.run(main())
    assert [event.fields["reason"] for event in control.events.after(0)] == ["one", "two"]


def test_a_question_without_an_answer_is_waited_for_and_not_asked_twice(
    control: StandInControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.02)

    async def main() -> None:
        bench = Bench(control)

        def late() -> bool:
            if bench.source.failures >= 3 and not bench.release.is_set():
                assert bench.asked == 1
                bench.release.set()
            return bench.source.value == "late"

        await bench.until(late, None)
        assert bench.most_at_once == 1

    asyncio.run(main())
    assert control.last_event("discovery-failed").text == "host a: no answer within 0.02 s"


def test_no_fault_is_the_end(control: StandInControl) -> None:
    async def main() -> None:
        bench = Bench(control)
        problems: list[str] = []

        def over() -> bool:
            problems.append(bench.source.problem)
            return bench.source.value == "y"

        await bench.until(over, "x", UnicodeDecodeError("idna", b"", 0, 1, "r"), MemoryError("s"), "y")
        assert bench.source.problem == ""

    asyncio.run(main())
    assert control.kinds() == ["discovery-failed", "discovered"]
    assert control.last_event("discovery-failed").text == "host a: fault in lb: UnicodeDecodeError"
    assert control.log_text().count("fault in discovery, please report it") == 2


def test_what_comes_and_goes_leaves_room_for_other_events(control: StandInControl) -> None:
    async def main() -> None:
        bench = Bench(control)
        script: list[str | Exception | None] = [Failed("refused"), "x"]
        await bench.until(lambda: bench.asked == 101, *script * 50)

    asyncio.run(main())
    assert control.kinds() == ["discovery-failed", "discovered"] * 5


def test_what_is_left_out_is_told_once(control: StandInControl) -> None:
    async def main() -> None:
        asked = 0

        async def ask() -> Answer[str]:
            nonlocal asked
            asked += 1
            return Answer("x", 0.001, "too many" if asked < 4 else "")

        source = Source("host a", ask, lambda: None, control.log, control.events)
        task = asyncio.ensure_future(source.run())
        async with asyncio.timeout(10):
            while not source.warning:
                await asyncio.sleep(0)
            while source.warning:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(main())
    assert control.log_text().count('source="host a" warning="too many"') == 1
