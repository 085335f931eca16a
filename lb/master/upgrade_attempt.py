"""The trial of a new release as the running master sees it: a child that executes what is installed, under
a deadline, and whose words are kept within bounds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from lb.master import signals, spawn
from lb.master.loop import READ, Loop, Timer
from lb.master.supervision import cause_of_death
from lb.master.upgrade_launch import Launch, LaunchError, Order
from lb.master.upgrade_state import UpgradeState
from workers.contract.snapshot import DECODE_ERRORS

DEADLINE: Final = 20.0
MAX_OUTPUT: Final = 8192  # bytes of what it printed last
MAX_REPORT: Final = 65_536
_MAX_LINES: Final = 10
_PIPE: Final = 65_536  # bytes that a pipe holds (pipe(7))


class TrialReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a trial ended, as it says itself: one JSON object. `printed`: what it printed says more."""

    ok: bool
    version: str = ""
    error: str = ""
    printed: bool = False


class Pipe:
    """What comes out of a pipe, of which the last `most` bytes are kept."""

    def __init__(self, loop: Loop, most: int) -> None:
        self._loop = loop
        self._most = most
        self.data = b""
        self.fd, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.writing, True)
        loop.watch(self.fd, READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            data = os.read(self.fd, _PIPE)
        except BlockingIOError:
            return
        self.data = (self.data + data)[-self._most :]
        if not data:
            self._loop.forget(self.fd)

    def close_writing(self) -> None:
        """The child has its own."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        """Takes what is in it now: whatever the trial has left running may write on and on."""
        self.close_writing()
        self._ready(READ)
        self._loop.forget(self.fd)
        os.close(self.fd)


class Attempt:
    """One trial. `done` is called once with what came of it, from `reap` or never."""

    def __init__(self, loop: Loop, done: Callable[[TrialReport], None], deadline: float = DEADLINE) -> None:
        self.pid = 0
        self._loop = loop
        self._done = done
        self._deadline = deadline
        self._late = False
        self._report: Pipe
        self._output: Pipe
        self._timer: Timer | None = None

    def start(self, launch: Launch, packed: int, state: UpgradeState) -> None:
        """Forks it; `packed` has `state`. Raises `OSError`; nothing is left over then."""
        self._output = Pipe(self._loop, MAX_OUTPUT)
        try:
            self._report = Pipe(self._loop, MAX_REPORT)
        except OSError:
            self._output.close()
            raise
        kept = (packed, self._report.writing, state.scoreboard, state.ledger)
        order = Order("trial", packed, self._report.writing)
        try:
            with signals.blocked() as unblock:
                self.pid = os.fork()
                if self.pid == 0:
                    self._be_trial(launch, order, kept, unblock)
        except OSError:
            self._close()
            raise
        with contextlib.suppress(OSError):  # it does so itself, too: whoever comes first
            os.setpgid(self.pid, self.pid)
        self._report.close_writing()
        self._output.close_writing()
        self._timer = self._loop.later(self._deadline, self._missed_deadline)

    def _be_trial(
        self, launch: Launch, order: Order, kept: tuple[int, ...], unblock: Callable[[], None]
    ) -> NoReturn:
        """Never returns: the child becomes the new release, or says why not."""
        try:
            signals.reset_in_child()
            os.setpgid(0, 0)
            spawn.end_with_parent()
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0)
            os.dup2(self._output.writing, 1)
            os.dup2(self._output.writing, 2)
            spawn.close_all_but({0, 1, 2, *kept})
            unblock()
            launch.execute(order, kept)
        except LaunchError as error:
            os.write(order.report, msgspec.json.encode(TrialReport(ok=False, error=str(error))))
        finally:
            os._exit(1)

    def reap(self) -> None:
        """Takes notice of its end."""
        if not self.pid or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        # Its own children first: as long as it was not waited for, the number of its group is its own.
        self.kill()
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self._close()
        self._done(self._outcome(cause_of_death(status)))

    def kill(self) -> None:
        """Ends it and all that it has started; it is still to be reaped."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.kill(self.pid, signal.SIGKILL)

    def _missed_deadline(self) -> None:
        self._late = True
        self.kill()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._report.close()
        self._output.close()

    def _outcome(self, cause: str) -> TrialReport:
        if self._late:
            return self._failed(f"the new release did not get ready within {self._deadline:g}s")
        try:
            report = msgspec.json.decode(self._report.data, type=TrialReport)
        except DECODE_ERRORS:
            return self._failed(f"the new release does not start ({cause})")
        return self._failed(report.error) if report.printed else report

    def _failed(self, why: str) -> TrialReport:
        """`why`, with what it printed last: the reason is in the last line of a traceback."""
        text = self._output.data.decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Traceback ")]
        if lines:
            why = f"{why}: {lines[-1].strip()}"
        return TrialReport(ok=False, error="\n".join([why, *lines[-_MAX_LINES:-1]]))
