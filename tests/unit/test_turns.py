"""What is told of the turns of the event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from workers.contract.errorlog import ErrorLog
from workers.io.reactor import Reactor
from workers.io.turns import PACE, TOLD, WINDOW, Turns

MS = 1_000_000


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor(lambda _error, _callback: None)
    yield made
    made.close()


def test_the_longest_turn_is_told_for_two_windows_at_most(reactor: Reactor) -> None:
    turns = Turns(reactor, ErrorLog("test"), 100.0)
    reactor.longest = 0.03
    assert turns.look(100.1, 0, False) == 0.03
    assert reactor.longest == 0.0
    reactor.longest = 0.01
    assert turns.look(100.2, 0, False) == 0.03
    assert turns.look(100.0 + WINDOW, 0, False) == 0.03
    reactor.longest = 0.02
    assert turns.look(100.1 + WINDOW, 0, False) == 0.03
    assert turns.look(100.0 + 2 * WINDOW, 0, False) == 0.02
    assert turns.look(100.0 + 3 * WINDOW, 0, False) == 0.0


def test_a_pause_is_logged_with_its_cpu_time_and_seldom(
    reactor: Reactor, capfd: pytest.CaptureFixture[str]
) -> None:
    log = ErrorLog("test")
    turns = Turns(reactor, log, 100.0)
    cpu = time.process_time_ns()
    turns.look(100.1, cpu, False)

    def pause(seconds: float, at: float, working: bool) -> str:
        reactor.longest = seconds
        turns.look(at, cpu + 40 * MS, working)
        log.flush()
        return capfd.readouterr().err

    assert pause(TOLD / 2, 100.2, True) == ""
    turns.look(100.3, cpu, False)
    told = pause(2.0, 102.3, True)
    assert "the event loop stood still" in told
    assert "seconds=2 cpu_seconds=0.04 reloading=true" in told
    assert pause(3.0, 105.3, False) == ""
    told = pause(1.0, 102.4 + PACE, False)
    assert "seconds=3 " in told
