"""The upgrade in place: the code on disk takes the place of the running one, and no connection ends by it.

::

    IDLE --request--> SETTLING --at rest--> TRYING --it could take over--> EXECUTING --(the new release)
                         |                    |                              |
                         +------ failed ------+------------ failed ----------+--> IDLE, nothing has changed

`upgrade_attempt` runs the trial, `upgrade_export` collects what goes along, and in the new release
`upgrade_resume` takes it over, and tells whoever waits how it ended.
"""

from __future__ import annotations

import enum
import os
import signal
import time
from collections.abc import Callable
from typing import Final

import msgspec

from lb.master.command import Respond
from lb.master.instance import Instance
from lb.master.loop import Loop
from lb.master.report import Reply, UpgradeOutcome, UpgradeReport
from lb.master.upgrade_attempt import Attempt, TrialReport
from lb.master.upgrade_export import COMMAND, export, unrest
from lb.master.upgrade_launch import Launch, LaunchError, Order
from lb.master.upgrade_state import UpgradeState, pack
from workers.contract.errorlog import ErrorLog

GOES_ON: Final = "an upgrade goes on: try again when it is over"
REST_DEADLINE: Final = 15.0
_LOOK_AGAIN: Final = 0.05


class Step(enum.Enum):
    """Where the upgrade stands."""

    IDLE = "idle"
    SETTLING = "settling"
    TRYING = "trying"
    EXECUTING = "executing"  # in the successor, too, until its workers serve


