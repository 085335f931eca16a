"""What `lb demo chaos` does to its load balancer, one after the other."""

from __future__ import annotations

import itertools
import random
import subprocess
import time
from collections import Counter
from typing import Final

from lb.demo.stage import MOST_WORKERS, Stage

# What comes round and round. Between two of them all tunnels are back with a worker and a keeper.
SCRIPT: Final = ("kill", "reload", "kill", "resize", "kill", "upgrade", "kill", "resize")
PAUSE: Final = 2.0  # seconds between two
_PATIENCE: Final = 15.0  # for everything to be in its place again


class Director:
    """Call `turn` often: it does the next thing when it is time, and says what."""

    def __init__(self, stage: Stage, seed: int | None = None) -> None:
        self._stage = stage
        self._random = random.Random(seed)
        self._script = itertools.cycle(SCRIPT)
        self._next = time.monotonic() + PAUSE
        self._running: subprocess.Popen[bytes] | None = None
        self._command = ""
        self.done: Counter[str] = Counter()
        self.troubles: list[str] = []

    def turn(self, tunnels: int) -> str:
        """What was begun, or how a command ended; mostly "". `tunnels` are open now."""
        if self._running is not None:
            return self._ended()
        now = time.monotonic()
        if now < self._next or not (self._settled(tunnels) or now > self._next + _PATIENCE):
            return ""
        said: str = getattr(self, f"_{next(self._script)}")()
        self._next = time.monotonic() + PAUSE
        return said

    def finish(self) -> None:
        """Waits for a command that still runs."""
        if self._running is not None:
            self._running.wait(60)
            self._ended()

    def _settled(self, tunnels: int) -> bool:
        """Whether as many workers serve as shall be, and every tunnel would outlive its own."""
        status = self._stage.status()
        if status is None:
            return False
        states = [worker.state for worker in status.workers]
        held = sum(worker.tunnels_held for worker in status.workers)
        return states == ["serving"] * self._stage.workers and held >= tunnels

    # --- the script ------------------------------------------------------------------------------

    def _kill(self) -> str:
        workers = self._stage.serving()
        if not workers:
            return ""
        worker = self._random.choice([one for one in workers if one.tunnels] or workers)
        self._stage.kill(worker)
        self.done["kills"] += 1
        return f"kill -9 worker {worker.slot} (pid {worker.pid}, {worker.tunnels} tunnels)"

    def _resize(self) -> str:
        more = self._stage.workers < MOST_WORKERS
        self._stage.resize(more)
        self.done["scalings"] += 1
        return f"{'TTIN' if more else 'TTOU'}: {self._stage.workers} workers"

    def _reload(self) -> str:
        self._running = self._stage.reload()
        self._command = "reload"
        return f'lb reload (balance = "{self._stage.balance}")'

    def _upgrade(self) -> str:
        self._running = self._stage.command("upgrade")
        self._command = "upgrade"
        return "lb upgrade"

    def _ended(self) -> str:
        """How the command that runs ended; "" while it does not, or has done what it should."""
        assert self._running is not None and self._running.stderr is not None
        code = self._running.poll()
        if code is None:
            return ""
        said = self._running.stderr.read().decode("utf-8", "replace").strip()
        self._running.stderr.close()
        self._running = None
        self._next = time.monotonic() + PAUSE
        if not code:
            self.done[f"{self._command}s"] += 1
            return ""
        self.troubles.append(f"lb {self._command} failed: {said.splitlines()[-1] if said else code}")
        return self.troubles[-1]
