"""A giver or a taker is killed between any two of its steps, and exactly one worker goes on with the tunnel.

As in `test_keeper`: a tracer counts the bytecodes that the hand-over executes, and stops the worker for good
before the n-th of them; the real keepers settle the ledger, and a real successor takes over.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import warnings
from types import FrameType
from typing import Any

import pytest

from tests.harness.workers import SNAPSHOT, DrivenWorker, Site
from tests.unit.test_keeper import Keeper, Killed, Killer
from workers.contract.entries import State
from workers.contract.messages import Reclaimed
from workers.io import adoption, giving, handover, keeping, taking, transfer
from workers.io.transfer import Transfer
from workers.io.tunnel import Tunnel

STRIDE = 1 if os.environ.get("LB_EVERY_STEP") else 83
_TRACED = {module.__file__ for module in (adoption, giving, handover, keeping, taking, transfer)}
PIECE = 150_000


class HandoverKiller(Killer):
    """Kills in the modules of the hand-over."""

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename not in _TRACED:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step


def descriptors() -> set[tuple[int, str]]:
    """The sockets of this process, and what waits for slow readers, with what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return {(fd, target) for fd, target in found if target.startswith(("socket:", "/memfd:lb-tunnel"))}


class Play:
    """A tunnel in one of two workers, with bytes that wait in both directions."""

    def __init__(self) -> None:
        self.site = Site(slots=2)
        self.keepers = [Keeper(self.site, slot) for slot in range(2)]
        for keeper, worker in zip(self.keepers, self.site.workers, strict=True):
            keeper.attend(worker, reclaim=False)
        self.site.turn()
        made = self.site.tunnel(self.site.workers[0], age=10, buffer=24_000)
        self.tunnel, self.client, self.server = made
        self.site.workers[0].worker.keeping.tick()
        assert self.tunnel.crash_safe
        self.said = {self.client: os.urandom(PIECE), self.server: os.urandom(PIECE)}
        self.unsaid = dict(self.said)
        self.heard = {self.client: b"", self.server: b""}
        for _ in range(4):
            self.push()
            self.turn()

    def push(self) -> None:
        """Sends what can be."""
        for end, data in self.unsaid.items():
            with contextlib.suppress(BlockingIOError):
                while data:
                    data = data[end.send(data) :]
            self.unsaid[end] = data

    def turn(self) -> None:
        """One turn of everybody."""
        self.site.turn()
        for keeper in self.keepers:
            keeper.keeper.turn(0)

    def hand_over(self, victim: int, killer: Killer) -> bool:
        """Lets the first worker give to the second, and one of them be killed; whether it was."""
        giver, taker = self.site.workers
        self.site.begin(giver, taker)
        for _ in range(8):
            for slot, worker in enumerate(self.site.workers):
                if slot != victim:
                    worker.turn()
                    continue
                before = descriptors()
                if self.is_killed(worker, killer):
                    self.die(worker, before, killer.at % 3)
                    return True
            for keeper in self.keepers:
                keeper.keeper.turn(0)
        return False

    @staticmethod
    def is_killed(worker: DrivenWorker, killer: Killer) -> bool:
        """Whether `worker` is killed in this turn."""
        try:
            with killer.armed():
                worker.turn()
        except Killed:
            return True
        return False

    def die(self, dead: DrivenWorker, before: set[tuple[int, str]], patience: int) -> None:
        """`dead` is gone, with the descriptors that it has got since `before`; the other one goes on for
        `patience` turns; then there is a successor."""
        for thing in gc.get_objects():
            if isinstance(thing, (Tunnel, Transfer)) and getattr(thing, "worker", None) is dead.worker:
                for name in ("client", "server_sock", "channel"):
                    if (sock := getattr(thing, name, None)) is not None:
                        sock.close()
        dead.die()
        for fd, _ in descriptors() - before:
            os.close(fd)
        dead.close()
        other = 1 - dead.slot
        for _ in range(patience):
            self.site.workers[other].turn()
            self.keepers[other].keeper.turn(0)
        self.keepers[dead.slot].settle()
        successor = DrivenWorker(self.site, dead.slot)
        self.site.workers[dead.slot] = successor
        self.keepers[dead.slot].attend(successor, reclaim=True)
        self.site.serve(successor, SNAPSHOT)
        for _ in range(1000):
            if any(isinstance(message, Reclaimed) for message in successor.said):
                return
            self.turn()
        raise AssertionError("the successor does not reclaim")

    def finish(self) -> None:
        """Relays until all has come."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.push()
            self.turn()
            for end in self.heard:
                with contextlib.suppress(BlockingIOError):
                    self.heard[end] += end.recv(1 << 16)
            if all(len(data) >= PIECE for data in self.heard.values()):
                break

    def close(self) -> None:
        """Ends everybody."""
        for worker in self.site.workers:
            worker.worker.keeping.lose()
        self.site.__exit__(None, None, None)
        for keeper in self.keepers:
            keeper.close()


@pytest.mark.interpreted
@pytest.mark.parametrize("victim", [0, 1], ids=["giver", "taker"])
def test_killed_at_any_step(victim: int) -> None:
    at, kills = 1, 0
    owners = set()
    while True:
        play = Play()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # sockets of the dead
                killed = play.hand_over(victim, HandoverKiller(at))
            if not killed:
                break
            kills += 1
            play.finish()
            there = [len(worker.worker.tunnels) for worker in play.site.workers]
            assert sorted(there) == [0, 1], (at, there)
            owners.add(there.index(1))
            assert play.heard[play.server] == play.said[play.client], at
            assert play.heard[play.client] == play.said[play.server], at
            for _ in range(200):
                entries = [worker.entries() for worker in play.site.workers]
                if sorted(entries) == [[], [State.HELD]]:
                    break
                play.turn()
            assert sorted(entries) == [[], [State.HELD]], (at, entries)
            assert not any(worker.worker.handovers.busy for worker in play.site.workers)
        finally:
            play.close()
        at += STRIDE
    assert kills > 5
    assert owners == {0, 1}
