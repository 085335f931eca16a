"""Tunnels go from worker to worker, and whatever breaks, exactly one of the two goes on with them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
from collections.abc import Iterator

import pytest

from tests.harness import websocket as ws
from tests.harness.workers import DrivenWorker, Site
from workers.contract import messages
from workers.contract.cells import MigrationReason, MigrationResult, WorkerCell
from workers.contract.ledger import State
from workers.contract.snapshot import WebSocketSpec
from workers.io.tunnel import Tunnel


@pytest.fixture
def site() -> Iterator[Site]:
    before = sockets()
    with Site() as made:
        yield made
    assert sockets() == before


def sockets() -> set[str]:
    """The sockets of this process. (What memory is mapped from is closed when it is collected.)"""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {target for target in found if target.startswith("socket:")}


def migrations(worker: DrivenWorker, reason: MigrationReason, result: MigrationResult) -> int:
    cell = WorkerCell.MIGRATIONS + reason * MigrationResult.WIDTH + result
    return int(worker.worker.slab.cells[cell])


class Stream:
    """One direction: random bytes in pieces of any size, and what of them arrived."""

    def __init__(self, source: socket.socket, sink: socket.socket, size: int, seed: int) -> None:
        self.source, self.sink = source, sink
        self._random = random.Random(seed)
        self._left = size
        self._size = size
        self._unsent = b""
        self._sent = hashlib.blake2b()
        self._came = hashlib.blake2b()
        self.received = 0

    def go_on(self) -> None:
        """Sends and receives what can be."""
        if not self._unsent and self._left:
            self._unsent = self._random.randbytes(min(self._left, self._random.randrange(1, 200_000)))
            self._left -= len(self._unsent)
            self._sent.update(self._unsent)
        try:
            if self._unsent:
                self._unsent = self._unsent[self.source.send(self._unsent) :]
        except BlockingIOError:
            pass
        try:
            data = self.sink.recv(self._random.randrange(1, 300_000))
        except BlockingIOError:
            return
        self._came.update(data)
        self.received += len(data)

    @property
    def whole(self) -> bool:
        """Whether all has arrived; asserts that it is what was sent."""
        if self.received < self._size:
            return False
        assert self.received == self._size
        assert self._came.digest() == self._sent.digest()
        return True


def test_every_byte_arrives_through_many_moves(site: Site) -> None:
    """At full traffic both ways, with small buffers so that bytes always wait."""
    streams = []
    one, other = site.workers
    for seed in range(6):
        _, client, server = site.tunnel(one, unix=seed % 3 == 2, buffer=4096 if seed % 2 else None)
        size = 300_000 if seed % 2 else 3_000_000
        streams += [Stream(client, server, size, seed), Stream(server, client, size, seed + 100)]
    moves = 0
    while not all(stream.whole for stream in streams):
        site.begin(one, other)
        for _ in range(random.Random(moves).randrange(1, 6)):
            for stream in streams:
                stream.go_on()
            site.turn()
        given = site.answer(one, messages.Given)
        assert (given.count, given.error) == (6, "")
        assert not one.gauges()
        assert other.gauges()["tunnels"] == other.gauges()["active4"] == 6
        one, other = other, one
        moves += 1
        for _ in range(20):
            for stream in streams:
                stream.go_on()
            site.turn()
    assert moves >= 5


def test_gauges_are_the_takers(site: Site) -> None:
    one, other = site.workers
    _, client, server = site.tunnel(one)
    before = one.gauges()
    given = site.hand_over(one, other)
    assert (given.count, given.error) == (1, "")
    assert not one.gauges()
    assert other.gauges() == before
    assert other.worker.listeners["public"].connections == 1
    assert one.worker.listeners["public"].connections == 0
    assert migrations(other, MigrationReason.REBALANCE, MigrationResult.OK) == 1
    client.close()
    server.close()
    site.until(lambda: not other.gauges(), "nothing is left")
