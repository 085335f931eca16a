"""What is wanted of the reloader, and how each wish becomes a plan."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Final, NamedTuple

from lb.control.spec import Discovery
from lb.master import plan as plans
from lb.master.fleet import Fleet
from lb.master.plan import InUse, Plan
from lb.master.report import Outcome
from workers.contract.errorlog import ErrorLog

FAULT: Final = "fault in lb: "  # what an outcome's error begins with

Reply = Callable[[Outcome], None]
Built = tuple[Plan, tuple[str, ...]]  # with what it changes, one line each


class Job(NamedTuple):
    """One transaction to be done: `build` makes the plan of the generation that it is given, and may raise
    `ConfigErrors`. `counted` says that it is a reload in the operator's eyes; `again` wishes for it anew, and
    is `None` where the new configuration itself may be why workers die over it."""

    build: Callable[[int], Built]
    replies: list[Reply]
    counted: bool = True
    again: Callable[[], None] | None = None


class Wishes:
    """Collects what is wanted: many wishes of a kind, made before the first is taken, are one job."""

    def __init__(self, log: ErrorLog, path: pathlib.Path, fleet: Fleet, in_use: InUse) -> None:
        self._log = log
        self._path = path
        self._fleet = fleet
        self._in_use = in_use
        self._reload = False
        self._waiting: list[Reply] = []
        self._scale = 0
        self._found: tuple[Discovery, Reply] | None = None

    def reload(self, reply: Reply | None) -> None:
        """The file shall be read again."""
        self._reload = True
        if reply is not None:
            self._waiting.append(reply)

    def scale(self, delta: int) -> None:
        """There shall be `delta` workers more."""
        self._scale += delta

    def discover(self, discovery: Discovery, reply: Reply) -> None:
        """These servers shall be served. Replaces an earlier wish."""
        self._found = discovery, reply

    def take(self) -> Job | None:
        """What to do next."""
        if self._reload:
            self._reload = False
            return Job(self._read, self.waiting())
        if self._scale and (count := self._new_count()):
            delta = count - len(self._fleet.active)
            return Job(
                lambda generation: self._rescaled(generation, count), [], again=lambda: self.scale(delta)
            )
        if self._found is not None:
            (discovery, reply), self._found = self._found, None
            return Job(
                lambda generation: self._rebuilt(generation, discovery),
                [reply],
                counted=False,
                again=lambda: self._find_again(discovery, reply),
            )
        return None

    def _find_again(self, discovery: Discovery, reply: Reply) -> None:
        """What was found later is wished for instead, where there is such."""
        if self._found is None:
            self._found = discovery, reply

    def waiting(self) -> list[Reply]:
        """Who waits for a reload that has not begun; each is told of once."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _new_count(self) -> int:
        """How many workers there shall be; 0 where their number stays."""
        delta, self._scale = self._scale, 0
        now = len(self._fleet.active)
        count = min(max(1, now + delta), self._fleet.capacity)
        if count != now:
            return count
        self._log.warning("the number of workers stays", workers=now)
        return 0

    def _read(self, generation: int) -> Built:
        before = self._fleet.deployment.plan
        after = plans.read(self._path, before, generation, self._in_use)
        changes = plans.changes(before, after)
        for warning in after.config.warnings:
            self._log.warning("configuration", warning=warning)
        return after, changes

    def _rescaled(self, generation: int, count: int) -> Built:
        plan = self._fleet.deployment.plan
        return plan.again(generation, count), (f"workers: {len(self._fleet.active)} -> {count}",)

    def _rebuilt(self, generation: int, discovery: Discovery) -> Built:
        before = self._fleet.deployment.plan
        after = plans.found(before, generation, self._in_use, discovery)
        return after, plans.servers_changed(before, after)
