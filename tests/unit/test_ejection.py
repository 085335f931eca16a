"""Which servers are ejected, for how long, and when not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from lb.control.ejection import Ejections, ejection_seconds, most_ejected
from tests.harness.control import StandInControl
from tests.harness.waiting import until
from workers.contract.cells import Admin, ControlCell, EjectReason, Health, ServerCell, StateCell
from workers.contract.snapshot import EjectSpec, PoolSpec, ServerSpec, Snapshot

ERRORS = ServerCell.ERRORS_IN_A_ROW
LONG = EjectSpec(duration=100.0, max_duration=250.0, max_percent=50)


def pool(count: int, eject: EjectSpec | None = LONG, *, first_slot: int = 0, name: str = "web") -> PoolSpec:
    servers = tuple(
        ServerSpec(slot=first_slot + index, owner=1, name=f"s{index}", host="127.0.0.1", port=9)
        for index in range(count)
    )
    return PoolSpec(name=name, servers=servers, eject=eject)


def snapshot(*pools: PoolSpec) -> Snapshot:
    return Snapshot(generation=1, pools=pools)


@pytest.fixture
def control() -> Iterator[StandInControl]:
    with StandInControl() as made:
        yield made


def ejected(control: StandInControl, name: str = "web") -> list[str]:
    return [s.name for s in control.pool(name).servers if control.states.ejected_until(s)]


def run(scenario: Callable[[Ejections], Awaitable[None]], control: StandInControl, *pools: PoolSpec) -> None:
    """Runs `scenario` with ejections that have adopted `pools`; nothing may be left behind."""

    async def main() -> None:
        control.serve(snapshot(*pools))
        ejections = Ejections(control)
        ejections.adopt()
        try:
            await scenario(ejections)
        finally:
            await ejections.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def trip(control: StandInControl, *names: str, cell: ServerCell = ERRORS, worker: int = 0) -> None:
    for name in names:
        control.count(worker, control.server("web", name), cell)


@pytest.mark.parametrize(
    ("servers", "percent", "allowed"),
    [
        (1, 100, 0),
        (2, 50, 1),
        (2, 10, 1),
        (3, 50, 1),
        (4, 50, 2),
        (10, 33, 3),
        (10, 100, 10),
        (5, 0, 0),
        (0, 50, 0),
    ],
)
def test_how_many_may_be_ejected(servers: int, percent: int, allowed: int) -> None:
    assert most_ejected(servers, percent) == allowed


def test_ejections_grow_to_the_longest() -> None:
    assert [ejection_seconds(LONG, streak) for streak in (1, 2, 3, 4)] == [100.0, 200.0, 250.0, 250.0]


@pytest.mark.parametrize("reason", EjectReason)
def test_every_threshold_ejects(control: StandInControl, reason: EjectReason) -> None:
    async def scenario(ejections: Ejections) -> None:
        before = time.monotonic()
        trip(control, "s1", cell=ServerCell(ERRORS + reason), worker=2)
        ejections.look()
        assert ejected(control) == ["s1"]
        server = control.server("web", "s1")
        assert before + 100 <= control.states.ejected_until(server) <= time.monotonic() + 100
        assert control.states.get(server, StateCell.EJECTIONS, reason) == 1
        event = control.last_event("server-ejected")
        assert (event.fields["server"], event.fields["reason"]) == ("s1", reason.name.lower())
        assert 'event="server is ejected" pool=web server=s1' in control.log_text()

    run(scenario, control, pool(4))


def test_what_is_known_already_is_no_news(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        ejections.look()
        assert ejected(control) == []
        trip(control, "s0")
        ejections.look()
        until_first = control.states.ejected_until(control.server("web", "s0"))
        ejections.look()
        trip(control, "s0")  # what was still under way
        ejections.look()
        assert control.states.ejected_until(control.server("web", "s0")) == until_first
        assert control.kinds() == ["server-ejected"]

    run(scenario, control, pool(4))


def test_a_row_of_another_owner_is_not_read(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        stranger = ServerSpec(slot=0, owner=7, name="gone", host="127.0.0.1", port=9)
        control.count(0, stranger, ERRORS)
        ejections.look()
        assert ejected(control) == []

    run(scenario, control, pool(4))


def test_workers_that_trip_at_the_same_time_eject_once(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        for worker in range(4):
            trip(control, "s0", worker=worker)
        ejections.look()
        assert control.kinds() == ["server-ejected"]

    run(scenario, control, pool(4))


def test_never_more_than_max_percent(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        trip(control, "s0", "s1", "s2", "s3")
        ejections.look()
        assert ejected(control) == ["s0", "s1"]
        trip(control, "s2")
        ejections.look()
        assert ejected(control) == ["s0", "s1"]
        # Told once, however often it is refused; the log has a rate of its own.
        assert control.kinds() == ["server-ejected", "server-ejected", "ejection-refused"]
        event = control.last_event("ejection-refused")
        assert event.fields["server"] == "s2"
        assert "max_percent = 50 allows 2" in event.text
        assert "ejection refused" in control.log_text()

    run(scenario, control, pool(4))


def test_the_only_server_stays(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        trip(control, "s0")
        ejections.look()
        assert ejected(control) == []
        assert control.kinds() == ["ejection-refused"]

    run(scenario, control, pool(1, EjectSpec(max_percent=100)))


def test_the_last_server_that_can_be_used_stays(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        control.states.set_health("web", control.server("web", "s0"), Health.DOWN)
        control.states.set_admin("web", control.server("web", "s1"), Admin.DRAIN)
        control.states.set_weight("web", control.server("web", "s2"), 0)
        trip(control, "s3")
        ejections.look()
        assert ejected(control) == []
        assert "no other server" in control.last_event("ejection-refused").text
        control.states.set_admin("web", control.server("web", "s1"), Admin.READY)
        trip(control, "s3")
        ejections.look()
        assert ejected(control) == ["s3"]

    run(scenario, control, pool(4))


def test_pools_are_counted_apart_and_some_never_eject(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        for name in ("web", "api", "static"):
            control.count(1, control.server(name, "s0"), ERRORS)
        ejections.look()
        assert [ejected(control, name) for name in ("web", "api", "static")] == [["s0"], ["s0"], []]

    run(
        scenario,
        control,
        pool(2),
        pool(2, first_slot=10, name="api"),
        pool(2, None, first_slot=20, name="static"),
    )


def test_it_returns_is_longer_out_the_next_time_and_forgiven_in_time(control: StandInControl) -> None:
    short = EjectSpec(duration=0.05, max_duration=0.08)

    async def scenario(ejections: Ejections) -> None:
        server = control.server("web", "s0")
        trip(control, "s0")
        ejections.look()
        assert control.last_event("server-ejected").fields["seconds"] == 0.05
        await until(lambda: control.kinds()[-1] == "server-returned", "the end of the ejection")
        assert not control.states.ejected_until(server)
        assert control.states.get(server, StateCell.EJECTION_STREAK) == 1
        trip(control, "s0")
        ejections.look()
        assert control.last_event("server-ejected").fields["seconds"] == 0.08
        assert control.states.get(server, StateCell.EJECTION_STREAK) == 2
        await until(lambda: control.states.get(server, StateCell.EJECTION_STREAK) == 0, "it is forgiven")
        assert control.kinds() == ["server-ejected", "server-returned"] * 2
        assert control.states.get(server, StateCell.EJECTED_UNTIL) / 1e9 + 0.08 <= time.monotonic() + 0.01

    run(scenario, control, pool(2, short))


def test_a_new_control_process_goes_on(control: StandInControl) -> None:
    short = EjectSpec(duration=0.2, max_duration=1.0)

    async def before(ejections: Ejections) -> None:
        trip(control, "s0")
        ejections.look()

    async def after(ejections: Ejections) -> None:
        assert ejected(control) == ["s0"]
        ejections.look()  # what was counted while nobody looked is over
        assert ejected(control) == ["s0"]
        await until(lambda: "server-returned" in control.kinds(), "the end of the ejection")
        trip(control, "s0")
        ejections.look()
        assert control.last_event("server-ejected").fields["seconds"] == 0.4

    run(before, control, pool(4, short))
    trip(control, "s1")
    run(after, control, pool(4, short))


def test_a_reload_forgets_what_is_gone(control: StandInControl) -> None:
    short = EjectSpec(duration=0.05)

    async def scenario(ejections: Ejections) -> None:
        trip(control, "s0", "s1")
        ejections.look()
        assert ejected(control) == ["s0", "s1"]
        kept = pool(4, short)
        control.serve(snapshot(PoolSpec(name="web", servers=kept.servers[1:], eject=short)))
        ejections.adopt()
        await until(lambda: "server-returned" in control.kinds(), "the end of the ejection")
        returned = [event for event in control.events.after(0) if event.kind == "server-returned"]
        assert [event.fields["server"] for event in returned] == ["s1"]

    run(scenario, control, pool(4, short))


def test_the_operator_ends_an_ejection(control: StandInControl) -> None:
    async def scenario(ejections: Ejections) -> None:
        server = control.server("web", "s0")
        trip(control, "s0")
        ejections.look()
        flips = control.board.control[ControlCell.FLIPS]
        control.states.set_admin("web", server, Admin.READY)  # which it is already
        assert ejected(control) == []
        assert control.board.control[ControlCell.FLIPS] == flips + 1
        assert 0 < control.states.get(server, StateCell.EJECTED_UNTIL) <= time.monotonic_ns()
        assert control.last_event("server-returned").fields["by"] == "operator"
        control.states.set_admin("web", server, Admin.READY)
        assert control.kinds() == ["server-ejected", "server-returned"]
        trip(control, "s0")
        ejections.look()
        assert ejected(control) == ["s0"]
        assert control.states.get(server, StateCell.EJECTION_STREAK) == 2

    run(scenario, control, pool(4))


def test_an_ejection_that_the_operator_ended_ends_once(control: StandInControl) -> None:
    spec = EjectSpec(duration=0.05, max_duration=0.05, max_percent=50)

    async def scenario(ejections: Ejections) -> None:
        server = control.server("web", "s0")
        trip(control, "s0")
        ejections.look()
        control.states.set_admin("web", server, Admin.READY)
        await until(lambda: not control.states.get(server, StateCell.EJECTION_STREAK), "it is forgiven")
        assert control.kinds() == ["server-ejected", "server-returned"]

    run(scenario, control, pool(4, spec))
