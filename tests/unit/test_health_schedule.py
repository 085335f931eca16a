"""Checks in the course of time: flips on the scoreboard, reloads, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from lb.control.health import HealthChecks, schedule
from lb.control.health.target import Target
from tests.harness.control import StandInControl
from tests.harness.ports import free_port
from tests.harness.processes import own_descriptors
from tests.harness.upstream import Connection, Upstream, reply
from tests.harness.waiting import until
from workers.contract.cells import Admin, CheckResult, Health, StateCell
from workers.contract.snapshot import HealthSpec, PoolSpec, ServerSpec, Snapshot

Start = Callable[..., Upstream]
QUICK: dict[str, Any] = {"every": 0.02, "timeout": 1.0, "fall": 3, "rise": 2}


@pytest.fixture
def control() -> Iterator[StandInControl]:
    with StandInControl() as made:
        yield made


class Switch:
    """A handler whose answer the test chooses, and that counts what runs at the same time."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.most = 0
        self.seconds = 0.0
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, connection: Connection) -> None:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            asked = connection.read_request() is not None
            if asked and self.seconds:
                time.sleep(self.seconds)
        finally:
            # Before the answer: whoever has it may ask again at once.
            with self._lock:
                self._running -= 1
        if asked:
            connection.send(reply(b"", self.status))


def server_at(upstream: Upstream, slot: int = 0, **more: Any) -> ServerSpec:
    return ServerSpec(slot=slot, owner=1, name=f"s{slot}", host="127.0.0.1", port=upstream.port, **more)


def pool(*servers: ServerSpec, check: HealthSpec | None = None, **settings: Any) -> PoolSpec:
    check = check or HealthSpec(**{**QUICK, **settings})
    return PoolSpec(name="web", servers=servers, checks=(check,) * len(servers))


def run(scenario: Callable[[HealthChecks], Awaitable[None]], control: StandInControl, web: PoolSpec) -> None:
    """Runs `scenario` with checks of `web`; no task and no descriptor may be left behind."""

    async def main() -> None:
        control.serve(Snapshot(generation=1, pools=(web,)))
        checks = HealthChecks(control)
        checks.adopt()
        try:
            await scenario(checks)
        finally:
            await checks.close()
        assert len(asyncio.all_tasks()) == 1

    before = len(own_descriptors())
    asyncio.run(main())
    assert len(own_descriptors()) <= before + 8  # the upstreams' side may close a little later


def serve(control: StandInControl, checks: HealthChecks, *pools: PoolSpec) -> None:
    control.serve(Snapshot(generation=control.snapshot.generation + 1, pools=pools))
    checks.adopt()


def count(control: StandInControl, result: CheckResult, name: str = "s0") -> int:
    return control.states.get(control.server("web", name), StateCell.CHECKS, result)


def test_a_server_goes_down_and_comes_back(control: StandInControl, upstream: Start) -> None:
    switch = Switch()
    web = pool(server_at(upstream(switch)))
    server = web.servers[0]

    async def scenario(checks: HealthChecks) -> None:
        assert checks.last("web", "s0") is None
        await until(lambda: control.states.health(server) is Health.UP, "it is up")
        flips = control.board.control[2]
        switch.status = "503 Service Unavailable"
        await until(lambda: control.states.health(server) is Health.DOWN, "it is down")
        assert count(control, CheckResult.STATUS) >= 3
        assert control.board.control[2] == flips + 1
        last = checks.last("web", "s0")
        assert last is not None
        assert (last.result, last.detail) == (CheckResult.STATUS, "expected status 200-299, got 503")
        assert abs(last.at - time.time()) < 5
        assert 0 < last.seconds < 5
        switch.status = "200 OK"
        await until(lambda: control.states.health(server) is Health.UP, "it is up again")
        assert control.states.get(server, StateCell.RETURNED) > 0
        assert control.kinds() == ["server-up", "server-down", "server-up"]
        assert control.last_event("server-down").fields["why"] == last.detail
        assert 'event="server is down" pool=web server=s0' in control.log_text()

    run(scenario, control, web)


def test_a_server_that_flaps_stays_where_it_is(control: StandInControl, upstream: Start) -> None:
    turn = iter(range(1 << 30))

    def handler(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply(b"", "200 OK" if next(turn) % 3 == 0 else "503 Service Unavailable"))

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: count(control, CheckResult.OK) >= 5, "five good checks")
        assert count(control, CheckResult.STATUS) >= 8
        assert control.kinds() == ["server-up"]

    run(scenario, control, pool(server_at(upstream(handler))))


