"""When a dead worker comes back, and when a silent one is wedged."""

from __future__ import annotations

import signal

import pytest

from lb.master.supervision import Backoff, cause_of_death, quiet_for


def test_two_early_deaths_are_answered_at_once_the_third_waits() -> None:
    backoff = Backoff()
    assert [backoff.died(0.1) for _ in range(5)] == [0.0, 0.0, 0.1, 0.2, 0.4]


def test_tunnels_wait_for_a_second_at_most() -> None:
    backoff = Backoff()
    assert [backoff.died(0.1, tunnels=20) for _ in range(8)] == [0, 0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.died(0.1) == 5.0


def test_the_wait_is_bounded() -> None:
    backoff = Backoff()
    assert max(backoff.died(0.0) for _ in range(2000)) == 5.0


def test_a_worker_that_lived_ends_the_series() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.died(0.1)
    assert backoff.died(60.0) == 0.0
    assert backoff.died(0.1) == 0.0


def test_a_heartbeat_ends_the_silence() -> None:
    assert quiet_for(9.0, True, 1.0, 1.0) == 0.0
    assert quiet_for(9.0, False, 1.0, 1.0) == 10.0


def test_time_that_the_master_itself_stood_still_does_not_count() -> None:
    assert quiet_for(0.5, False, 3600.0, 1.0) == 2.5


@pytest.mark.parametrize(
    ("status", "cause"),
    [(0, "exit-0"), (3 << 8, "exit-3"), (signal.SIGKILL, "SIGKILL"), (40, "signal-40")],
)
def test_causes_are_stable_words(status: int, cause: str) -> None:
    assert cause_of_death(status) == cause
