"""A worker is killed between any two of its steps, and its tunnels go on with every byte.

The kill is exact: a tracer counts the bytecodes that the relay executes, and stops the worker for good before
the n-th of them. What it leaves behind is what SIGKILL would leave: the ledger and the sockets. Then the real
keeper settles the ledger, a real successor takes over, and the streams are compared.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from tests.harness import websocket as ws
from tests.harness.workers import SNAPSHOT, DrivenWorker, Site, connected
from workers import keeper as keepers
from workers.contract import messages, tunnels
from workers.contract.cells import MigrationReason, MigrationResult, RouteCell, WorkerCell
from workers.contract.entries import State
from workers.contract.messages import Keep, Reclaimed
from workers.contract.snapshot import WebSocketSpec
from workers.core.frames import FrameTracker
from workers.io import closing, estate, keeping, pipe, reclaiming, shelves, tunnel
from workers.io.sockets import adopted

# Every n-th step; all of them (some minutes) with LB_EVERY_STEP=1.
STRIDE = 1 if os.environ.get("LB_EVERY_STEP") else 61
_TRACED = {module.__file__ for module in (pipe, keeping, shelves, estate, tunnel, closing, reclaiming)}
FRAME = ws.frame(b"balancer", ws.PING, masked=True)


class Killed(BaseException):
    """Passes every handler, as SIGKILL does."""


class Killer:
    """Kills before the n-th bytecode of the traced modules; 0 counts only."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.count = 0

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in _TRACED:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, _frame: FrameType, event: str, _arg: Any) -> Callable[..., Any]:
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                raise Killed
        return self._step

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)


class Keeper:
    """The real one, driven by the test, which is its master."""

    def __init__(self, site: Site, slot: int = 0) -> None:
        self.channel, theirs = messages.pair()
        self.keeper = keepers.Keeper(slot, theirs, site.ledger)

    def attend(self, worker: DrivenWorker, *, reclaim: bool) -> None:
        ours, theirs = messages.pair()
        with ours, theirs:
            messages.send(self.channel, tunnels.Attend(), [ours.fileno()])
            messages.send(worker.channel, Keep(reclaim=reclaim), [theirs.fileno()])
        self.keeper.turn(0)

    def settle(self) -> tunnels.Settled:
        messages.send(self.channel, tunnels.Settle())
        while True:
            self.keeper.turn(0)
            with contextlib.suppress(BlockingIOError):
                received = tunnels.receive_from_keeper(self.channel)
                assert received is not None and isinstance(received[0], tunnels.Settled)
                return received[0]

    def die(self) -> None:
        """As if it were killed: every descriptor is closed."""
        for held in self.keeper._held.values():
            held.close()
        for channel in (self.keeper._worker, self.keeper._master, self.channel):
            if channel is not None:
                channel.close()

    def close(self) -> None:
        self.keeper.close()
        self.channel.close()


