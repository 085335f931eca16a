"""The master's half of the channel to the control process: what that may say, and what comes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lb.control.messages import (
    AskReload,
    Configured,
    Discovered,
    Event,
    Hello,
    MasterStatus,
    Reloaded,
    ToControl,
)
from lb.master.control_process import ControlProcess
from lb.master.deployment import sealed
from lb.master.desk import Desk
from lb.master.loop import Loop
from lb.master.report import Outcome, ReloadReport, StatusReport
from lb.master.spawn import Spawned
from lb.master.wishes import Reply
from tests.unit.test_master_control import fail, one
from workers.contract import messages
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import MAX_BYTES

REPORT = StatusReport(
    version="1", pid=1, config="/lb.toml", uptime=1.0, state="serving", generation=1, workers=(),
    workers_wanted=1, listeners=(), restarts={}, reloads=ReloadReport(succeeded=0, failed=0),
)  # fmt: skip


class Bench:
    """A desk whose control process is this test, at the end of a real channel."""

    def __init__(self) -> None:
        self.loop = Loop(fail)
        self.log_fd = os.memfd_create("log")
        log = ErrorLog("master", self.log_fd)
        self.reloads: list[Reply] = []
        fleet: Any = SimpleNamespace(deployment=SimpleNamespace(generation=7, for_control=()))
        reloader: Any = SimpleNamespace(request=self.reloads.append)
        self.desk = Desk(self.loop, log, fleet, reloader, lambda: REPORT)
        self.broken: list[str] = []
        ours, self.end = messages.pair()
        self.control = ControlProcess(
            Spawned(os.getpid(), ours), self.loop, log, self.desk.took, lambda _, why: self.broken.append(why)
        )

    def heard(self) -> list[ToControl]:
        """What the control process was told."""
        self.loop.later(0.02, self.loop.stop)
        self.loop.run()
        found: list[ToControl] = []
        while (message := one(self.end)) is not None:
            found.append(message)
        return found

    def close(self) -> None:
        self.control.close()
        self.end.close()
        self.loop.close()
        os.close(self.log_fd)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_what_control_said_can_be_told_to_its_successor(bench: Bench) -> None:
    """An event that just fitted into a message gets a number, and would not fit any more."""
    event = Event(kind="k", text="t" * (MAX_BYTES - 40), at=1.0)
    messages.send(bench.end, event)
    messages.send(bench.end, Event(kind="k", text="", at=1.0, fields={"why": "w" * 60_000}))
    messages.send(bench.end, Hello(pid=1))
    configured, status, *events = bench.heard()
    assert isinstance(configured, Configured)
    assert isinstance(status, MasterStatus)
    assert [(event.number, len(event.text)) for event in events if isinstance(event, Event)] == [
        (1, 1024),
        (2, 0),
    ]
    assert bench.broken == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xc0" * (2 << 20) + b"\xc0", "it is larger than 2 MiB"),
        (msgspec.msgpack.encode({"servers": {"p": [{"name": "a", "address": "a:1", "weight": 0}]}}), ">= 1"),
    ],
)
def test_what_was_found_is_checked(content: bytes, why: str, bench: Bench) -> None:
    messages.send(bench.end, Hello(pid=1))
    fd = sealed("found", content)
    messages.send(bench.end, Discovered(), (fd,))
    os.close(fd)
    *_, event = bench.heard()
    assert isinstance(event, Event)
    assert event.kind == "discovery-failed"
    assert why in event.text


def test_requests_for_a_reload_are_bounded(bench: Bench) -> None:
    for number in range(100):
        bench.desk.took(bench.control, AskReload(request=number), [])
    assert len(bench.reloads) == 64
    refused = [message for message in bench.heard() if isinstance(message, Reloaded)]
    assert [message.request for message in refused] == list(range(64, 100))
    assert refused[0].outcome.error.startswith("64 requests for a reload wait already")
    bench.reloads[0](refused[0].outcome)
    bench.desk.took(bench.control, AskReload(request=100), [])
    assert len(bench.reloads) == 65


@pytest.mark.parametrize(("count", "words"), [(0, "0 changes"), (1, "1 change"), (2, "2 changes")])
def test_changes_are_counted_in_words(bench: Bench, count: int, words: str) -> None:
    bench.desk.reloaded(Outcome(ok=True, generation=3, changes=("web: something",) * count))
    assert bench.desk._events[-1].text == f"generation 3 is served, {words}"
