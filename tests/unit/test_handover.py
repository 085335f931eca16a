"""Tunnels go from worker to worker, and whatever breaks, exactly one of the two goes on with them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import websocket as ws
from tests.harness.workers import DrivenWorker, Site
from workers.contract import messages
from workers.contract.cells import MigrationReason, MigrationResult, RouteCell, WorkerCell
from workers.contract.entries import State
from workers.contract.messages import Message
from workers.contract.snapshot import WebSocketSpec
from workers.contract.tunnels import BATCH, Done, Drop, End, Go, Handover, Offer, Ready, receive_handover
from workers.io.adoption import MAX_TARGET
from workers.io.closing import close_politely
from workers.io.pacing import Cause


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


class Patience:
    """For loops that end when all has come."""

    def __init__(self) -> None:
        self._until = time.monotonic() + 60

    def lasts(self) -> bool:
        """True, or an `AssertionError`."""
        assert time.monotonic() < self._until, "it does not end"
        return True


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
    patience = Patience()
    while patience.lasts() and not all(stream.whole for stream in streams):
        site.begin(one, other)
        for _ in range(random.Random(moves).randrange(1, 6)):
            for stream in streams:
                stream.go_on()
            site.turn()
        answer = site.answer(one, messages.Given)
        assert (answer.count, answer.error) == (6, "")
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
    answer = site.hand_over(one, other)
    assert (answer.count, answer.error) == (1, "")
    assert not one.gauges()
    assert other.gauges() == before
    assert other.worker.listeners["public"].connections == 1
    assert one.worker.listeners["public"].connections == 0
    assert migrations(other, MigrationReason.REBALANCE, MigrationResult.OK) == 1
    client.close()
    server.close()
    site.until(lambda: not other.gauges(), "nothing is left")


def test_those_on_the_ledger_change_entries(site: Site) -> None:
    """And keepers: the giver's drops them, the taker's holds them."""
    one, other = site.workers
    keepers = one.keep(), other.keep()
    for _ in range(3):
        site.tunnel(one, age=2.0)
    site.until(lambda: len(keepers[0].held) == 3, "the tunnels are held")
    assert one.gauges()["safe"] == 3
    answer = site.hand_over(one, other, reason="retire")
    assert (answer.count, answer.error) == (3, "")
    assert other.entries() == [State.HELD] * 3
    assert one.entries() == []
    assert len(keepers[1].held) == 3
    site.until(lambda: not keepers[0].held, "the giver's keeper has dropped them")
    assert other.gauges()["safe"] == 3
    assert "safe" not in one.gauges()
    assert migrations(other, MigrationReason.RETIRE, MigrationResult.OK) == 3


def test_a_taker_does_not_count_on_a_keeper_that_has_no_room(site: Site) -> None:
    """What its keeper does not have yet is on no ledger until it has it."""
    one, other = site.workers
    keepers = one.keep(), other.keep()
    site.tunnel(one, age=2.0)
    site.until(lambda: keepers[0].held, "it is held")
    site.until(lambda: other.worker.keeping.channel, "the taker has a keeper")
    other.keeper = None  # which reads nothing meanwhile
    channel = other.worker.keeping.channel
    assert channel is not None
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.send(channel, Drop(entries=()))
    giving, taking = OtherSide(site), OtherSide(site)
    offer = taking.takes(one)
    giving.gives(other)
    giving.say(offer, taking.fds)
    ready = giving.hear()
    assert isinstance(ready, Ready)
    assert (ready.refused, ready.entries) == ((), ((-1, 0),))
    assert other.entries() == []
    giving.say(Go())
    assert isinstance(giving.hear(), Done)
    other.keeper = keepers[1]
    site.until(lambda: keepers[1].held, "it is held there")
    giving.close()
    taking.drop()


def test_bytes_flow_on_the_ledger_too(site: Site) -> None:
    """What waits for a slow reader goes from shelf to shelf."""
    one, other = site.workers
    one.keep()
    other.keep()
    streams = []
    for seed in range(3):
        _, client, server = site.tunnel(one, buffer=4096, age=2.0)
        streams += [Stream(client, server, 400_000, seed), Stream(server, client, 400_000, seed + 100)]
    site.until(lambda: len(one.entries()) == 3, "they are on the ledger")
    moves = 0
    patience = Patience()
    while patience.lasts() and not all(stream.whole for stream in streams):
        for _ in range(30):
            for stream in streams:
                stream.go_on()
            site.turn()
        if any(tunnel.from_client.out or tunnel.from_server.out for tunnel in one.worker.tunnels.values()):
            assert site.hand_over(one, other).count == 3
            one, other = other, one
            moves += 1
    assert moves >= 3
    assert one.entries() == [State.HELD] * 3


@pytest.mark.parametrize("ends", ["client", "server"])
def test_a_half_closed_tunnel_moves(site: Site, ends: str) -> None:
    one, other = site.workers
    _, client, server = site.tunnel(one)
    quiet, speaker = (client, server) if ends == "client" else (server, client)
    quiet.sendall(b"last words")
    quiet.shutdown(socket.SHUT_WR)
    assert received(site, speaker, 10) == b"last words"
    site.until(lambda: came(speaker) == b"", "the end is passed on")
    assert site.hand_over(one, other).count == 1
    speaker.sendall(b"and an answer")
    assert received(site, quiet, 13) == b"and an answer"
    assert site.hand_over(other, one).count == 1
    speaker.close()
    site.until(lambda: not one.gauges(), "both ends are said, so the tunnel is over")
    assert came(quiet) == b""


def test_an_end_that_waits_behind_bytes_moves(site: Site) -> None:
    one, other = site.workers
    tunnel, client, server = site.tunnel(one, buffer=4096)
    data = os.urandom(100_000)
    stream = memoryview(data)
    patience = Patience()
    while patience.lasts() and stream:
        with contextlib.suppress(BlockingIOError):
            stream = stream[server.send(stream) :]
        site.turn()
        if len(stream) < 50_000 and tunnel.from_server.out:
            break
        if not tunnel.from_server.out:
            continue
        got = came(client)
        data = data[len(got or b"") :]
    server.setblocking(True)
    server.settimeout(0.01)
    while patience.lasts() and stream:  # the rest stays in the kernel
        with contextlib.suppress(TimeoutError):
            stream = stream[server.send(stream) :]
        site.turn()
        got = came(client)
        data = data[len(got or b"") :]
    server.shutdown(socket.SHUT_WR)
    assert site.hand_over(one, other).count == 1
    assert received(site, client, len(data)) == data
    site.until(lambda: came(client) == b"", "the end comes behind the bytes")
    client.close()
    site.until(lambda: not other.gauges(), "the tunnel is over")


def test_frames_are_followed_across_a_move(site: Site) -> None:
    """In the middle of a frame and of its head; messages are counted once, and the Close is known."""
    one, other = site.workers
    tunnel, client, server = site.tunnel(one, settings=WebSocketSpec(inspect=True))
    data = ws.frame(b"x" * 70_000, masked=True) + ws.frame(b"hello", masked=True)
    cuts = [0, 1, 5, 20_000, len(data) - 8, len(data) - 3, len(data)]
    for start, end in itertools.pairwise(cuts):
        client.sendall(data[start:end])
        received(site, server, end - start)
        assert site.hand_over(one, other).count == 1
        one, other = other, one
    (tunnel,) = one.worker.tunnels.values()
    assert tunnel.from_client.messages == 2
    assert tunnel.from_client.tracker is not None
    assert tunnel.from_client.tracker.at_boundary
    server.sendall(ws.close_frame(4001))
    received(site, client, 4)
    assert site.hand_over(one, other).count == 1
    (tunnel,) = other.worker.tunnels.values()
    assert (tunnel.closer, tunnel.close_code) == ("server", 4001)
    site.until(lambda: not one.worker.untold and not other.worker.untold, "all is told")
    cell = one.worker.plan.find(b"", b"/").base + RouteCell.CLIENT_MESSAGES
    told = [worker.worker.slab.cells[cell] for worker in site.workers]
    assert sum(told) == 2


# --- what breaks -------------------------------------------------------------------------------------


class OtherSide:
    """One side of a hand-over, played by the test."""

    def __init__(self, site: Site) -> None:
        self.channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        site.ends += (self.channel,)
        self.fds: list[int] = []
        self._site = site

    def takes(self, giver: DrivenWorker, slot: int = 1, **order: Any) -> Offer:
        """Has `giver` give tunnels to the test; its first offer."""
        order = {"count": 1000, "reason": "rebalance", **order}
        giver.tell(messages.Give(transfer=7, taker=slot, **order), [self.theirs.detach()])
        offer = self.hear()
        assert isinstance(offer, Offer)
        return offer

    def gives(self, taker: DrivenWorker, slot: int = 0) -> None:
        """Has `taker` take tunnels from the test."""
        taker.tell(messages.Take(transfer=7, giver=slot, reason="upgrade"), [self.theirs.detach()])

    def say(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Says `message`."""
        messages.send(self.channel, message, fds)

    def hear(self) -> Handover | None:
        """The next message; `None` at the end."""

        def next_one() -> tuple[Handover | None, list[int]] | None:
            try:
                return receive_handover(self.channel) or (None, [])
            except BlockingIOError:
                return None

        found: tuple[Handover | None, list[int]] = self._site.until(next_one, "a message comes")
        message, fds = found
        self.fds += fds
        return message

    def drop(self) -> None:
        """Closes what came."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        """Closes everything."""
        self.drop()
        self.channel.close()


def echoes(site: Site, client: socket.socket, server: socket.socket) -> bool:
    """Whether bytes pass both ways."""
    client.send(b"to the server")
    server.send(b"to the client")
    return received(site, server, 13) == b"to the server" and received(site, client, 13) == b"to the client"


def received(site: Site, sock: socket.socket, size: int) -> bytes:
    """The next `size` bytes at `sock`."""
    data = b""

    def all_came() -> bool:
        nonlocal data
        data += came(sock, size - len(data)) or b""
        return len(data) == size

    site.until(all_came, f"{size} bytes come")
    return data


def came(sock: socket.socket, most: int = 65536) -> bytes | None:
    """What came at `sock`; `None` for nothing yet."""
    try:
        return sock.recv(most)
    except BlockingIOError:
        return None


@pytest.mark.parametrize("how", ["closes", "says nothing", "refuses", "says something else"])
def test_a_giver_goes_on_where_it_can_not_give(site: Site, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.io.transfer.PATIENCE", 0.3)
    one = site.workers[0]
    _, client, server = site.tunnel(one)
    other = OtherSide(site)
    assert len(other.takes(one).tunnels) == 1
    client.send(b"meanwhile")
    site.turn()
    assert came(server) is None  # it stands still
    if how == "closes":
        other.close()
    elif how == "refuses":
        other.say(Ready(refused=(0,)))
    elif how == "says something else":
        other.say(Done())
    answer = site.answer(one, messages.Given)
    assert answer.count == 0
    assert answer.error
    assert received(site, server, 9) == b"meanwhile"
    if how != "closes":
        assert isinstance(other.hear(), End)
        assert other.hear() is None
        other.close()
    assert echoes(site, client, server)
    assert migrations(one, MigrationReason.REBALANCE, MigrationResult.REFUSED) == 1
    assert not one.worker.handovers.busy


def test_an_order_without_a_pair_is_answered(site: Site) -> None:
    one = site.workers[0]
    one.tell(messages.Give(transfer=3, taker=1, count=1, reason="retire"))
    answer = site.answer(one, messages.Given)
    assert (answer.transfer, answer.count) == (3, 0)
    assert "no pair" in answer.error
    one.tell(messages.Take(transfer=3, giver=1, reason="retire"))
    site.turn()
    assert not one.worker.handovers.busy


@pytest.mark.parametrize("how", ["End", "silence before an offer", "something else", "too few descriptors"])
def test_a_taker_lets_go_of_what_does_not_come(site: Site, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silently: the two ends, which the giver still has, notice nothing."""
    monkeypatch.setattr("workers.io.transfer.PATIENCE", 0.3)
    one, other = site.workers
    _, client, server = site.tunnel(one)
    giving, taking = OtherSide(site), OtherSide(site)
    offer = taking.takes(one)
    giving.gives(other)
    if how == "too few descriptors":
        giving.say(offer, taking.fds[:1])
    elif how != "silence before an offer":
        giving.say(offer, taking.fds)
        assert giving.hear() == Ready(refused=(), entries=((-1, 0),))
        giving.say(End() if how == "End" else Done())
    assert giving.hear() is None
    site.until(lambda: not other.worker.handovers.busy, "the taker has ended it")
    assert not other.gauges()
    taking.close()
    site.answer(one, messages.Given)
    assert echoes(site, client, server)


