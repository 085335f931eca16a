"""What passes between the control process and the workers, and what the master makes of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from lb.control.messages import AskWorker, ToControl, WorkerAnswer, receive_in_control
from lb.master.control_process import ControlProcess
from lb.master.desk import brief, brief_report
from lb.master.fleet import Fleet
from lb.master.loop import Loop
from lb.master.questions import MAX_PENDING, Questions
from lb.master.report import Outcome, ReloadReport, StatusReport
from lb.master.spawn import Spawned
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract import messages
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import (
    MAX_BYTES,
    AnyMessage,
    CloseTunnels,
    ListTunnels,
    MoveTunnels,
    TunnelFilter,
    TunnelReport,
    Tunnels,
    TunnelsClosed,
)


def fail(error: Exception) -> None:
    raise error


class Bench:
    """The master's half between a control process and one worker, both at the ends of real channels."""

    def __init__(self) -> None:
        self.loop = Loop(fail)
        self.log_fd = os.memfd_create("log")
        self.log = ErrorLog("master", self.log_fd)
        ours, self.control_end = messages.pair()
        self.control = ControlProcess(
            Spawned(os.getpid(), ours), self.loop, self.log, lambda *_: None, lambda *_: None
        )
        ours, self.worker_end = messages.pair()
        self.worker = WorkerProcess(
            0,
            Spawned(os.getpid(), ours),
            self.loop,
            self.log,
            lambda worker, message: self.questions.answered(worker, told(message)),
            lambda *_: None,
        )
        self.worker.phase = Phase.SERVING
        fleet = Fleet.__new__(Fleet)  # only its workers are looked at
        fleet.workers = {0: self.worker}
        self.questions = Questions(self.loop, fleet, answer_time=0.05)

    def ask(self, request: int, slot: int = 0) -> None:
        what = ListTunnels(request=request, where=TunnelFilter())
        self.questions.ask(self.control, AskWorker(request=request, slot=slot, what=what))

    def answers(self, seconds: float = 0.0) -> list[ToControl]:
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()
        found: list[ToControl] = []
        while (message := one(self.control_end)) is not None:
            found.append(message)
        return found

    def asked(self) -> list[AnyMessage]:
        found: list[AnyMessage] = []
        while True:
            try:
                received = messages.receive(self.worker_end)
            except BlockingIOError:
                return found
            assert received is not None
            found.append(received[0])

    def close(self) -> None:
        self.control.close()
        self.worker.close()
        self.control_end.close()
        self.worker_end.close()
        self.loop.close()
        os.close(self.log_fd)


def told(message: AnyMessage) -> Tunnels | TunnelsClosed:
    assert isinstance(message, Tunnels | TunnelsClosed)
    return message


def one(channel: socket.socket) -> ToControl | None:
    try:
        received = receive_in_control(channel)
    except BlockingIOError:
        return None
    return None if received is None else received[0]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def no_tunnels(request: int) -> Tunnels:
    return Tunnels(request=request, tunnels=(), total=0, more=False)


# --- questions -----------------------------------------------------------------------------------------


def test_an_answer_goes_to_who_asked_under_its_own_number(bench: Bench) -> None:
    bench.ask(70)
    bench.ask(80)
    first, second = bench.asked()
    assert isinstance(first, ListTunnels)
    assert isinstance(second, ListTunnels)
    assert {first.request, second.request}.isdisjoint({70, 80})
    messages.send(bench.worker_end, no_tunnels(second.request))
    messages.send(bench.worker_end, no_tunnels(first.request))
    assert bench.answers(0.02) == [
        WorkerAnswer(request=80, slot=0, tunnels=no_tunnels(80)),
        WorkerAnswer(request=70, slot=0, tunnels=no_tunnels(70)),
    ]


def test_closing_is_passed_on_too(bench: Bench) -> None:
    what = CloseTunnels(request=1, where=TunnelFilter(route="chat"), code=1001, reason="go")
    bench.questions.ask(bench.control, AskWorker(request=1, slot=0, what=what))
    (asked,) = bench.asked()
    assert isinstance(asked, CloseTunnels)
    assert (asked.where, asked.code, asked.reason) == (what.where, 1001, "go")
    messages.send(bench.worker_end, TunnelsClosed(request=asked.request, count=3))
    assert bench.answers(0.02) == [WorkerAnswer(request=1, slot=0, closed=TunnelsClosed(request=1, count=3))]


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (999, "", "999 is no close code: they go from 1000 to 4999"),
        (70_000, "", "70000 is no close code: they go from 1000 to 4999"),
        (1001, "\u20ac" * 42, "the reason has more than 123 bytes"),
    ],
)
def test_what_no_close_frame_can_hold_reaches_no_worker(
    code: int, reason: str, error: str, bench: Bench
) -> None:
    where = TunnelFilter()
    move = MoveTunnels(
        request=1, where=where, count=1, code=code, spread=0.0, until=0.0, pool="p", total=1, reason=reason
    )
    for what in (CloseTunnels(request=1, where=where, code=code, reason=reason), move):
        bench.questions.ask(bench.control, AskWorker(request=1, slot=0, what=what))
        assert bench.asked() == []
        assert bench.answers() == [WorkerAnswer(request=1, slot=0, error=error)]


