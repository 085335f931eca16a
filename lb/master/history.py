"""What became of the reloads: counted, kept and logged."""

from __future__ import annotations

from lb.master.report import Outcome, ReloadReport
from workers.contract.errorlog import ErrorLog


class History:
    """The counters since the start, and the last outcome."""

    def __init__(self, log: ErrorLog) -> None:
        self._log = log
        self.restore(ReloadReport(succeeded=0, failed=0))

    def restore(self, report: ReloadReport) -> None:
        """Goes on where a predecessor ended."""
        self._succeeded = report.succeeded
        self._failed = report.failed
        self._last: Outcome | None = report.last
        self._last_success = report.last_success

    @property
    def report(self) -> ReloadReport:
        """As `lb status` shows it."""
        return ReloadReport(
            succeeded=self._succeeded,
            failed=self._failed,
            last=self._last,
            last_success=self._last_success,
        )

    def record(self, outcome: Outcome) -> None:
        """Counts and logs one more."""
        self._last = outcome
        fields = {"generation": outcome.generation, "seconds": outcome.seconds}
        if not outcome.ok:
            self._failed += 1
            for line in outcome.error.splitlines():
                self._log.error("reload failed, the old configuration serves on", **fields, error=line)
            return
        self._succeeded += 1
        self._last_success = outcome.at
        self._log.info("reload done", **fields, changes=len(outcome.changes))
        for change in outcome.changes:
            self._log.info("changed", key=change)
