"""Who is told to give tunnels to whom, and when: the mover over real channels and a real scoreboard."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lb.config.schema import Rebalance
from lb.master import mover as movers
from lb.master.fleet import Fleet
from lb.master.loop import Loop
from lb.master.mover import Mover
from lb.master.spawn import Spawned
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract import messages
from workers.contract.cells import WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import AnyMessage, Give, Given, Take
from workers.contract.scoreboard import Capacity, Scoreboard

SMALL = Capacity(workers=8, listeners=1, routes=1, pools=1, servers=1, series=64)


def fail(error: Exception) -> None:
    raise error


class Witness:
    """Notes what it is told about moves."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, int, str]] = []

    def moved(self, worker: WorkerProcess, count: int, reason: str) -> None:
        self.moves.append((worker.slot, count, reason))


class Stage:
    """Workers that are nothing but the other ends of their channels."""

    def __init__(self, tunnels: dict[int, int], rebalance: Rebalance | None = None) -> None:
        self.loop = Loop(fail)
        self.log_fd = os.memfd_create("log")
        self.log = ErrorLog("master", self.log_fd)
        self.board = Scoreboard.create(SMALL)
        self.channels: dict[int, socket.socket] = {}
        self.witness = Witness()
        self.fleet = Fleet.__new__(Fleet)  # what the mover looks at
        self.fleet.workers = {}
        self.fleet.active = tuple(tunnels)
        self.fleet.closed = False
        self.fleet.witness = cast(Any, self.witness)
        self.open = SimpleNamespace(open=False)
        self.fleet._succession = cast(Any, self.open)
        process = SimpleNamespace(rebalance=rebalance)
        plan = SimpleNamespace(config=SimpleNamespace(process=process))
        self.fleet.deployment = cast(Any, SimpleNamespace(plan=plan))
        self.mover = Mover(self.loop, self.log, self.fleet, self.board, most=1000)
        for slot, count in tunnels.items():
            self.add(slot, count)

    def add(self, slot: int, count: int) -> None:
        ours, self.channels[slot] = messages.pair()
        worker = WorkerProcess(
            slot, Spawned(1000 + slot, ours), self.loop, self.log, self.heard, lambda _worker, _why: None
        )
        worker.phase = Phase.SERVING
        self.fleet.workers[slot] = worker
        self.has(slot, count)

    def heard(self, worker: WorkerProcess, message: AnyMessage) -> None:
        assert isinstance(message, Given)
        self.mover.given(worker, message)

    def has(self, slot: int, count: int, movable: int | None = None) -> None:
        cells = self.board.slab(slot).cells
        cells[WorkerCell.TUNNELS] = cells[WorkerCell.CONNECTIONS] = count
        cells[WorkerCell.MOVABLE] = count if movable is None else movable

    def leaves(self, slot: int) -> None:
        worker = self.fleet.workers[slot]
        worker.phase, worker.hands_over = Phase.LEAVING, True
        self.fleet.active = tuple(other for other in self.fleet.active if other != slot)
        self.mover.leaving(worker)

    def turn(self, seconds: float = 0.02) -> None:
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()

    def told(self, slot: int) -> tuple[AnyMessage, socket.socket] | None:
        """What the worker was told last, with its end of the pair."""
        try:
            received = messages.receive(self.channels[slot])
        except BlockingIOError:
            return None
        assert received is not None
        (fd,) = received[1]
        return received[0], socket.socket(fileno=fd)

    def gave(self, slot: int) -> Give | None:
        """The order that the worker was given."""
        told = self.told(slot)
        if told is None:
            return None
        told[1].close()
        assert isinstance(told[0], Give)
        return told[0]

    def took(self, slot: int) -> Take | None:
        told = self.told(slot)
        if told is None:
            return None
        told[1].close()
        assert isinstance(told[0], Take)
        return told[0]

    def says(self, slot: int, message: Given) -> None:
        messages.send(self.channels[slot], message)

    def close(self) -> None:
        for worker in self.fleet.workers.values():
            worker.close()
        for channel in self.channels.values():
            channel.close()
        self.loop.close()
        os.close(self.log_fd)
        os.close(self.board.fd)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage({0: 100, 1: 0, 2: 100, 3: 300})
    yield made
    made.close()


