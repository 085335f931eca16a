"""The master's end of a channel: sends never block, nothing leaks, a broken peer is told of."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from lb.master.child import MAX_WAITING
from lb.master.loop import Loop
from lb.master.spawn import Spawned
from lb.master.worker_process import WorkerProcess
from tests.harness.processes import own_descriptors
from workers.contract import messages
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import MAX_BYTES, AccessLogFd, AnyMessage, Attach, Commit, Prepared, Ready


def fail(error: Exception) -> None:
    raise error


class Peer:
    """A worker process that is this very process, at the other end of a real channel."""

    def __init__(self) -> None:
        self.loop = Loop(fail)
        self.log = os.memfd_create("log")
        ours, self.channel = messages.pair()
        self.said: list[AnyMessage] = []
        self.broken: list[str] = []
        self.worker = WorkerProcess(
            0,
            Spawned(os.getpid(), ours),
            self.loop,
            ErrorLog("master", self.log),
            lambda _worker, message: self.said.append(message),
            lambda _worker, why: self.broken.append(why),
        )

    def turn(self, seconds: float = 0.02) -> None:
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        self.worker.close()
        self.channel.close()
        self.loop.close()
        os.close(self.log)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_a_message_over_the_limits_is_dropped_and_breaks_nothing(peer: Peer) -> None:
    peer.worker.send(messages.Refused(generation=1, error="e" * MAX_BYTES))
    peer.worker.send(Commit(generation=2))
    assert [message for message, _ in received(peer.channel)] == [Commit(generation=2)]
    assert (peer.broken, peer.worker.closed) == ([], False)
    assert "a message to a child is dropped" in os.pread(peer.log, 9999, 0).decode()


def received(channel: socket.socket) -> list[tuple[AnyMessage, list[int]]]:
    found: list[tuple[AnyMessage, list[int]]] = []
    while True:
        try:
            one = messages.receive(channel)
        except BlockingIOError:
            return found
        assert one is not None
        found.append(one)


def test_messages_go_both_ways(peer: Peer) -> None:
    peer.worker.send(Commit(generation=7))
    assert received(peer.channel) == [(Commit(generation=7), [])]
    messages.send(peer.channel, Ready(pid=1))
    messages.send(peer.channel, Prepared(generation=7))
    peer.turn()
    assert peer.said == [Ready(pid=1), Prepared(generation=7)]


def test_what_does_not_fit_waits_in_order_with_its_descriptors(peer: Peer) -> None:
    before = len(own_descriptors())
    big = "x" * 3000
    for number in range(300):
        fd = os.memfd_create("test")
        role = messages.CertificateFd(listener=big, certificate=str(number))
        peer.worker.send(Attach(generation=number, roles=(role, AccessLogFd())), (fd, 0))
        os.close(fd)
    got: list[int] = []
    for _ in range(50):
        for message, fds in received(peer.channel):
            assert isinstance(message, Attach)
            assert os.readlink(f"/proc/self/fd/{fds[0]}") == "/memfd:test (deleted)"
            got.append(message.generation)
            for fd in fds:
                os.close(fd)
        peer.turn(0.001)
    assert got == list(range(300))
    assert len(own_descriptors()) == before


def test_a_worker_that_never_reads_is_broken_and_costs_nothing(peer: Peer) -> None:
    before = len(own_descriptors())
    for number in range(MAX_WAITING + 3000):
        peer.worker.send(Commit(generation=number), (0,))
    assert peer.broken == ["it does not read its channel"]
    peer.worker.send(Commit(generation=1))
    assert len(own_descriptors()) <= before


def test_the_end_of_the_channel_is_told_once(peer: Peer) -> None:
    peer.channel.close()
    peer.turn()
    assert peer.broken == ["it closed its channel"]


def test_a_malformed_message_is_not_trusted(peer: Peer) -> None:
    peer.channel.send(b"\xff\xff")
    peer.turn()
    assert len(peer.broken) == 1
    assert "can't be trusted" in peer.broken[0]


def test_a_send_to_nobody_is_told(peer: Peer) -> None:
    peer.channel.close()
    peer.worker.send(Commit(generation=1))
    assert "its channel failed" in peer.broken[0]


def test_descriptors_from_a_worker_are_closed(peer: Peer) -> None:
    messages.send(peer.channel, Ready(pid=1), (0, 1))
    before = len(own_descriptors())
    peer.turn()
    assert peer.said == [Ready(pid=1)]
    assert len(own_descriptors()) == before