class Upgrader:
    """Takes requests at any time, and does one at a time."""

    def __init__(self, loop: Loop, log: ErrorLog, instance: Instance, launch: Launch | None) -> None:
        """`launch` says how this process was started; `None` where it can't be started again."""
        self.step = Step.IDLE
        self.report = UpgradeReport()
        self.on_start: Callable[[], None] = lambda: None
        self.on_end: Callable[[UpgradeOutcome], None] = lambda _outcome: None
        self._loop = loop
        self._log = log
        self._instance = instance
        self._launch = launch
        self._attempt: Attempt | None = None
        self._replies: list[Respond] = []
        self._began = 0.0
        self._rest_by = 0.0
        self._before = self._after = ""
        self._executed = False  # whether this is the successor
        self._lacking = ""  # what the successor can't do, though its workers serve
        self._closed = ""  # why none is possible any more

    @property
    def upgrading(self) -> bool:
        """Whether one goes on."""
        return self.step is not Step.IDLE

    # --- requests --------------------------------------------------------------------------------------

    def request(self, respond: Respond | None = None) -> None:
        """Asks for an upgrade; `respond` gets the outcome, in the successor where there is one."""
        why = self._refusal()
        if why:
            self._log.warning("upgrade refused", reason=why)
            if respond is not None:
                respond(Reply(error=why, pid=os.getpid()))
            return
        self._replies = [] if respond is None else [respond]
        self._before, self._after, self._executed = self._instance.version, "", False
        self._began = time.monotonic()
        self._log.info("upgrade begins", version=self._instance.version)
        self.on_start()
        self._instance.reloader.pause(GOES_ON)
        self._settle(self._try)

    def _refusal(self) -> str:
        fleet = self._instance.fleet
        if self._launch is None:
            return "this lb was not started by lb run: it can't start itself anew"
        if self._closed or self.upgrading:
            return self._closed or GOES_ON
        free = self._instance.ground.board.capacity.workers - len(fleet.workers)
        if free < len(fleet.active):
            return (
                f"{len(fleet.workers)} workers are there, and there is no room for as many new ones: try"
                " again when those that are leaving have left"
            )
        return ""

    def close(self, why: str) -> None:
        """Ends what is going on; none is possible any more."""
        self._closed = why
        if self._attempt is not None:
            self._attempt.kill()
        if self.upgrading:
            self._fail(why)

    def reap(self) -> None:
        """Takes notice of the end of a trial."""
        if self._attempt is not None:
            self._attempt.reap()

    # --- step by step ----------------------------------------------------------------------------------

    def _settle(self, then: Callable[[], None]) -> None:
        """Calls `then` as soon as nothing is half done."""
        self.step = Step.SETTLING
        self._rest_by = time.monotonic() + REST_DEADLINE
        self._look(then)

    def _look(self, then: Callable[[], None]) -> None:
        if self.step is not Step.SETTLING:
            return
        why = self._unrest()
        if not why:
            then()
        elif time.monotonic() < self._rest_by:
            self._loop.later(_LOOK_AGAIN, lambda: self._look(then))
        else:
            self._fail(f"{why}, for {REST_DEADLINE:g}s: try again when that is over")

    def _unrest(self) -> str:
        command = self._instance.command
        if why := unrest(self._instance):
            command.resume()
            return why
        # Who asks now waits until this is over: somebody who asks all the time would hold it up for ever.
        command.pause()
        return "another command is being served" if command.waiting(COMMAND) is None else ""

    def _try(self) -> None:
        assert self._launch is not None
        self.step = Step.TRYING
        self._instance.command.resume()
        attempt = Attempt(self._loop, self._tried)
        try:
            state = export(self._instance, self.report, self._began)
            packed = pack(state)
            try:
                attempt.start(self._launch, packed, state)
            finally:
                os.close(packed)
        except OSError as error:
            self._fail(f"no trial of the new release: {error}")
            return
        self._attempt = attempt

    def _tried(self, report: TrialReport) -> None:
        self._attempt = None
        if self._closed:
            return
        self._after = report.version
        if not report.ok:
            self._fail(report.error)
            return
        self._log.info("the new release could take over", version=report.version)
        self._settle(self._execute)

    def _execute(self) -> None:
        """From here on, all that is known is what `export` says."""
        assert self._launch is not None
        self.step = Step.EXECUTING
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            mask = tuple(sorted(int(number) for number in before))
            state = export(self._instance, self.report, self._began)
            packed = pack(msgspec.structs.replace(state, signal_mask=mask))
            self._log.info("executing the new release", version=self._after)
            self._log.flush()
            try:
                self._launch.execute(Order("resume", packed), [packed, *state.descriptors()])
            finally:
                os.close(packed)
        except (OSError, LaunchError) as error:
            self._fail(str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # --- the end ---------------------------------------------------------------------------------------

    def resume(self, state: UpgradeState, replies: list[Respond], trouble: str) -> None:
        """In the successor: goes on where the predecessor has executed it, with those who wait. `trouble`
        says why the configuration file is not what is served."""
        self.step = Step.EXECUTING
        self.report = state.upgrades
        self._began, self._before, self._after = state.began, state.version, self._instance.version
        self._replies = replies
        self._executed = True
        if trouble:
            self._lacking = f"it serves what was served before, the configuration can't be: {trouble}"

    def succeed(self) -> None:
        """In the successor: the new workers serve, be it what was served before."""
        self._finish(self._lacking)

    def fail_after(self, error: str) -> None:
        """In the successor: the new workers don't serve (yet)."""
        self._finish("; ".join(filter(None, (error, self._lacking))))

    def _fail(self, error: str) -> None:
        """Nothing has changed."""
        if not self._closed:
            self._instance.reloader.open()
        self._finish(error)

    def _finish(self, error: str) -> None:
        self.step = Step.IDLE
        self._instance.command.resume()
        outcome = UpgradeOutcome(
            ok=not error,
            before=self._before,
            after=self._after,
            executed=self._executed,
            error=error,
            seconds=round(time.monotonic() - self._began, 3),
            at=time.time(),
        )
        self._record(outcome)
        self.on_end(outcome)
        replies, self._replies = self._replies, []
        for respond in replies:
            respond(Reply(upgrade=outcome, pid=os.getpid()))

    def _record(self, outcome: UpgradeOutcome) -> None:
        report = self.report
        self.report = UpgradeReport(
            succeeded=report.succeeded + outcome.ok, failed=report.failed + (not outcome.ok), last=outcome
        )
        fields = {"before": outcome.before, "after": outcome.after, "seconds": outcome.seconds}
        if outcome.ok:
            self._log.info("upgraded", **fields)
            return
        first, *others = outcome.error.splitlines()
        self._log.error("upgrade failed", **fields, error=first)
        for line in others:
            self._log.error("upgrade failed, more about it", text=line)