def test_a_move_is_passed_on(bench: Bench) -> None:
    where = TunnelFilter(pool="p", server="a")
    what = MoveTunnels(
        request=1,
        where=where,
        count=2,
        code=1012,
        spread=3.0,
        until=9.0,
        pool="p",
        total=5,
        target="b",
        aim=7,
    )
    bench.questions.ask(bench.control, AskWorker(request=1, slot=0, what=what))
    (asked,) = bench.asked()
    assert isinstance(asked, MoveTunnels)
    assert (asked.where, asked.count, asked.total, asked.target, asked.aim) == (where, 2, 5, "b", 7)
    messages.send(bench.worker_end, TunnelsClosed(request=asked.request, count=2))
    assert bench.answers(0.02) == [WorkerAnswer(request=1, slot=0, closed=TunnelsClosed(request=1, count=2))]


def test_a_worker_that_is_not_there_is_told_at_once(bench: Bench) -> None:
    bench.ask(1, slot=5)
    assert bench.answers() == [WorkerAnswer(request=1, slot=5, error="worker 5 does not serve")]


def test_a_worker_that_starts_has_no_tunnels_to_tell_of(bench: Bench) -> None:
    bench.worker.phase = Phase.LOADING
    bench.ask(1)
    assert bench.answers() == [WorkerAnswer(request=1, slot=0, error="worker 0 does not serve")]
    assert bench.asked() == []


def test_a_silent_worker_is_not_waited_for(bench: Bench) -> None:
    bench.ask(1)
    (answer,) = bench.answers(0.1)
    assert answer == WorkerAnswer(request=1, slot=0, error="worker 0 does not answer within 0.05s")
    (asked,) = bench.asked()
    assert isinstance(asked, ListTunnels)
    messages.send(bench.worker_end, no_tunnels(asked.request))
    assert bench.answers(0.02) == []  # too late


def test_a_worker_that_ends_has_not_answered(bench: Bench) -> None:
    bench.ask(1)
    bench.questions.ended(bench.worker)
    assert bench.answers() == [WorkerAnswer(request=1, slot=0, error="worker 0 ended before it answered")]


def test_answers_for_an_earlier_control_process_are_dropped(bench: Bench) -> None:
    bench.ask(1)
    bench.questions.forget()
    (asked,) = bench.asked()
    assert isinstance(asked, ListTunnels)
    messages.send(bench.worker_end, no_tunnels(asked.request))
    assert bench.answers(0.1) == []


def test_questions_are_bounded(bench: Bench) -> None:
    for number in range(MAX_PENDING + 1):
        bench.ask(number)
        bench.asked()
    answer = one(bench.control_end)
    error = "too many questions wait for the workers' answers"
    assert answer == WorkerAnswer(request=MAX_PENDING, slot=0, error=error)


def test_an_answer_that_does_not_fit_is_an_error(bench: Bench) -> None:
    bench.ask(1)
    (asked,) = bench.asked()
    assert isinstance(asked, ListTunnels)
    report = TunnelReport(
        number=1, route="r", pool="p", server="s", client="c", host="h", path="", request_id="i", age=0.0,
        idle=0.0, client_bytes=0, server_bytes=0, client_messages=0, server_messages=0, tls=False,
    )  # fmt: skip
    page = Tunnels(request=asked.request, tunnels=(report,), total=1, more=False)
    path = "/" * (MAX_BYTES - len(msgspec.msgpack.encode(page)) - 4)
    report = msgspec.structs.replace(report, path=path)
    messages.send(bench.worker_end, msgspec.structs.replace(page, tunnels=(report,)))
    error = "the answer of worker 0 is too long, ask for fewer"
    assert bench.answers(0.02) == [WorkerAnswer(request=1, slot=0, error=error)]


# --- what is told --------------------------------------------------------------------------------------


def test_an_outcome_fits_into_a_message() -> None:
    outcome = Outcome(
        ok=False, generation=1, changes=tuple("\U0001f310" * 9999 for _ in range(9999)), error="e" * 99999
    )
    cut = brief(outcome)
    assert len(cut.changes) == 51
    assert cut.changes[-1] == "... and 9949 more"
    assert len(msgspec.msgpack.encode(cut)) < MAX_BYTES
    assert brief(Outcome(ok=True, generation=1, changes=("a: 1 -> 2",))).changes == ("a: 1 -> 2",)


def test_a_report_can_be_sent_whatever_the_file_is_called() -> None:
    report = StatusReport(
        version="1", pid=1, config="/etc/\udcff.toml", uptime=1.0, state="serving", generation=1, workers=(),
        workers_wanted=1, listeners=(), restarts={},
        reloads=ReloadReport(succeeded=0, failed=1, last=Outcome(ok=False, generation=1, error="\udcff")),
    )  # fmt: skip
    cut = brief_report(report)
    assert cut.config == "/etc/?.toml"
    msgspec.msgpack.encode(cut)