class Play:
    """A tunnel with its two ends, and all that was said and heard."""

    def __init__(self, buffer: int | None = None, *, inspect: bool = True) -> None:
        self.site = Site(slots=1)
        self.worker = self.site.workers[0]
        self.keeper = Keeper(self.site)
        self.keeper.attend(self.worker, reclaim=False)
        self.site.turn()
        self.tunnel, self.client, self.server = self.site.tunnel(
            self.worker, age=10, buffer=buffer, settings=WebSocketSpec(inspect=inspect)
        )
        self.worker.worker.keeping.tick()
        assert self.tunnel.crash_safe
        self.said: dict[socket.socket, bytes] = {self.client: b"", self.server: b""}
        self.heard: dict[socket.socket, bytes] = {self.client: b"", self.server: b""}
        self._unsaid: dict[socket.socket, bytes] = {self.client: b"", self.server: b""}
        self.turn()

    def say(self, end: socket.socket, data: bytes) -> None:
        """Sends `data` from `end`, as soon as there is room."""
        self.said[end] += data
        self._unsaid[end] += data
        self._push()

    def _push(self) -> None:
        for end, data in self._unsaid.items():
            with contextlib.suppress(BlockingIOError):
                while data:
                    data = data[end.send(data) :]
            self._unsaid[end] = data

    def hear(self, end: socket.socket, most: int = 1 << 20) -> None:
        """Receives what is there, up to `most` bytes."""
        with contextlib.suppress(BlockingIOError):
            while most > 0 and (data := end.recv(most)):
                self.heard[end] += data
                most -= len(data)

    def turn(self) -> None:
        """One turn of everybody."""
        self._push()
        self.site.turn()
        self.keeper.keeper.turn(0)

    def block(self) -> None:
        """Relays until the server takes no more of the client's words."""
        for _ in range(100):
            self.turn()
            if self.tunnel.from_client.out:
                return
        raise AssertionError("the server takes everything")

    def die(self) -> None:
        """The worker is gone; a successor takes over."""
        dead = self.worker
        dead.die()
        if (channel := dead.worker.keeping.channel) is not None:
            channel.close()
        dead.close()
        settled = self.keeper.settle()
        assert settled == tunnels.Settled(held=1)
        successor = DrivenWorker(self.site, 0)
        self.site.workers[0] = self.worker = successor
        self.keeper.attend(successor, reclaim=True)
        self.site.serve(successor, SNAPSHOT)
        reclaimed = self.answer()
        assert reclaimed == Reclaimed(restored=1, closed=0)
        [self.tunnel] = successor.worker.tunnels.values()
        assert successor.entries() == [State.HELD]

    def answer(self) -> Any:
        for _ in range(1000):
            self.turn()
            for message in self.worker.said:
                if isinstance(message, Reclaimed):
                    return message
        raise AssertionError("the successor does not reclaim")

    def finish(self) -> None:
        """Relays until both ends have heard what the other has said."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.turn()
            self.hear(self.client)
            self.hear(self.server)
            if len(self.heard[self.server]) >= len(self.said[self.client]) and (
                len(self.heard[self.client]) >= len(self.said[self.server])
            ):
                break
        self.turn()
        self.hear(self.client)
        self.hear(self.server)

    def counted(self) -> tuple[int, int]:
        """What the scoreboard has of bytes from the client and from the server, of both workers."""
        for stream in (self.tunnel.from_client, self.tunnel.from_server):
            stream.tell()
        slab = self.worker.worker.slab
        base = slab.route_base(self.tunnel.route.spec.slot)
        return slab.cells[base + RouteCell.CLIENT_BYTES], slab.cells[base + RouteCell.SERVER_BYTES]

    def close(self) -> None:
        """Ends everybody."""
        self.worker.worker.keeping.lose()
        self.site.__exit__(None, None, None)
        self.keeper.close()


def frames(*sizes: int, masked: bool = True) -> bytes:
    """Binary frames of these payload sizes, of bytes that are like no others."""
    return b"".join(ws.frame(os.urandom(size), masked=masked) for size in sizes)


# --- what happens when the worker is killed --------------------------------------------------------------


def chunks(play: Play) -> None:
    """Messages of all sizes, both ways at once."""
    play.say(play.client, frames(5, 300, 70_000))
    play.turn()
    play.say(play.server, frames(90, 66_000, masked=False))
    play.say(play.client, frames(64))
    play.turn()
    play.turn()


def cut_heads(play: Play) -> None:
    """Frames whose heads come in pieces."""
    data = frames(5, 300, 70_000)
    for start, end in (
        (0, 1),
        (1, 3),
        (3, 12),
        (12, 15),
        (15, 313),
        (313, 321),
        (321, 330),
        (330, len(data)),
    ):
        play.say(play.client, data[start:end])
        play.turn()


def slow_reader(play: Play) -> None:
    """More than the sockets take, and a reader who takes it in small pieces."""
    play.say(play.client, frames(90_000, 100, 120_000, 9))
    for _ in range(40):
        play.turn()
        play.hear(play.server, 9000)


def half_closed(play: Play) -> None:
    """The client ends its direction while its words wait, and the server goes on."""
    play.say(play.client, frames(30_000))
    play.turn()
    play.hear(play.server, 1000)
    with contextlib.suppress(OSError):
        if not play._unsaid[play.client]:
            play.client.shutdown(socket.SHUT_WR)
    for _ in range(12):
        play.turn()
        play.hear(play.server, 8000)
        play.say(play.server, frames(70, masked=False))


def own_frames(play: Play) -> None:
    """A frame of the balancer's own, with nothing before it."""
    play.say(play.client, frames(500))
    play.turn()
    play.tunnel.from_client.inject(FRAME)
    play.turn()
    play.say(play.client, frames(70))
    play.turn()


