"""Which servers of a pool may be used: `workers.core.health`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract import errors
from workers.contract.cells import Admin, Health, ServerCell
from workers.contract.snapshot import EjectSpec, PoolSpec, ServerSpec
from workers.core.health import NEVER, STEPS, ServerState, Watch, combine, slow_start_step

UP = ServerState(Health.UP)
DOWN = ServerState(Health.DOWN)
NOW = 1000.0


def pool(
    count: int = 3, *, weights: tuple[int, ...] = (), panic: int = 0, slow: float | None = None
) -> PoolSpec:
    servers = tuple(
        ServerSpec(slot=index, name=f"s{index}", host="127.0.0.1", port=1, weight=weight)
        for index, weight in enumerate(weights or (1,) * count)
    )
    return PoolSpec(name="p", servers=servers, eject=EjectSpec(panic_percent=panic), slow_start=slow)


def test_unchecked_servers_are_used() -> None:
    usable = combine(pool(), [ServerState()] * 3, NOW)
    assert usable.usable == (0, 1, 2)
    assert usable.reachable == (True, True, True)
    assert usable.weights == (1, 1, 1)
    assert not usable.panic
    assert usable.until == NEVER


def test_a_server_that_is_down_is_left_out_for_everybody() -> None:
    usable = combine(pool(), [UP, DOWN, UP], NOW)
    assert usable.usable == (0, 2)
    assert usable.reachable == (True, False, True)


def test_draining_keeps_what_is_stuck_and_maintenance_does_not() -> None:
    states = [ServerState(admin=Admin.DRAIN), ServerState(admin=Admin.MAINT), UP]
    usable = combine(pool(), states, NOW)
    assert usable.usable == (2,)
    assert usable.reachable == (True, False, True)


def test_a_server_that_drains_and_is_down_keeps_nothing() -> None:
    usable = combine(pool(1), [ServerState(Health.DOWN, Admin.DRAIN)], NOW)
    assert usable.usable == ()
    assert usable.reachable == (False,)


def test_the_operators_weight_counts_and_zero_is_for_sticky_sessions_alone() -> None:
    states = [ServerState(weight=0), ServerState(weight=7), ServerState()]
    usable = combine(pool(weights=(3, 3, 3)), states, NOW)
    assert usable.usable == (1, 2)
    assert usable.reachable == (True, True, True)
    assert usable.weights == (0, 7, 3)


def test_an_ejection_ends_by_the_clock() -> None:
    states = [ServerState(ejected_until=NOW + 5), UP, UP]
    during = combine(pool(), states, NOW)
    assert during.usable == (1, 2)
    assert during.until == NOW + 5
    assert combine(pool(), states, NOW + 5).usable == (0, 1, 2)


# --- panic ----------------------------------------------------------------------------------------------


def test_without_a_threshold_all_down_is_nobody() -> None:
    usable = combine(pool(), [DOWN] * 3, NOW)
    assert usable.usable == ()
    assert not usable.panic


@pytest.mark.parametrize(("well", "panics"), [(4, False), (2, False), (1, True), (0, True)])
def test_under_the_threshold_all_are_used(well: int, panics: bool) -> None:
    usable = combine(pool(4, panic=50), [UP] * well + [DOWN] * (4 - well), NOW)
    assert usable.panic is panics
    assert usable.usable == (tuple(range(4)) if panics else tuple(range(well)))


def test_panic_does_not_bring_back_what_the_operator_took_out() -> None:
    states = [ServerState(Health.DOWN, Admin.MAINT), ServerState(Health.DOWN, Admin.DRAIN), DOWN, DOWN]
    usable = combine(pool(4, panic=50), states, NOW)
    assert usable.panic
    assert usable.usable == (2, 3)
    assert usable.reachable == (False, True, True, True)


def test_what_the_operator_took_out_does_not_cause_panic() -> None:
    states = [ServerState(admin=Admin.MAINT)] * 3 + [UP]
    assert not combine(pool(4, panic=50), states, NOW).panic


# --- slow start -----------------------------------------------------------------------------------------


def test_a_server_that_returns_gets_its_weight_step_by_step() -> None:
    states = [UP, ServerState(Health.UP, returned=NOW)]
    shares = []
    for second in range(0, 21, 5):
        usable = combine(pool(weights=(2, 4), slow=20.0), states, NOW + second)
        shares.append(usable.weights[1] / usable.weights[0])
    assert shares == [pytest.approx(2 * step / STEPS) for step in (1, 6, 11, 16, 20)]


def test_after_a_slow_start_the_weights_are_the_configured_ones() -> None:
    usable = combine(pool(slow=20.0), [UP, ServerState(returned=NOW), UP], NOW + 20)
    assert usable.weights == (1, 1, 1)
    assert usable.until == NEVER


def test_after_an_ejection_it_starts_slowly() -> None:
    usable = combine(pool(slow=20.0), [UP, ServerState(ejected_until=NOW), UP], NOW)
    assert usable.weights == (STEPS, 1, STEPS)


def test_a_server_that_never_was_away_starts_at_once() -> None:
    assert slow_start_step(20.0, UP, 5.0) == (STEPS, NEVER)


@given(st.floats(0.1, 1e5), st.floats(0, 2))
def test_steps_come_one_after_the_other_and_end(length: float, part: float) -> None:
    state = ServerState(returned=NOW)
    now = NOW + part * length
    step, until = slow_start_step(length, state, now)
    assert 1 <= step <= STEPS
    if until == NEVER:
        assert now >= NOW + length * 0.999
        assert step == STEPS
    else:
        assert until >= now - 1e-6
        assert slow_start_step(length, state, until + length / (2 * STEPS))[0] > step or step == STEPS


# --- what goes wrong in a row ---------------------------------------------------------------------------


def test_errors_in_a_row_reach_the_threshold_and_begin_anew() -> None:
    watch = Watch(EjectSpec(consecutive_errors=3))
    told = [list(watch.answered(500)) for _ in range(7)]
    assert told == [[], [], [ServerCell.ERRORS_IN_A_ROW], [], [], [ServerCell.ERRORS_IN_A_ROW], []]


def test_one_good_answer_begins_anew() -> None:
    watch = Watch(EjectSpec(consecutive_errors=2))
    assert not watch.answered(500)
    assert not watch.answered(404)
    assert not watch.answered(500)
    assert watch.failed(errors.UPSTREAM_RESET)


def test_gateway_failures_are_counted_apart() -> None:
    watch = Watch(EjectSpec(consecutive_errors=None, gateway_failures=2))
    assert not watch.answered(503)
    assert not watch.answered(500)  # an error, and no gateway failure
    assert not watch.answered(502)
    assert list(watch.failed(errors.RESPONSE_TIMEOUT)) == [ServerCell.GATEWAY_FAILURES]


def test_failures_to_connect_are_counted_apart() -> None:
    watch = Watch(EjectSpec(consecutive_errors=None, connect_failures=2))
    assert not watch.failed(errors.CONNECT_FAILED)
    assert not watch.failed(errors.UPSTREAM_RESET)
    assert list(watch.failed(errors.CONNECT_TIMEOUT)) == [ServerCell.CONNECT_FAILURES]
    assert not watch.failed(errors.CONNECT_FAILED)
    assert not watch.answered(500)  # it could be reached
    assert not watch.failed(errors.CONNECT_FAILED)


def test_what_is_off_is_never_reached() -> None:
    watch = Watch(EjectSpec(consecutive_errors=None))
    assert not any(watch.failed(errors.CONNECT_FAILED) for _ in range(100))