@pytest.fixture
def even() -> Iterator[Stage]:
    made = Stage({0: 300, 1: 0}, Rebalance(tunnels=50, percent=10, pace=60))
    yield made
    made.close()


def test_both_get_an_end_of_the_same_pair(stage: Stage) -> None:
    stage.leaves(3)
    stage.turn()
    give, take = stage.told(3), stage.told(1)
    assert give is not None
    assert take is not None
    with give[1] as ours, take[1] as theirs:
        ours.send(b"hello")
        assert theirs.recv(10) == b"hello"
    # 500 tunnels on three: the emptiest gets most, and first.
    number = cast(Give, give[0]).transfer
    assert give[0] == Give(transfer=number, taker=1, count=167, reason="retire")
    assert take[0] == Take(transfer=number, giver=3, reason="retire")


def test_a_giver_gives_to_one_after_the_other(stage: Stage) -> None:
    stage.leaves(3)
    stage.turn(3 * movers.TURN)
    first = stage.gave(3)
    assert first is not None
    assert stage.gave(3) is None
    stage.says(3, Given(transfer=first.transfer, count=167))
    stage.has(3, 133)
    stage.has(1, 167)
    stage.turn()
    second = stage.gave(3)
    assert second is not None
    assert (second.taker, second.count) == (0, 67)
    assert second.transfer != first.transfer


def test_two_givers_don_t_share_a_taker(stage: Stage) -> None:
    stage.leaves(3)
    stage.leaves(2)
    stage.turn()
    gives = [stage.gave(slot) for slot in (2, 3)]
    assert sorted(give.taker for give in gives if give is not None) == [0, 1]


def test_after_a_failure_another_taker_is_tried(stage: Stage) -> None:
    stage.leaves(3)
    stage.turn()
    first = stage.gave(3)
    assert first is not None
    stage.says(3, Given(transfer=first.transfer, count=0, error="broken pipe"))
    stage.turn()
    second = stage.gave(3)
    assert second is not None
    assert second.taker != first.taker
    assert b"hand-over of tunnels broke off" in os.pread(stage.log_fd, 10_000, 0)


def test_what_a_giver_gave_is_told_once_at_its_end(stage: Stage) -> None:
    stage.leaves(3)
    stage.turn()
    for count in (167, 67):
        give = stage.gave(3)
        assert give is not None
        stage.says(3, Given(transfer=give.transfer, count=count))
        stage.turn()
    stage.mover.ended(stage.fleet.workers[3])
    assert stage.witness.moves == [(3, 234, "retire")]


def test_an_answer_that_nobody_waits_for_changes_nothing(stage: Stage) -> None:
    stage.says(0, Given(transfer=7, count=9))
    stage.turn()
    stage.mover.ended(stage.fleet.workers[0])
    assert stage.witness.moves == []


def test_one_without_movable_tunnels_is_left_alone(stage: Stage) -> None:
    stage.has(3, 300, movable=0)
    stage.leaves(3)
    stage.turn(3 * movers.TURN)
    assert stage.gave(3) is None
    stage.has(3, 300, movable=1)  # a handshake that was in flight
    stage.turn(3 * movers.TURN)
    assert stage.gave(3) is not None


def test_the_fullest_gives_at_the_pace(even: Stage) -> None:
    even.mover.start()
    even.turn(movers.REBALANCE + 0.1)
    give = even.gave(0)
    assert give is not None
    assert (give.taker, give.count, give.reason) == (1, 60, "rebalance")
    assert even.took(1) is not None


@pytest.mark.parametrize("state", ["off", "recovering", "stopping"])
def test_nothing_is_evened_out_while(even: Stage, state: str) -> None:
    match state:
        case "off":
            even.fleet.deployment.plan.config.process.rebalance = None  # type: ignore[misc]
        case "recovering":
            even.open.open = True
        case "stopping":
            even.fleet.closed = True
    even.mover.start()
    even.turn(movers.REBALANCE + 0.1)
    assert even.gave(0) is None