def own_frames_behind(play: Play) -> None:
    """The same behind what waits for a slow reader."""
    play.say(play.client, frames(60_000))
    for _ in range(3):
        play.turn()
    if play.tunnel.open and play.tunnel.from_client.tracker and play.tunnel.from_client.tracker.at_boundary:
        play.tunnel.from_client.inject(FRAME)
    for _ in range(20):
        play.turn()
        play.hear(play.server, 9000)


def swallowed(play: Play) -> None:
    """A pong for the balancer, between two messages."""
    play.say(play.client, frames(70))
    play.turn()
    source = play.tunnel.from_client
    source.pause()
    play.client.sendall(FRAME)
    source.swallow(len(FRAME))
    source.resume()
    play.say(play.client, frames(80))
    play.turn()


def check_frames(tracker: FrameTracker | None, data: bytes, *, lost_is_fine: bool) -> None:
    """Whether `tracker` stands where one stands that has seen all of `data`. (Killed while the beginning of a
    head was being written down, it is lost, and knows it.)"""
    assert tracker is not None
    if lost_is_fine and tracker.lost:
        return
    other = FrameTracker()
    other.feed(data, 0, len(data))
    assert (tracker.at_boundary, tracker.left, tracker.head) == (other.at_boundary, other.left, other.head)


def without(data: bytes, frame: bytes) -> bytes:
    """`data` without `frame`, which may be in it once."""
    assert data.count(frame) <= 1
    return data.replace(frame, b"")


CASES: dict[str, tuple[Callable[[Play], None], int | None]] = {
    "chunks": (chunks, None),
    "cut-heads": (cut_heads, None),
    "slow-reader": (slow_reader, 24_000),
    "half-closed": (half_closed, 4096),
    "own-frames": (own_frames, None),
    "own-frames-behind": (own_frames_behind, 4096),
    "swallowed": (swallowed, None),
}


def play_until(act: Callable[[Play], None], buffer: int | None, at: int) -> tuple[Play, bool]:
    """The play, and whether the worker was killed in it."""
    play = Play(buffer)
    killer = Killer(at)
    try:
        with killer.armed():
            act(play)
    except Killed:
        return play, True
    return play, False


@pytest.mark.interpreted
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_step(case: str) -> None:
    act, buffer = CASES[case]
    at, kills = 1, 0
    while True:
        play, killed = play_until(act, buffer, at)
        try:
            if not killed:
                break
            kills += 1
            play.die()
            play.say(play.client, frames(33)) if case != "half-closed" else None
            play.finish()
            assert play.tunnel.open, (case, at)
            assert without(play.heard[play.server], FRAME) == play.said[play.client], (case, at)
            assert play.heard[play.client] == play.said[play.server], (case, at)
            assert play.counted() == (play.tunnel.from_client.total, play.tunnel.from_server.total), (
                case,
                at,
            )
            for end, stream in (
                (play.client, play.tunnel.from_client),
                (play.server, play.tunnel.from_server),
            ):
                check_frames(stream.tracker, play.said[end], lost_is_fine=case == "cut-heads")
        finally:
            play.close()
        at += STRIDE
    assert kills > 5


