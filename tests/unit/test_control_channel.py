"""The control process's end of the channel, and what it waits for there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from lb.control import requests
from lb.control.channel import MAX_WAITING, Channel
from lb.control.control import Unanswered
from lb.control.messages import (
    AskReload,
    AskWorker,
    Discovered,
    Event,
    Hello,
    Leave,
    Reloaded,
    ToControl,
    ToMaster,
    WorkerAnswer,
    receive_in_master,
)
from lb.control.requests import Requests
from lb.master.report import Outcome
from workers.contract import messages
from workers.contract.messages import ListTunnels, TunnelFilter, Tunnels


class Bench:
    """A channel of the control process, and the master's end of it."""

    def __init__(self) -> None:
        self.master, ours = messages.pair()
        self.took: list[ToControl] = []
        self.gone: list[str] = []
        self.channel = Channel(ours, self._took, self.gone.append)
        self.requests = Requests(self.channel)

    def _took(self, message: ToControl, fds: list[int]) -> None:
        assert fds == []
        self.took.append(message)
        if isinstance(message, Reloaded | WorkerAnswer):
            self.requests.answered(message)

    def said(self) -> list[tuple[ToMaster, int]]:
        """What the master got, with the number of descriptors."""
        found: list[tuple[ToMaster, int]] = []
        while True:
            try:
                received = receive_in_master(self.master)
            except BlockingIOError:
                return found
            assert received is not None
            for fd in received[1]:
                os.close(fd)
            found.append((received[0], len(received[1])))

    async def turns(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


def run(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def work() -> None:
        bench = Bench()
        try:
            await scenario(bench)
        finally:
            bench.channel.close()
            bench.master.close()

    asyncio.run(work())


def event(number: int) -> Event:
    return Event(kind="reload", text=f"{number}" + "x" * 900, at=0.0)


# --- the channel ---------------------------------------------------------------------------------------


def test_what_the_socket_does_not_take_waits_in_order() -> None:
    async def scenario(bench: Bench) -> None:
        sent = 0
        while bench.channel.send(event(sent)):
            sent += 1
        assert sent > MAX_WAITING
        got: list[ToMaster] = []
        async with asyncio.timeout(10):
            while len(got) < sent:
                got += [message for message, _ in bench.said()]
                await asyncio.sleep(0)
        assert got == [event(number) for number in range(sent)]
        assert bench.channel.send(event(0))

    run(scenario)


def test_descriptors_wait_too_and_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))

    async def scenario(bench: Bench) -> None:
        while bench.channel.send(event(0)) and len(bench.channel._waiting) < 3:
            pass
        fd = os.memfd_create("found")
        assert bench.channel.send(Discovered(), (fd,))
        os.close(fd)
        got: list[tuple[ToMaster, int]] = []
        async with asyncio.timeout(10):
            while (Discovered(), 1) not in got:
                got += bench.said()
                await asyncio.sleep(0)
        # What never goes out is closed as well.
        while bench.channel.send(event(0)):
            pass
        fd = os.memfd_create("found")
        bench.channel.send(Discovered(), (fd,))
        os.close(fd)

    run(scenario)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_masters_end_is_told_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.master.close()
        await bench.turns(lambda: bool(bench.gone))
        assert bench.gone == ["the master is gone"]
        assert not bench.channel.send(Hello(pid=1))

    run(scenario)


def test_messages_arrive() -> None:
    async def scenario(bench: Bench) -> None:
        messages.send(bench.master, Leave())
        await bench.turns(lambda: bool(bench.took))
        assert bench.took == [Leave()]

    run(scenario)


def test_what_is_no_message_ends_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.master.send(b"nonsense")
        await bench.turns(lambda: bool(bench.gone))
        assert "malformed message" in bench.gone[0]

    run(scenario)


# --- requests ------------------------------------------------------------------------------------------


def test_a_reload_waits_for_its_own_outcome() -> None:
    async def scenario(bench: Bench) -> None:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(bench.requests.reload())
            second = group.create_task(bench.requests.reload())
            await asyncio.sleep(0)
            asked = [message for message, _ in bench.said()]
            assert [type(message) for message in asked] == [AskReload, AskReload]
            for message in reversed(asked):
                assert isinstance(message, AskReload)
                outcome = Outcome(ok=True, generation=message.request)
                messages.send(bench.master, Reloaded(request=message.request, outcome=outcome))
        assert (first.result().generation, second.result().generation) == (1, 2)

    run(scenario)


def test_a_worker_is_asked_through_the_master() -> None:
    async def scenario(bench: Bench) -> None:
        what = ListTunnels(request=0, where=TunnelFilter(route="chat"))
        page = Tunnels(request=1, tunnels=(), total=0, more=False)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bench.requests.worker(3, what))
            await asyncio.sleep(0)
            assert bench.said() == [(AskWorker(request=1, slot=3, what=what), 0)]
            messages.send(bench.master, WorkerAnswer(request=1, slot=3, tunnels=page))
        assert task.result().tunnels == page

    run(scenario)


def test_the_masters_reason_is_raised() -> None:
    async def scenario(bench: Bench) -> None:
        async def answer() -> None:
            await asyncio.sleep(0)
            messages.send(bench.master, WorkerAnswer(request=1, slot=0, error="worker 0 does not serve"))

        async with asyncio.TaskGroup() as group:
            group.create_task(answer())
            with pytest.raises(Unanswered, match="worker 0 does not serve"):
                await bench.requests.worker(0, ListTunnels(request=0, where=TunnelFilter()))

    run(scenario)


def test_a_silent_master_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "RELOAD_TIME", 0.05)

    async def scenario(bench: Bench) -> None:
        with pytest.raises(Unanswered, match=r"the master does not answer within 0\.05s"):
            await bench.requests.reload()
        messages.send(bench.master, Reloaded(request=1, outcome=Outcome(ok=True, generation=1)))
        await bench.turns(lambda: bool(bench.took))  # too late, and dropped

    run(scenario)


def test_requests_are_bounded_and_end_with_the_process() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [asyncio.ensure_future(bench.requests.reload()) for _ in range(requests.MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(Unanswered, match="too many requests"):
            await bench.requests.reload()
        bench.requests.close("the load balancer stops")
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(end) for end in ends} == {"the load balancer stops"}

    run(scenario)