def test_the_tunnels_of_a_giver_that_dies_are_saved(site: Site) -> None:
    """Those on no ledger: nobody else could have them."""
    one, other = site.workers
    _, client, server = site.tunnel(one)
    giving, taking = OtherSide(site), OtherSide(site)
    offer = taking.takes(one)
    giving.gives(other)
    giving.say(offer, taking.fds)
    assert isinstance(giving.hear(), Ready)
    one.die()
    giving.close()
    taking.close()
    site.until(lambda: other.worker.tunnels, "the taker has it")
    assert echoes(site, client, server)
    assert migrations(other, MigrationReason.UPGRADE, MigrationResult.OK) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_the_ledger_says_whose_a_dead_givers_tunnels_are(site: Site, gone: bool) -> None:
    one, other = site.workers
    keeper = one.keep()
    other.keep()
    _, client, server = site.tunnel(one, age=2.0)
    site.until(lambda: keeper.held, "it is held")
    giving, taking = OtherSide(site), OtherSide(site)
    offer = taking.takes(one)
    record = offer.tunnels[0]
    assert record.entry >= 0
    giving.gives(other)
    giving.say(offer, taking.fds)
    assert isinstance(giving.hear(), Ready)
    assert other.entries() == [State.COMING]
    if gone:
        one.worker.keeping.cells[2 * record.entry] = State.GONE
    one.die()
    giving.close()
    taking.drop()
    site.until(lambda: not other.worker.handovers.busy, "the taker knows")
    assert other.entries() == ([State.HELD] if gone else [])
    assert len(other.worker.tunnels) == gone
    if gone:
        assert echoes(site, client, server)
    else:  # the keeper has it for the giver's successor, and it still stands
        assert came(client) is None


