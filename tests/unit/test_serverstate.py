"""A server in one word: what the operator wants comes first, then what was seen, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from lb.admin.views import ServerState
from lb.control.serverstate import standing
from lb.control.states import ServerStates
from tests.harness.board import ONE, SNAPSHOT, TWO
from tests.harness.control import StandInControl
from workers.contract.cells import Admin, CheckResult, EjectReason, Health
from workers.contract.snapshot import EjectSpec

POOL = msgspec.structs.replace(SNAPSHOT.pools[0], slow_start=20.0)


@pytest.fixture
def states() -> Iterator[ServerStates]:
    with StandInControl(SNAPSHOT) as control:
        yield control.states


def down(states: ServerStates) -> None:
    states.checked(ONE, CheckResult.BODY)
    states.set_health("main", ONE, Health.DOWN)


def eject(states: ServerStates) -> None:
    states.eject("main", ONE, EjectReason.CONNECT_FAILURES, 60.0, 1)


def drain(states: ServerStates) -> None:
    down(states)
    states.set_admin("main", ONE, Admin.DRAIN)


def maintain(states: ServerStates) -> None:
    eject(states)
    states.set_admin("main", ONE, Admin.MAINT)


def down_and_ejected(states: ServerStates) -> None:
    eject(states)
    down(states)


def come_back(states: ServerStates) -> None:
    states.set_health("main", ONE, Health.DOWN)
    states.set_health("main", ONE, Health.UP)


@pytest.mark.parametrize(
    ("happened", "state", "why", "weight"),
    [
        (lambda states: None, "unchecked", "", 4.0),
        (lambda states: states.set_health("main", ONE, Health.UP), "up", "", 4.0),
        (lambda states: states.set_weight("main", ONE, 9), "unchecked", "set its weight to 9", 9.0),
        (lambda states: states.set_weight("main", ONE, 0), "unchecked", "set its weight to 0", 0.0),
        (down, "down", "its checks fail: another body than expected", 0.0),
        (eject, "ejected", "too many errors: ejected for ", 0.0),
        (down_and_ejected, "down", "its checks fail", 0.0),
        (drain, "drain", "it drains", 0.0),
        (maintain, "maint", "in maintenance", 0.0),
        (come_back, "starting", "slow start, 5% of its weight", 0.2),
    ],
)
def test_a_word_and_a_reason(
    happened: Callable[[ServerStates], None],
    state: ServerState,
    why: str,
    weight: float,
    states: ServerStates,
) -> None:
    happened(states)
    one, other = standing(states, POOL, time.monotonic()).servers
    assert one.state == state
    assert one.weight == pytest.approx(weight)
    assert why in one.why and bool(why) == bool(one.why)
    assert (other.state, other.why, other.weight) == ("unchecked", "", 1.0)


def test_time_alone_brings_it_back(states: ServerStates) -> None:
    eject(states)
    now = time.monotonic()
    seen = [standing(states, POOL, now + later).servers[0] for later in (0.0, 61.0, 71.0, 90.0)]
    assert [stand.state for stand in seen] == ["ejected", "starting", "starting", "unchecked"]
    assert [stand.weight for stand in seen] == sorted(stand.weight for stand in seen)


def test_in_a_panic_all_are_used_whatever_they_are(states: ServerStates) -> None:
    anxious = msgspec.structs.replace(POOL, slow_start=None, eject=EjectSpec(panic_percent=60))
    down(states)
    found = standing(states, anxious, time.monotonic())
    assert found.panic and found.usable == 2
    assert [stand.state for stand in found.servers] == ["down", "unchecked"]
    assert found.servers[0].weight == 4.0
    states.set_admin("main", TWO, Admin.MAINT)
    assert standing(states, anxious, time.monotonic()).servers[1].weight == 0.0
