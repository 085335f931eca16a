"""What the control process found becomes what the workers serve: in the same transaction as a reload, at
most once a second, and again where it failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from lb.control.spec import Discovery
from lb.master.loop import Loop, Timer
from lb.master.plan import Plan
from lb.master.report import Outcome
from lb.master.wishes import Reply
from workers.contract.errorlog import ErrorLog

LEAST_DISTANCE: Final = 1.0
RETRY: Final = 10.0
_SHOWN: Final = 5  # changes in an event's text


class Server(Protocol):
    """Who makes a configuration of what was found: the reloader."""

    def discover(self, discovery: Discovery, reply: Reply) -> None:
        """Serves `discovery`, and tells `reply` how that ended."""


class Happened(Protocol):
    """Takes an event."""

    def __call__(self, kind: str, text: str, **fields: str | int | float) -> None: ...


class Discoveries:
    """Keeps the newest, and sees to it that it is served."""

    def __init__(
        self,
        loop: Loop,
        log: ErrorLog,
        plan: Callable[[], Plan],
        reloader: Server,
        happened: Happened,
        retry: float = RETRY,
    ) -> None:
        self._retry = retry  # seconds after a failure
        self._loop = loop
        self._log = log
        self._plan = plan
        self._reloader = reloader
        self._happened = happened
        self._newest: Discovery | None = None  # that is not served yet
        self._timer: Timer | None = None
        self._last = -LEAST_DISTANCE

    def found(self, discovery: Discovery) -> None:
        """The control process found this; what it says nothing of stays as it was."""
        plan = self._plan()
        before = self._newest or plan.discovery
        merged = merge(before, discovery, frozenset(spec.pool for spec in plan.control.discover))
        if merged == before:
            return
        self._newest = merged
        self._apply_in(max(0.0, self._last + LEAST_DISTANCE - time.monotonic()))

    def _apply_in(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.later(delay, self._apply)

    def _apply(self) -> None:
        self._timer = None
        self._last = time.monotonic()
        newest = self._newest
        if newest is not None:
            self._reloader.discover(newest, lambda outcome: self._done(newest, outcome))

    def _done(self, discovery: Discovery, outcome: Outcome) -> None:
        if outcome.ok:
            if self._newest is discovery:
                self._newest = None
            if outcome.changes:
                self._tell(outcome)
            return
        first = outcome.error.partition("\n")[0]
        self._log.error("what was discovered can't be served", error=outcome.error, retry_in=self._retry)
        self._happened("discovery-failed", f"what was discovered can't be served: {first}", error=first[:200])
        if self._timer is None:
            self._apply_in(self._retry)

    def _tell(self, outcome: Outcome) -> None:
        fields = {"generation": outcome.generation, "changes": len(outcome.changes)}
        self._log.info("discovered", **fields)
        for change in outcome.changes:
            self._log.info("changed", key=change)
        text = "; ".join(outcome.changes[:_SHOWN])
        more = len(outcome.changes) - _SHOWN
        self._happened("discovered", text + (f"; and {more} more" if more > 0 else ""), **fields)


def merge(before: Discovery, found: Discovery, pools: frozenset[str]) -> Discovery:
    """`found`, and of `before` what it says nothing of: a fresh control process has found little yet, and
    what is not found again keeps its last answer. Pools that are not among `pools` are left out."""
    old = {pool: servers for pool, servers in before.servers.items() if pool in pools}
    servers = {**old, **found.servers}
    return Discovery(servers=servers, addresses={**before.addresses, **found.addresses})