@pytest.mark.parametrize("fate", [State.HELD, State.FREE])
def test_a_taker_that_dies_at_go(site: Site, fate: State) -> None:
    """The giver does not know whether the taker's keeper has seen GONE: the taker's entry says it."""
    one, other = site.workers
    keeper = one.keep()
    _, client, server = site.tunnel(one, age=2.0)
    site.until(lambda: keeper.held, "it is held")
    taking = OtherSide(site)
    (record,) = taking.takes(one).tunnels
    cells = other.worker.keeping.cells
    cells[2 * 5], cells[2 * 5 + 1] = State.COMING, 1234
    taking.say(Ready(entries=((5, 1234),)))
    taking.close()
    answer = site.answer(one, messages.Given)
    assert (answer.count, answer.error) == (0, "the other worker is gone")
    client.send(b"meanwhile")
    for _ in range(3):
        site.turn()
    assert one.worker.keeping.area.state(record.entry) == State.GONE
    assert came(server) is None
    cells[2 * 5] = fate
    site.until(lambda: not one.worker.handovers.busy, "it is settled")
    if fate is State.HELD:
        assert not one.gauges()
    else:
        assert received(site, server, 9) == b"meanwhile"
        assert echoes(site, client, server)
        site.until(lambda: one.entries() == [State.HELD], "it is on the ledger anew")
    cells[2 * 5] = State.FREE