def test_what_the_operator_wants_does_not_stop_checks(control: StandInControl, upstream: Start) -> None:
    switch = Switch()
    web = pool(server_at(upstream(switch)))

    async def scenario(checks: HealthChecks) -> None:
        for admin in (Admin.DRAIN, Admin.MAINT):
            control.states.set_admin("web", web.servers[0], admin)
            before = count(control, CheckResult.OK)
            await until(lambda: count(control, CheckResult.OK) > before + 2, "checks go on")  # noqa: B023
        switch.status = "500 Internal Server Error"
        await until(lambda: control.states.health(web.servers[0]) is Health.DOWN, "it is down")
        assert control.states.admin(web.servers[0]) is Admin.MAINT

    run(scenario, control, web)


def test_a_slow_server_is_never_checked_twice_at_once(control: StandInControl, upstream: Start) -> None:
    switch = Switch()
    switch.seconds = 0.06
    slow = upstream(switch)

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: count(control, CheckResult.OK) >= 4, "four checks")
        assert switch.most == 1

    run(scenario, control, pool(server_at(slow), every=0.01))


def test_a_reload_leaves_checks_that_stay(control: StandInControl, upstream: Start) -> None:
    switch = Switch()
    server = server_at(upstream(switch))
    web = pool(server, fall=1_000_000)  # its history must not end at the reload

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: control.states.health(server) is Health.UP, "it is up")
        switch.status = "503 Service Unavailable"
        await until(lambda: count(control, CheckResult.STATUS) >= 2, "two failed checks")
        watch = checks._watches[(0, 1)]
        task = watch.task
        heavier = ServerSpec(slot=0, owner=1, name="s0", host=server.host, port=server.port, weight=7)
        serve(control, checks, PoolSpec(name="web", servers=(heavier,), checks=web.checks))
        assert checks._watches[(0, 1)] is watch
        assert watch.task is task
        assert checks.last("web", "s0") is not None
        before = count(control, CheckResult.STATUS)
        await until(lambda: count(control, CheckResult.STATUS) > before + 1, "checks go on")
        assert control.kinds() == ["server-up"]

    run(scenario, control, web)


def test_a_changed_check_starts_anew_and_keeps_the_health(control: StandInControl, upstream: Start) -> None:
    switch = Switch()
    switch.status = "503 Service Unavailable"
    server = server_at(upstream(switch))

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: control.states.health(server) is Health.DOWN, "it is down")
        serve(control, checks, pool(server, status=((503, 503),), rise=3))
        assert control.states.health(server) is Health.DOWN
        assert checks.last("web", "s0") is None
        before = count(control, CheckResult.OK)
        await until(lambda: control.states.health(server) is Health.UP, "it is up by the new check")
        assert count(control, CheckResult.OK) - before == 3  # not the one check of a server never seen
        assert control.kinds() == ["server-down", "server-up"]

    run(scenario, control, pool(server))


def test_what_is_removed_is_checked_no_more(control: StandInControl, upstream: Start) -> None:
    first, second = upstream(Switch()), upstream(Switch())
    kept, removed = server_at(first, 0), server_at(second, 1)

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: count(control, CheckResult.OK, "s1") >= 2, "both are checked")
        serve(control, checks, pool(kept))
        assert checks.last("web", "s1") is None
        await until(lambda: second.open_connections() == 0, "the last check has ended")
        before, accepted = count(control, CheckResult.OK), second.accepted
        await until(lambda: count(control, CheckResult.OK) > before + 3, "the other is checked")
        assert second.accepted == accepted

    run(scenario, control, pool(kept, removed))


def test_a_verdict_that_nobody_renews_is_taken_back(control: StandInControl) -> None:
    server = ServerSpec(slot=0, owner=1, name="s0", host="127.0.0.1", port=free_port())

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: control.states.health(server) is Health.DOWN, "it is down")
        serve(control, checks, PoolSpec(name="web", servers=(server,)))
        assert control.states.health(server) is Health.UNKNOWN
        assert checks.last("web", "s0") is None

    run(scenario, control, pool(server))


def test_a_new_control_process_needs_as_many_failures(control: StandInControl, upstream: Start) -> None:
    switch = Switch()
    web = pool(server_at(upstream(switch)))

    async def before(checks: HealthChecks) -> None:
        await until(lambda: control.states.health(web.servers[0]) is Health.UP, "it is up")

    async def after(checks: HealthChecks) -> None:
        assert control.states.health(web.servers[0]) is Health.UP
        failed = count(control, CheckResult.STATUS)
        await until(lambda: control.states.health(web.servers[0]) is Health.DOWN, "it is down")
        assert count(control, CheckResult.STATUS) - failed == 3

    run(before, control, web)
    switch.status = "503 Service Unavailable"
    run(after, control, web)


