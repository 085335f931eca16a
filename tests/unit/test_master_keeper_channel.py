"""The way between a worker and its keeper, which the master makes and can't always make."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from lb.master.keepers import Keepers
from lb.master.loop import Loop
from lb.master.spawn import Spawned
from lb.master.worker_process import WorkerProcess
from workers.contract import messages, tunnels
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import Keep


def fail(error: Exception) -> None:
    raise error


class Family:
    """Keepers, a worker and its keeper, which are all this very process."""

    def __init__(self) -> None:
        self.loop = Loop(fail)
        self.log = os.memfd_create("log")
        log = ErrorLog("master", self.log)
        ours, self.keeper = messages.pair()
        self.keepers = Keepers(self.loop, log, lambda _slot: Spawned(os.getpid(), ours))
        theirs, self.channel = messages.pair()
        self.worker = WorkerProcess(
            0, Spawned(os.getpid(), theirs), self.loop, log, lambda _one, _said: None, lambda _one, _why: None
        )

    def told(self) -> messages.AnyMessage:
        """What the worker is told next."""
        received = messages.receive(self.channel)
        assert received is not None
        for fd in received[1]:
            os.close(fd)
        return received[0]

    def run(self, seconds: float) -> None:
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        for keeper in self.keepers.all.values():
            keeper.close()
        self.worker.close()
        self.loop.close()
        for end in (self.keeper, self.channel):
            end.close()
        os.close(self.log)


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.close()


def no_descriptors() -> tuple[int, int]:
    """From now on there are none; returns the limits of before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    return before


@pytest.mark.parametrize("reclaim", [True, False])
def test_what_a_worker_shall_reclaim_is_not_forgotten_for_want_of_descriptors(
    family: Family, monkeypatch: pytest.MonkeyPatch, reclaim: bool
) -> None:
    monkeypatch.setattr("lb.master.keepers._RETRY", 0.01)
    family.keepers.on_needed = lambda _slot: family.keepers.attend(family.worker, reclaim=False)
    family.keepers.attend(family.worker, reclaim=False)
    assert family.told() == Keep(reclaim=False)
    before = no_descriptors()
    try:
        family.keepers.attend(family.worker, reclaim=reclaim)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with pytest.raises(BlockingIOError):
        family.told()
    family.run(0.1)
    assert family.told() == Keep(reclaim=reclaim)
    family.keepers.attend(family.worker, reclaim=False)  # once is enough
    assert family.told() == Keep(reclaim=False)


def answers(keeper: socket.socket) -> list[tunnels.ToKeeper]:
    """What the keeper was told by now; a Ping is answered."""
    told: list[tunnels.ToKeeper] = []
    try:
        while (received := tunnels.receive_in_keeper(keeper)) is not None:
            told.append(received[0])
            if isinstance(received[0], tunnels.Ping):
                messages.send(keeper, tunnels.Pong())
            for fd in received[1]:
                os.close(fd)
    except BlockingIOError:
        pass
    return told


def test_a_keeper_is_asked_again_when_it_has_answered(family: Family) -> None:
    family.keepers.attend(family.worker, reclaim=False)
    family.keepers.watch(0.25, 1.0)
    assert tunnels.Ping() not in answers(family.keeper)  # it is on its way up
    messages.send(family.keeper, tunnels.KeeperReady(pid=1))
    family.run(0.05)
    for _ in range(2):
        for _ in range(3):
            family.keepers.watch(0.25, 1.0)
        assert answers(family.keeper) == [tunnels.Ping()]
        family.run(0.05)