def test_a_taker_that_dies_after_go(site: Site) -> None:
    one, other = site.workers
    keeper = one.keep()
    site.tunnel(one, age=2.0)
    site.until(lambda: keeper.held, "it is held")
    taking = OtherSide(site)
    taking.takes(one)
    cells = other.worker.keeping.cells
    cells[2 * 5], cells[2 * 5 + 1] = State.COMING, 1234
    taking.say(Ready(entries=((5, 1234),)))
    assert isinstance(taking.hear(), Go)
    assert one.entries() == [State.GONE]
    taking.close()
    answer = site.answer(one, messages.Given)
    assert answer.count == 1
    assert not one.gauges()
    for _ in range(3):
        site.turn()
    assert one.entries() == [State.GONE]
    cells[2 * 5] = State.HELD
    site.until(lambda: not one.entries(), "the giver's entry is free again")
    cells[2 * 5] = State.FREE


@pytest.mark.parametrize("step", ["offered", "going"])
def test_a_giver_that_is_to_stop_now(site: Site, step: str) -> None:
    one = site.workers[0]
    _, client, server = site.tunnel(one)
    taking = OtherSide(site)
    taking.takes(one)
    if step == "going":
        taking.say(Ready())
        assert isinstance(taking.hear(), Go)
    one.tell(messages.Stop(grace=0))
    answer = site.answer(one, messages.Given)
    assert answer.count == (step == "going")
    assert not one.gauges()
    taking.drop()
    site.until(lambda: came(client) == b"" and came(server) == b"", "nobody has it any more")
    assert isinstance(taking.hear(), End)


