"""`lb demo chaos`: established WebSockets through a load balancer to which everything is done that kills them
elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

from rich.console import Console
from rich.live import Live

from lb.demo.director import Director
from lb.demo.load import Account, Load, LoadError
from lb.demo.messages import Terms
from lb.demo.picture import Picture, Second, line
from lb.demo.stage import Stage, StageError

# A second, both ways, of all tunnels together: a small machine shall have time to spare.
_MESSAGES: Final = 400.0
_FASTEST: Final = 5.0  # messages a second of one tunnel, each way
_LOOK: Final = 0.1  # seconds
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_END: Final = 20.0
_EXIT_LOST: Final = 1
_EXIT_START: Final = 3
_EXIT_INTERRUPTED: Final = 130  # before there was anything to sum up


def chaos(seconds: float, tunnels: int) -> int:
    """Runs for so long, or until Ctrl-C; 1 where anything was lost, 3 where it could not start."""
    try:
        with Load() as load, Stage(load.addresses) as stage:
            return _Show(load, stage, seconds).run(tunnels)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the lines has enough, and the flush at the end shall not fail for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LoadError, StageError, OSError) as error:
        print(f"lb demo chaos: {error}", file=sys.stderr)
        return _EXIT_START


class _Show:
    """The whole of it."""

    def __init__(self, load: Load, stage: Stage, seconds: float) -> None:
        self._load = load
        self._stage = stage
        self._seconds = seconds
        self._director = Director(stage)
        self._picture = Picture(seconds)
        self._console = Console(highlight=False)
        self._told = False  # to end
        self._longest = 0.0  # of the second under way
        self._longest_ever = 0.0

    def run(self, tunnels: int) -> int:
        """Opens the tunnels, plays, and ends them. Raises `LoadError`, `StageError`."""
        self._stage.start()
        rate = min(_FASTEST, _MESSAGES / 2 / tunnels)
        packed = tunnels // 4
        print(f"opening {tunnels:,} WebSockets, {packed:,} of them compressed ...", flush=True)
        self._load.open(self._stage.port, tunnels - packed, Terms(rate=rate))
        self._load.open(self._stage.port, packed, Terms(rate=rate, deflate=True))
        with self._until_told():
            self._play()
        print("ending: both ends of every tunnel say what they have sent and seen ...", flush=True)
        self._director.finish()
        try:
            return self._sum_up(self._load.stop(_END))
        except LoadError as error:
            print(f"NOT everything went well: {error}")
            return _EXIT_LOST

    @contextlib.contextmanager
    def _until_told(self) -> Iterator[None]:
        """Ctrl-C, and what else asks for an end, lets what is under way be finished; a second one stops."""
        before = {number: signal.signal(number, self._on_signal) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            raise KeyboardInterrupt
        self._told = True

    def _play(self) -> None:
        if not self._console.is_terminal:
            for second, events in self._run_seconds():
                print(line(second, "; ".join(events)), flush=True)
            return
        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            for second, events in self._run_seconds():
                self._picture.add(second, events)
                size = self._console.size
                live.update(self._picture.draw(second, size.width, size.height), refresh=True)

    def _run_seconds(self) -> Iterator[tuple[Second, list[str]]]:
        """Each second, with what was done in it."""
        began = last = time.monotonic()
        received = self._load.account().received
        while last < began + self._seconds and not self._told:
            events = list(self._until(last + 1))
            account = self._load.account()
            self._note(account)
            now = time.monotonic()
            status = self._stage.status()
            yield (
                Second(
                    now - began,
                    account,
                    (account.received - received) / (now - last),
                    self._longest,
                    status.workers if status else (),
                ),
                events,
            )
            received, last, self._longest = account.received, now, 0.0

    def _until(self, deadline: float) -> Iterator[str]:
        """What is done until then."""
        while time.monotonic() < deadline and not self._told:
            self._stage.require_alive()
            account = self._load.account()
            self._note(account)
            if said := self._director.turn(account.open):
                yield said
            time.sleep(_LOOK)

    def _note(self, account: Account) -> None:
        self._longest = max(self._longest, account.longest)
        self._longest_ever = max(self._longest_ever, account.longest)

    def _sum_up(self, account: Account) -> int:
        done = self._director.done
        deeds = ", ".join(f"{done[name]} {name}" for name in ("kills", "reloads", "scalings", "upgrades"))
        print(f"{deeds}; longest pause {self._longest_ever * 1000:.0f} ms\n{account}")
        for trouble in self._director.troubles:
            print(trouble)
        good = account.whole and not self._director.troubles
        print("nothing was lost" if good else "NOT everything went well")
        return 0 if good else _EXIT_LOST