def test_what_waits_is_inherited_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No successor needs room for what its predecessor had; what nobody has any more takes no memory."""
    monkeypatch.setattr(shelves, "SHELVES", 1)
    play = Play(4096)
    try:
        play.say(play.client, frames(60_000))
        for _ in range(3):
            play.block()
            assert play.tunnel.crash_safe
            play.die()
        play.finish()
        assert play.heard[play.server] == play.said[play.client]
        before = os.fstat(play.site.ledger.fd).st_blocks
        play.die()
        assert os.fstat(play.site.ledger.fd).st_blocks < before
    finally:
        play.close()


@pytest.mark.parametrize("dies", [False, True])
def test_a_worker_without_tunnels_leaves_no_bytes_in_memory(dies: bool) -> None:
    play = Play(4096)
    try:
        play.say(play.client, frames(60_000))
        play.block()
        play.finish()
        play.tunnel.stop()
        before = os.fstat(play.site.ledger.fd).st_blocks
        if dies:
            play.worker.die()
            assert play.keeper.settle().held == 0
        play.worker.close()
        assert os.fstat(play.site.ledger.fd).st_blocks < before
    finally:
        play.close()


def test_bytes_for_which_no_shelf_is_free_are_not_called_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "SHELVES", 0)
    play = Play(4096)
    try:
        assert play.tunnel.crash_safe
        play.say(play.client, frames(60_000))
        play.block()
        assert not play.tunnel.crash_safe
    finally:
        play.close()


def test_a_shelf_is_free_when_all_of_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a keeper puts onto a shelf finds one where none is in use any more."""
    monkeypatch.setattr(estate, "SHELVES", 1)
    play = Play(4096)
    try:
        play.say(play.client, frames(60_000))
        play.block()
        play.finish()
        play.say(play.client, frames(70))
        play.tunnel.from_client.receive(1000)
        play.die()
        play.finish()
        assert play.heard[play.server] == play.said[play.client]
    finally:
        play.close()


def test_a_chunk_in_flight_goes_onto_a_shelf_of_its_own() -> None:
    """While what waits for a slow reader lies on the first one."""
    play = Play(4096)
    try:
        play.say(play.client, frames(60_000))
        play.block()
        play.say(play.server, frames(70, masked=False))
        play.tunnel.from_server.receive(1000)
        play.die()
        play.finish()
        assert play.heard[play.server] == play.said[play.client]
        assert play.heard[play.client] == play.said[play.server]
    finally:
        play.close()


def test_a_tunnel_that_finds_the_ledger_full_comes_onto_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_AGAIN", 0.0)
    play = Play()
    try:
        kept = play.worker.worker.keeping
        with monkeypatch.context() as full:
            full.setattr(kept.area, "entries", 1)
            made, _, _ = play.site.tunnel(play.worker, age=10)
            kept.tick()
            before = made.crash_safe
        kept.tick()
        assert (before, made.crash_safe) == (False, True)
    finally:
        play.close()


# --- when the keeper dies, too ---------------------------------------------------------------------------


def successor_of(play: Play) -> DrivenWorker:
    """The worker is dead, and its successor is about to ask the keeper."""
    play.worker.die()
    play.worker.close()
    assert play.keeper.settle().held == 1
    successor = DrivenWorker(play.site, 0)
    play.site.workers[0] = play.worker = successor
    play.keeper.attend(successor, reclaim=True)
    return successor


def unproved(worker: DrivenWorker) -> int:
    """How many tunnels were given up after a crash."""
    crash = WorkerCell.MIGRATIONS + MigrationReason.CRASH * MigrationResult.WIDTH
    return worker.worker.slab.cells[crash + MigrationResult.UNPROVED]


def another_keeper(play: Play) -> None:
    """The keeper died, and the master forks another one."""
    play.keeper.die()
    play.keeper = Keeper(play.site)
    play.keeper.attend(play.worker, reclaim=False)


def test_what_a_keeper_gave_back_before_it_died_is_taken_over() -> None:
    play = Play()
    try:
        play.say(play.client, frames(70))
        play.turn()
        successor = successor_of(play)
        play.site.serve(successor, SNAPSHOT)
        play.keeper.keeper.turn(0)
        another_keeper(play)  # and nobody has read what the first one gave back
        assert play.answer() == Reclaimed(restored=1, closed=0)
        play.turn()
        [play.tunnel] = successor.worker.tunnels.values()
        play.site.until(lambda: play.tunnel.crash_safe, "the other keeper has it")
        play.die()
        play.say(play.client, frames(50))
        play.finish()
        assert play.heard[play.server] == play.said[play.client]
    finally:
        play.close()


@pytest.mark.parametrize("serves", [False, True])
def test_what_is_lost_with_a_keeper_is_counted(serves: bool) -> None:
    play = Play()
    try:
        successor = successor_of(play)
        play.site.turn()
        if serves:
            play.site.serve(successor, SNAPSHOT)
        another_keeper(play)
        play.site.turn()
        if not serves:
            assert not any(isinstance(message, Reclaimed) for message in successor.said)
            play.site.serve(successor, SNAPSHOT)
        assert play.answer() == Reclaimed(restored=0, closed=1)
        assert unproved(successor) == 1
        assert successor.entries() == []
    finally:
        play.close()