def test_a_taker_that_is_to_stop_now(site: Site) -> None:
    one, other = site.workers
    _, client, server = site.tunnel(one)
    giving, taking = OtherSide(site), OtherSide(site)
    offer = taking.takes(one)
    giving.gives(other)
    giving.say(offer, taking.fds)
    assert isinstance(giving.hear(), Ready)
    other.tell(messages.Stop(grace=0))
    assert giving.hear() is None
    taking.close()
    site.answer(one, messages.Given)
    assert echoes(site, client, server)


def test_a_worker_that_leaves_takes_nothing(site: Site) -> None:
    one, other = site.workers
    _, client, server = site.tunnel(one)
    site.tunnel(other)  # so that it stays for a while
    other.tell(messages.Stop(grace=30, hand_over=True))
    answer = site.hand_over(one, other)
    assert (answer.count, answer.error) == (0, "the other worker takes no tunnels")
    assert echoes(site, client, server)
    answer = site.hand_over(other, one, reason="retire")
    assert (answer.count, answer.error) == (1, "")
    site.until(lambda: not other.gauges(), "it has none left")


def test_what_can_not_move_stays(site: Site) -> None:
    one, other = site.workers
    fixed, _, _ = site.tunnel(one)
    fixed.stay()
    closing, _, _ = site.tunnel(one, settings=WebSocketSpec(inspect=True))
    close_politely(closing, 1012, "")
    site.tunnel(one)
    assert site.hand_over(one, other).count == 1
    assert set(one.worker.tunnels.values()) == {fixed, closing}
    assert site.hand_over(one, other).count == 0


def test_no_more_go_than_were_asked_for(site: Site) -> None:
    one, other = site.workers
    made = [site.tunnel(one)[0].number for _ in range(150)]
    assert site.hand_over(one, other, count=100).count == 100
    assert list(one.worker.tunnels) == made[100:]
    assert len(other.worker.tunnels) == 100
    assert one.gauges()["tunnels"] == 50