def test_first_checks_are_spread(control: StandInControl, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def scenario(checks: HealthChecks) -> None:
        async def record(watch: schedule.Watch, delay: float) -> None:
            delays.append(delay)

        monkeypatch.setattr(checks, "_run", record)
        servers = [
            ServerSpec(slot=slot, owner=1, name=f"s{slot}", host="127.0.0.1", port=1) for slot in range(4)
        ]
        serve(control, checks, pool(*servers, every=60.0))
        await until(lambda: len(delays) == 4, "all have started")
        assert delays == [0.0, 0.25, 0.5, 0.75]
        serve(control, checks, pool(*servers, every=0.4))
        await until(lambda: len(delays) == 8, "all have started anew")
        assert delays[4:] == pytest.approx([0.0, 0.1, 0.2, 0.3])

    run(scenario, control, PoolSpec(name="web", servers=()))


def test_so_many_at_once_and_no_more(
    control: StandInControl, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "most_at_once", lambda: 2)
    switch = Switch()
    switch.seconds = 0.02
    server = upstream(switch)
    servers = [server_at(server, slot) for slot in range(8)]

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: all(count(control, CheckResult.OK, s.name) >= 2 for s in servers), "all had two")
        # One more may be counted: the server's thread ends after the client has its answer.
        assert switch.most <= 4

    run(scenario, control, pool(*servers))


def test_dead_servers_of_one_pool_do_not_delay_the_checks_of_another(
    control: StandInControl, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "most_at_once", lambda: 4)
    halt = threading.Event()
    hang = upstream(lambda connection: halt.wait(30) and None)
    dead = PoolSpec(
        name="dead",
        servers=tuple(server_at(hang, slot) for slot in range(1, 30)),
        checks=(HealthSpec(every=0.1, timeout=20.0, fall=3, rise=2),) * 29,
    )
    web = pool(server_at(upstream(Switch())))

    async def scenario(checks: HealthChecks) -> None:
        control.serve(Snapshot(generation=2, pools=(dead, web)))
        checks.adopt()
        await until(lambda: hang.open_connections() == 3, "the dead have all places but one")
        before = count(control, CheckResult.OK)
        await until(lambda: count(control, CheckResult.OK) > before + 5, "the other goes on")
        await until(lambda: len(checks.problems()) == 1, "it is told")
        told = checks.problems()[0]
        assert told.startswith("pool dead: ") and "instead of 0.1s: more than 4 checks would" in told

    run(scenario, control, web)
    halt.set()


def test_closing_ends_checks_that_run(control: StandInControl, upstream: Start) -> None:
    halt = threading.Event()
    server = upstream(lambda connection: halt.wait(30) and None)

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: server.open_connections() == 1, "a check has begun")
        began = time.monotonic()
        await checks.close()
        assert time.monotonic() - began < 5
        assert control.kinds() == []

    run(scenario, control, pool(server_at(server), timeout=30.0))
    halt.set()


def test_a_want_of_ours_is_not_held_against_the_server(
    control: StandInControl, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = pool(server_at(upstream(Switch())), fall=1)

    async def scenario(checks: HealthChecks) -> None:
        await until(lambda: control.states.health(web.servers[0]) is Health.UP, "it is up")

        async def no_descriptors(target: Target) -> str:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(Target, "address", no_descriptors)
        await until(lambda: "could not be made" in control.log_text(), "the log tells")
        monkeypatch.undo()
        before = count(control, CheckResult.OK)
        await until(lambda: count(control, CheckResult.OK) > before, "checks go on")
        assert control.kinds() == ["server-up"]

    run(scenario, control, web)


def test_a_fault_of_ours_is_told_and_checks_go_on(
    control: StandInControl, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(checks: HealthChecks) -> None:
        def fault(target: Target) -> str:
            raise KeyError("a bug")

        monkeypatch.setattr(Target, "host_field", property(fault))
        await until(lambda: "fault in a health check" in control.log_text(), "the log tells")
        monkeypatch.undo()
        await until(lambda: count(control, CheckResult.OK) > 0, "checks go on")

    run(scenario, control, pool(server_at(upstream(Switch()))))