@contextlib.contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """This process may open so many descriptors more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    gaps = 0
    free = -1
    while gaps < descriptors + 1:
        free += 1
        try:
            os.fstat(free)
        except OSError:
            gaps += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_only_those_end_for_which_no_descriptors_are_left() -> None:
    """And their ends don't take it for an end in order."""
    play = Play()
    try:
        successor = successor_of(play)
        play.site.serve(successor, SNAPSHOT)
        play.keeper.keeper.turn(0)
        with room_for(1):
            successor.turn()
        assert play.answer() == Reclaimed(restored=0, closed=1)
        assert unproved(successor) == 1
        play.turn()
        for end in (play.client, play.server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        assert successor.entries() == []
        play.tunnel, play.client, play.server = play.site.tunnel(successor, age=10)
        play.site.until(lambda: play.tunnel.crash_safe, "the keeper has it")
    finally:
        play.close()


def test_nobody_takes_the_descriptors_of_tunnels_that_come_back() -> None:
    """A connection that comes before they are back counts as if they were."""
    play = Play()
    try:
        successor = successor_of(play)
        play.site.serve(successor, SNAPSHOT)
        listener = successor.worker.listeners["public"]
        listener.most = 1
        ours, theirs = connected()
        with ours:
            listener.accepted(adopted(theirs.detach()), "")
            assert ours.recv(1) == b""
        assert play.answer() == Reclaimed(restored=1, closed=0)
        listener.most = 2
        ours, theirs = connected()
        with ours:
            listener.accepted(adopted(theirs.detach()), "")
            assert len(successor.worker.clients) == 1
    finally:
        play.close()


# --- and while it closes a tunnel politely ---------------------------------------------------------------


class Ending:
    """A tunnel that is closed in the middle of a frame, while both ends go on talking for a while."""

    def __init__(self, play: Play) -> None:
        self.play = play
        message = frames(300)
        play.say(play.client, frames(500) + message[:100])
        play.say(play.server, frames(90, masked=False))
        play.turn()
        play.hear(play.server)
        late = [frames(60), frames(40, masked=False), ws.close_frame(1001)]
        self._steps: list[Callable[[], None]] = [
            self.close,
            lambda: play.say(play.client, message[100:]),
            lambda: play.client.sendall(late[0]),
            lambda: play.server.sendall(late[1]),
            lambda: play.server.sendall(late[2]),
        ]

    def close(self) -> None:
        """The order, which is given again where the worker died before it took notice."""
        closing.close_politely(self.play.tunnel, 1001, "")

    def go_on(self) -> None:
        """What there is still to do."""
        while self._steps:
            self._steps.pop(0)()
            self.play.turn()

    def finish(self) -> None:
        """The client says its Close, too; both hear the end, and nothing but what they shall hear."""
        play = self.play
        if play.tunnel.closing is None:
            self.close()
        self.go_on()
        play.client.sendall(ws.close_frame(1001, masked=True))
        play.finish()
        if play.tunnel.open:  # that an answer had come was not written down yet
            play.tunnel.on_deadline()
        assert not play.tunnel.open
        for end, other, size in ((play.client, play.server, 4), (play.server, play.client, 8)):
            play.hear(end)
            assert end.recv(1) == b""
            assert play.heard[end][:-size] == play.said[other]
            assert play.heard[end][-size : -size + 2] == ws.close_frame(1001, masked=size > 4)[:2]


@pytest.mark.interpreted
def test_killed_at_any_step_of_a_polite_close() -> None:
    at, kills = 1, 0
    while True:
        play = Play()
        try:
            ending = Ending(play)
            killed = False
            try:
                with Killer(at).armed():
                    ending.go_on()
            except Killed:
                killed = True
                kills += 1
                play.die()
            ending.finish()
        except BaseException as error:
            error.add_note(f"killed at {at}")
            raise
        finally:
            play.close()
        if not killed:
            break
        at += STRIDE
    assert kills > 5