@pytest.fixture(scope="module")
def crowd() -> Iterator[tuple[Site, DrivenWorker]]:
    with Site() as site:
        for _ in range(100):
            site.tunnel(site.workers[0])
        yield site, site.workers[0]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 700, 8_000, 32_768, 900_000]), min_size=1, max_size=100))
def test_offers_fit_whatever_clients_ask_for(crowd: tuple[Site, DrivenWorker], sizes: list[int]) -> None:
    """Every tunnel is offered once; each offer is a message that can be sent."""
    site, giver = crowd
    tunnels = list(giver.worker.tunnels.values())
    for tunnel, size in zip(tunnels, sizes, strict=False):
        tunnel.target = b"\xff" * size
    taking = OtherSide(site)
    offer: Handover | None = taking.takes(giver, count=len(tunnels))
    offered: list[int] = []
    while isinstance(offer, Offer):
        assert 0 < len(offer.tunnels) <= BATCH
        assert len(msgspec.msgpack.encode(offer)) <= messages.MAX_BYTES
        offered += [len(record.target) for record in offer.tunnels]
        taking.drop()
        # One is taken, so that the giver goes on; it is given back at the end.
        taking.say(Ready(refused=tuple(range(len(offer.tunnels)))))
        offer = taking.hear()
    taking.close()
    site.answer(giver, messages.Given)
    assert offered == [min(MAX_TARGET, len(tunnel.target)) for tunnel in tunnels[: len(offered)]]


def test_tunnels_whose_end_somebody_asked_for_stay(site: Site) -> None:
    """Those that are planned for another reason leave with the others, and are planned anew there."""
    one, other = site.workers
    made = [site.tunnel(one)[0] for _ in range(3)]
    one.worker.pacer.order(made[:1], 1001, "", 60.0)
    one.worker.pacer.plan(made[1:2], Cause("drain", 1012), 60.0)
    assert site.hand_over(one, other, reason="rebalance").count == 1
    assert list(one.worker.tunnels.values()) == made[:2]
    assert site.hand_over(one, other, reason="retire").count == 1
    assert list(one.worker.tunnels.values()) == made[:1]
    site.until(lambda: one.gauges()["paced"] == 1, "what went is not planned here any more")


def test_a_tunnel_that_awaits_a_pong_goes_last(site: Site) -> None:
    one, other = site.workers
    asked, client, server = site.tunnel(one, settings=WebSocketSpec(inspect=True, ping=0.2))
    site.until(lambda: asked.from_client.on_chunk is not None, "it is asked")
    assert site.hand_over(one, other, reason="rebalance").count == 0
    pings = [received(site, end, size) for end, size in ((client, 10), (server, 14))]
    assert [ping[0] for ping in pings] == [0x89, 0x89]
    assert site.hand_over(one, other, reason="retire").count == 1
    # An answer that the new worker did not ask for goes on, as RFC 6455 (section 5.5.3) allows.
    pong = ws.frame(pings[0][2:], ws.PONG, masked=True)
    client.send(pong)
    assert received(site, server, len(pong)) == pong


def test_a_tunnel_that_is_nobodys_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The taker died, and so did its keeper: nobody will ever say whose it is."""
    monkeypatch.setattr("workers.io.giving.IN_LIMBO", 0.3)
    one, other = site.workers
    keeper = one.keep()
    _, client, server = site.tunnel(one, age=2.0)
    site.until(lambda: keeper.held, "it is held")
    taking = OtherSide(site)
    taking.takes(one)
    cells = other.worker.keeping.cells
    cells[2 * 5], cells[2 * 5 + 1] = State.COMING, 1234
    taking.say(Ready(entries=((5, 1234),)))
    taking.close()
    site.until(lambda: not one.gauges(), "it is given up")
    site.until(lambda: came(client) == b"" and came(server) == b"", "both ends hear of it")
    assert one.entries() == []
    cells[2 * 5] = State.FREE
