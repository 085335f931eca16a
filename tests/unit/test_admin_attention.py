"""The sentences of the status: each appears when it should, and nothing is said of what is well."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from lb.admin import status
from lb.admin.attention import MAX_PROBLEMS
from lb.control.control import Control
from lb.master.report import Outcome, ReloadReport, UpgradeOutcome, UpgradeReport, WorkerReport
from tests.harness.control import StandInControl
from workers.contract.cells import Admin, EjectReason, Health, WorkerCell
from workers.contract.snapshot import (
    CertificateSpec,
    EjectSpec,
    ListenerSpec,
    ListenTls,
    PoolSpec,
    ServerSpec,
    Snapshot,
)

SERVERS = tuple(
    ServerSpec(slot=slot, owner=1, name=name, host="10.0.0.1", port=80) for slot, name in enumerate("abcd")
)
POOL = PoolSpec(name="web", owner=1, servers=SERVERS, eject=EjectSpec(panic_percent=50))
CALM = PoolSpec(name="web", owner=1, servers=SERVERS)
DAY = 86400.0


@pytest.fixture
def control() -> Iterator[StandInControl]:
    with StandInControl(Snapshot(generation=1, pools=(CALM,))) as control:
        control.status = msgspec.structs.replace(
            control.status, workers=(worker(0), worker(1)), workers_wanted=2
        )
        for slot in (0, 1):
            cells = control.board.slab(slot).cells
            cells[WorkerCell.HEARTBEAT] = time.monotonic_ns() + 60_000_000_000
            cells[WorkerCell.PID] = os.getpid()
        control.started = time.time() - 3600
        yield control


def worker(slot: int, state: str = "serving") -> WorkerReport:
    return WorkerReport(
        slot=slot, pid=os.getpid(), state=state, uptime=1.0, generation=1, connections=0, tunnels=0,
        accepted=0, requests=0, heartbeat_age=0.0, listening_sockets=1,
    )  # fmt: skip


def sentences(control: Control) -> tuple[str, ...]:
    return status.view(control).problems


def with_certificate(control: StandInControl, days: float) -> None:
    certificate = CertificateSpec(name="a.pem", hosts=("a",), not_after=time.time() + days * DAY)
    listener = ListenerSpec(
        slot=0, owner=1, name="public", bind=("x",), tls=ListenTls(certificates=(certificate,))
    )
    control.serve(Snapshot(generation=1, listeners=(listener,), pools=(CALM,)))


def test_nothing_is_said_while_all_is_well(control: StandInControl) -> None:
    with_certificate(control, 15)
    assert sentences(control) == ()
    assert status.view(control).ready


def test_a_worker_that_hangs(control: StandInControl) -> None:
    cells = control.board.slab(1).cells
    cells[WorkerCell.HEARTBEAT] = time.monotonic_ns() - 42_000_000_000
    cells[WorkerCell.CONNECTIONS] = 7
    first, second = sentences(control)
    assert first.startswith("worker 1 (pid ") and "42s: its 7 connections" in first
    assert second.startswith("1 of 2 workers serve")
    view = status.view(control)
    assert view.workers[1].wedged and not view.workers[0].wedged and not view.ready


def test_a_worker_that_is_missing(control: StandInControl) -> None:
    control.status = msgspec.structs.replace(control.status, workers=(worker(0), worker(1, "starting")))
    assert sentences(control) == ("1 of 2 workers serve; the error log says why",)


def test_a_load_balancer_that_stops(control: StandInControl) -> None:
    control.status = msgspec.structs.replace(control.status, state="stopping", workers=())
    assert sentences(control) == ("it is stopping: nothing new is accepted",)


def test_servers_that_are_down(control: StandInControl) -> None:
    control.states.set_health("web", SERVERS[0], Health.DOWN)
    control.states.eject("web", SERVERS[1], EjectReason.CONSECUTIVE_ERRORS, 60.0, 1)
    assert sentences(control) == ("pool web: 2 of 4 servers are down or ejected: a, b",)


def test_a_pool_without_a_usable_server(control: StandInControl) -> None:
    for server in SERVERS[:3]:
        control.states.set_health("web", server, Health.DOWN)
    control.states.set_admin("web", SERVERS[3], Admin.MAINT)
    assert sentences(control) == (
        "pool web has no usable server (3 down, 1 maint): its requests are answered with 503",
    )


def test_a_pool_that_panics(control: StandInControl) -> None:
    control.serve(Snapshot(generation=1, pools=(POOL,)))
    for server in SERVERS[:3]:
        control.states.set_health("web", server, Health.DOWN)
    first, second = sentences(control)
    assert first.startswith("pool web panics")
    assert second.startswith("pool web: 3 of 4")


def test_a_pool_without_servers(control: StandInControl) -> None:
    control.serve(Snapshot(generation=1, pools=(PoolSpec(name="web", owner=1, servers=()),)))
    assert sentences(control) == ("pool web has no servers: its requests are answered with 503",)


@pytest.mark.parametrize(
    ("days", "said"),
    [(-1.0, "has expired"), (0.5, "expires within a day"), (13.2, "expires in 13 days")],
)
def test_certificates(control: StandInControl, days: float, said: str) -> None:
    with_certificate(control, days)
    (sentence,) = sentences(control)
    assert sentence.startswith("certificate a.pem of listener public") and said in sentence


def test_a_reload_that_failed(control: StandInControl) -> None:
    last = Outcome(ok=False, generation=1, error="lb.toml:3: no such key\nand more")
    control.status = msgspec.structs.replace(
        control.status, reloads=ReloadReport(succeeded=1, failed=1, last=last)
    )
    assert sentences(control) == ("the last reload failed, generation 1 serves on: lb.toml:3: no such key",)


def test_discovery_that_fails(control: StandInControl) -> None:
    control.undiscovered.append("host a.test: no such name")
    assert sentences(control) == (
        "discovery fails, what was found before is kept: host a.test: no such name",
    )


def test_a_control_process_that_was_restarted(control: StandInControl) -> None:
    control.started = time.time() - 5
    # (No process has this number, so the uptime is what the report says.)
    control.status = msgspec.structs.replace(control.status, pid=2**22, uptime=6.0)
    assert sentences(control) == ()  # everything started just now
    control.status = msgspec.structs.replace(control.status, pid=2**22, uptime=600.0)
    assert sentences(control) == ("the control process was restarted 5s ago; traffic was not touched",)


def test_a_worker_without_room_for_labels(control: StandInControl) -> None:
    cells = control.board.slab(0).cells
    cells[WorkerCell.SERIES] = control.board.capacity.series
    assert sentences(control) == ()
    cells[WorkerCell.SERIES_FULL] = 9
    (sentence,) = sentences(control)
    assert sentence.startswith("worker 0 has no room for more labels: 9 figures")


def test_the_list_is_bounded_and_the_worst_comes_first(control: StandInControl) -> None:
    pools = tuple(PoolSpec(slot=i, owner=1, name=f"p{i}", servers=()) for i in range(MAX_PROBLEMS + 9))
    control.serve(Snapshot(generation=1, pools=pools))
    control.status = msgspec.structs.replace(control.status, workers=(worker(0),))
    found = sentences(control)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[0].startswith("1 of 2 workers serve")
    assert found[-1] == "and 10 more"


def test_checks_that_come_late(control: StandInControl) -> None:
    control.late = ["pool web: 3 servers are checked too late"]
    assert sentences(control) == ("pool web: 3 servers are checked too late",)


def test_a_worker_whose_tunnels_nobody_keeps(control: StandInControl) -> None:
    control.board.slab(1).cells[WorkerCell.TUNNELS] = 7
    control.board.slab(1).cells[WorkerCell.MOVABLE] = 6
    assert sentences(control) == (
        "worker 1 has no keeper: its 7 tunnels would not outlive it; the error log says why",
    )
    kept = msgspec.structs.replace(worker(1), keeper_pid=os.getpid())
    control.status = msgspec.structs.replace(control.status, workers=(worker(0), kept))
    assert sentences(control) == ()


def test_an_upgrade_that_failed(control: StandInControl) -> None:
    failed = UpgradeOutcome(ok=False, before="1.0", error="can't be imported: lb.master\nmore of it")
    control.status = msgspec.structs.replace(control.status, upgrades=UpgradeReport(failed=1, last=failed))
    assert sentences(control) == (
        "the last upgrade failed, version 1.0 serves on: can't be imported: lb.master",
    )
    done = UpgradeOutcome(ok=True, before="1.0", after="1.1")
    control.status = msgspec.structs.replace(control.status, upgrades=UpgradeReport(succeeded=1, last=done))
    assert sentences(control) == ()
