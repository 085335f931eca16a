"""A keeper whose worker dies in the middle of their conversation."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.harness.workers import connected
from workers.contract import messages, tunnels
from workers.contract.entries import State
from workers.contract.ledger import Ledger
from workers.keeper import Keeper


@pytest.fixture
def keeper() -> Iterator[tuple[Keeper, socket.socket, socket.socket]]:
    """A keeper, and the ends of its master and of its worker."""
    ledger = Ledger.create(1, 16)
    master, theirs = messages.pair()
    made = Keeper(0, theirs, ledger)
    ours, worker = messages.pair()
    messages.send(master, tunnels.Attend(), [ours.fileno()])
    ours.close()
    made.turn(0.0)
    area = ledger.area(0)
    for entry in (0, 1):
        area.cells[2 * entry], area.cells[2 * entry + 1] = State.HELD, 7
    yield made, master, worker
    made.close()
    master.close()
    worker.close()


def hold(worker: socket.socket, entry: int) -> None:
    """Tells the keeper about a tunnel."""
    first, second = socket.socketpair()
    with first, second:
        messages.send(worker, tunnels.Hold(tunnels=((entry, 7),)), [first.fileno(), second.fileno()])


def test_a_worker_that_dies_before_it_reads_what_came_back_loses_nothing(
    keeper: tuple[Keeper, socket.socket, socket.socket],
) -> None:
    """Reading from the other end of a socket that was closed with something unread fails with ECONNRESET
    once, before what was sent there (unix(7))."""
    made, master, worker = keeper
    hold(worker, 0)
    messages.send(worker, tunnels.Reclaim())
    for _ in range(3):
        made.turn(0.0)
    hold(worker, 1)
    worker.close()  # Back and BackEnd wait there
    messages.send(master, tunnels.Settle())
    for _ in range(3):
        made.turn(0.0)
    assert made.running
    said: list[object] = []
    while not said or not isinstance(said[-1], tunnels.Settled):
        received = tunnels.receive_from_keeper(master)
        assert received is not None
        said.append(received[0])
    assert said[-1] == tunnels.Settled(held=2)


def test_it_looks_for_what_nobody_told_however_much_it_is_told(
    keeper: tuple[Keeper, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, master, worker = keeper
    monkeypatch.setattr(made, "_sweep_at", 0.0)  # a second has passed
    first, second = socket.socketpair()
    with first, second:
        messages.send(worker, tunnels.Hold(tunnels=((5, 7),)), [first.fileno(), first.fileno()])
        first.close()
        second.setblocking(False)
        for _ in range(3):  # entry 5 is free
            messages.send(master, tunnels.Ping())
            made.turn(0.0)
        assert second.recv(1) == b""


def test_it_says_that_it_is_there(keeper: tuple[Keeper, socket.socket, socket.socket]) -> None:
    made, master, _ = keeper
    messages.send(master, tunnels.Ping())
    made.turn(0.0)
    received = tunnels.receive_from_keeper(master)
    assert received is not None and received[0] == tunnels.Pong()


def test_a_master_that_dies_while_it_asks_is_no_fault(
    keeper: tuple[Keeper, socket.socket, socket.socket],
) -> None:
    made, master, _ = keeper
    messages.send(master, tunnels.Ping())
    master.close()
    for _ in range(3):
        made.turn(0.0)
    assert not made.running


def test_tunnels_of_a_dead_worker_are_reset_also_where_its_end_was_not_read_yet(
    keeper: tuple[Keeper, socket.socket, socket.socket],
) -> None:
    """The master may give a slot up in the moment in which its worker dies."""
    made, master, worker = keeper
    client, client_there = connected()
    server, server_there = connected()
    with client, server:
        with client_there, server_there:
            fds = [client_there.fileno(), server_there.fileno()]
            messages.send(worker, tunnels.Hold(tunnels=((0, 7),)), fds)
        worker.close()
        messages.send(master, tunnels.Leave())
        made.close()
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
