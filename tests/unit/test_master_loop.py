"""The master's loop: timers in order, descriptors that come and go, bugs that don't end it."""

from __future__ import annotations

import os

import pytest

from lb.master.loop import READ, Loop


def fail(error: Exception) -> None:
    raise error


def test_timers_fire_in_order_and_only_once() -> None:
    loop = Loop(fail)
    fired: list[str] = []
    loop.later(0.02, lambda: fired.append("late"))
    loop.later(0.0, lambda: fired.append("first"))
    loop.later(0.01, lambda: fired.append("cancelled")).cancel()
    loop.later(0.03, loop.stop)
    loop.run()
    loop.close()
    assert fired == ["first", "late"]


def test_a_descriptor_that_an_earlier_callback_forgot_is_not_called() -> None:
    loop = Loop(fail)
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def ready(index: int) -> None:
        called.append(index)
        for reader, _ in pipes:
            loop.forget(reader)
        loop.stop()

    for index, (reader, writer) in enumerate(pipes):
        loop.watch(reader, READ, lambda _events, index=index: ready(index))  # type: ignore[misc]
        os.write(writer, b"x")
    loop.run()
    loop.close()
    for reader, writer in pipes:
        os.close(reader)
        os.close(writer)
    assert len(called) == 1


def test_a_bug_in_a_callback_is_reported_and_the_loop_goes_on() -> None:
    bugs: list[Exception] = []
    loop = Loop(bugs.append)
    loop.later(0.0, lambda: fail(ZeroDivisionError()))
    loop.later(0.01, loop.stop)
    loop.run()
    loop.close()
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]


def test_a_bug_that_comes_for_ever_ends_it() -> None:
    loop = Loop(lambda _error: None)

    def again() -> None:
        loop.later(0.0, again)
        raise ZeroDivisionError

    loop.later(0.0, again)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    loop.close()
