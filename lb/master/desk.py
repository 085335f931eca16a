"""What the control process is told, and what it asks for: the master's side of their channel."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from lb.control.messages import (
    AskReload,
    AskWorker,
    Configured,
    Discovered,
    Event,
    Hello,
    MasterStatus,
    Reloaded,
    ToControl,
    ToMaster,
    clean,
)
from lb.control.spec import Discovery
from lb.master.child import close_fds
from lb.master.control_process import ControlProcess
from lb.master.discoveries import Discoveries
from lb.master.fleet import Fleet
from lb.master.loop import Loop
from lb.master.questions import Questions
from lb.master.reload import Reloader
from lb.master.report import Outcome, StatusReport, UpgradeOutcome
from lb.master.worker_process import WorkerProcess
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import MAX_BYTES, MoveTunnels, Reclaimed, Tunnels, TunnelsClosed
from workers.contract.snapshot import DECODE_ERRORS

KEPT_EVENTS: Final = 200
_MAX_DISCOVERY: Final = 2 * 1024 * 1024
_MAX_RELOADS: Final = 64
_MAX_CHANGES: Final = 50
_MAX_LINE: Final = 200
_MAX_ERROR: Final = 4096


class Desk:
    """Tells the control process of every change, and serves its requests. What it says to a control process
    that is not there (yet) is lost: each begins with everything that is the case (`Hello`)."""

    def __init__(
        self, loop: Loop, log: ErrorLog, fleet: Fleet, reloader: Reloader, report: Callable[[], StatusReport]
    ) -> None:
        self._loop = loop
        self._log = log
        self._fleet = fleet
        self._reloader = reloader
        self._report = report
        self._questions = Questions(loop, fleet)
        self._discoveries = Discoveries(loop, log, lambda: fleet.deployment.plan, reloader, self.happened)
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._reloads = 0  # requests for one without an answer
        self._count = 0  # of all events that ever were
        self._there: ControlProcess | None = None
        self._telling = False

    @property
    def events(self) -> tuple[Event, ...]:
        """The last ones."""
        return tuple(self._events)

    @property
    def event_count(self) -> int:
        """How many there ever were."""
        return self._count

    @property
    def moves(self) -> tuple[MoveTunnels, ...]:
        """The moves of tunnels between servers that still go on."""
        return self._questions.returns.current()

    def restore(self, events: Iterable[Event], count: int, moves: Iterable[MoveTunnels] = ()) -> None:
        """Goes on where a predecessor of this process ended."""
        self._questions.returns.restore(moves)
        self._events.extend(events)
        self._count = count

    # --- what the control process says -------------------------------------------------------------------

    def took(self, child: ControlProcess, message: ToMaster, fds: list[int]) -> None:
        """One message of the control process."""
        try:
            match message:
                case Hello():
                    self._greet(child)
                case AskReload(request=request):
                    self._reload(child, request)
                case AskWorker():
                    self._questions.ask(child, message)
                case Event():
                    self._keep(message)
                case Discovered():
                    self._discovered(fds)
        finally:
            close_fds(fds)

    def _greet(self, child: ControlProcess) -> None:
        self._there = child
        self.configured()
        self._tell()
        for event in self._events:
            child.send(event)

    def _reload(self, child: ControlProcess, request: int) -> None:
        def answer(outcome: Outcome) -> None:
            self._reloads -= 1
            child.send(Reloaded(request=request, outcome=brief(outcome)))

        self._reloads += 1
        if self._reloads > _MAX_RELOADS:
            error = f"{_MAX_RELOADS} requests for a reload wait already: try again when one is over"
            generation = self._fleet.deployment.generation
            answer(Outcome(ok=False, generation=generation, error=error, at=time.time()))
            return
        self._reloader.request(answer)

    def _discovered(self, fds: list[int]) -> None:
        try:
            (fd,) = fds
            data = os.pread(fd, _MAX_DISCOVERY + 1, 0)
            if len(data) > _MAX_DISCOVERY:
                raise ValueError(f"it is larger than {_MAX_DISCOVERY >> 20} MiB")
            discovery = msgspec.msgpack.decode(data, type=Discovery)
        except (ValueError, OSError, *DECODE_ERRORS) as error:
            self._discoveries.refuse(f"it can't be read: {error}")
            return
        self._discoveries.found(discovery)

    # --- what it is told ---------------------------------------------------------------------------------

    def happened(self, kind: str, text: str, **fields: str | int | float) -> None:
        """Something that people want to know of."""
        self._say(self._keep(Event(kind=kind, text=text, at=time.time(), fields=fields)))

    def _keep(self, event: Event) -> Event:
        self._count += 1
        # Each is told to every control process that comes.
        event = msgspec.structs.replace(event.bounded(), number=self._count)
        self._events.append(event)
        return event

    def changed(self) -> None:
        """The status is another: told once for all that changes in this turn of the loop."""
        if not self._telling and self._there is not None:
            self._telling = True
            self._loop.later(0.0, self._tell)

    def _tell(self) -> None:
        self._telling = False
        if self._there is None:
            return
        message = MasterStatus(report=brief_report(self._report()))
        if len(msgspec.msgpack.encode(message)) > MAX_BYTES:
            # The listeners are in the snapshot, too.
            message = MasterStatus(report=msgspec.structs.replace(message.report, listeners=()))
        self._say(message)

    def configured(self) -> None:
        """Another configuration is served."""
        deployment = self._fleet.deployment
        self._say(Configured(generation=deployment.generation), deployment.for_control)

    def _say(self, message: ToControl, fds: tuple[int, ...] = ()) -> None:
        """A fault in here must not reach the fleet, in the middle of whose work it is called."""
        if self._there is None:
            return
        try:
            self._there.send(message, fds)
        except Exception as error:
            self._log.error("the control process is not told", what=type(message).__name__, error=repr(error))

    def reloaded(self, outcome: Outcome) -> None:
        """A reload, or a change of the number of workers, is over."""
        fields = {"generation": outcome.generation, "seconds": outcome.seconds}
        if outcome.ok:
            count = len(outcome.changes)
            text = f"generation {outcome.generation} is served, {count} change{'' if count == 1 else 's'}"
            self.happened("reload", text, changes=count, **fields)
        else:
            first = clean(outcome.error.partition("\n")[0], _MAX_LINE)
            self.happened("reload-failed", f"reload failed: {first}", error=first, **fields)
        self._tell()  # at once: who asked for the reload looks at it next

    def upgraded(self, outcome: UpgradeOutcome) -> None:
        """An upgrade is over."""
        fields: dict[str, str | float] = {"before": outcome.before, "after": outcome.after}
        fields["seconds"] = outcome.seconds
        if outcome.ok:
            self.happened("upgrade", f"upgraded from {outcome.before} to {outcome.after}", **fields)
        else:
            first = clean(outcome.error.partition("\n")[0], _MAX_LINE)
            self.happened("upgrade-failed", f"upgrade failed: {first}", error=first, **fields)
        self._tell()

    def control_ended(self, pid: int, cause: str) -> None:
        """The control process itself; its successor tells it."""
        self._there = None
        self._questions.forget()
        self.happened("control-ended", f"the control process ended: {cause}", pid=pid, cause=cause)

    # --- the fleet's witness -----------------------------------------------------------------------------

    def served(self, worker: WorkerProcess) -> None:
        """A fresh worker serves."""
        self._questions.returns.tell(worker)
        text = f"worker {worker.slot} (pid {worker.pid}) serves"
        self.happened("worker-serves", text, slot=worker.slot, pid=worker.pid)
        self.changed()

    def ended(self, worker: WorkerProcess, cause: str, expected: bool) -> None:
        """A worker's process is gone."""
        self._questions.ended(worker)
        text = f"worker {worker.slot} (pid {worker.pid}) {'left' if expected else f'ended: {cause}'}"
        self.happened("worker-ended", text, slot=worker.slot, pid=worker.pid, cause=cause)
        self.changed()

    def reclaimed(self, worker: WorkerProcess, message: Reclaimed) -> None:
        """A worker has taken over what its dead predecessor left."""
        text = f"worker {worker.slot} (pid {worker.pid}) took over {message.restored} tunnels of a dead one"
        if message.closed:
            text += f", {message.closed} had to be closed"
        counts = {"count": message.restored, "closed": message.closed}
        self.happened("tunnels-restored", text, slot=worker.slot, pid=worker.pid, **counts)
        self.changed()

    def moved(self, worker: WorkerProcess, count: int, reason: str) -> None:
        """Tunnels went from one worker to others."""
        text = f"{count} tunnels moved from worker {worker.slot} (pid {worker.pid}) to others ({reason})"
        self.happened("tunnels-moved", text, count=count, slot=worker.slot, pid=worker.pid, reason=reason)

    def keeper_ended(self, slot: int, pid: int, cause: str) -> None:
        """A keeper's process is gone, unexpectedly."""
        text = f"the keeper of worker {slot} (pid {pid}) ended: {cause}"
        self.happened("keeper-ended", text, slot=slot, pid=pid, cause=cause)
        self.changed()

    def told(self, worker: WorkerProcess, message: Tunnels | TunnelsClosed) -> None:
        """An answer about tunnels."""
        self._questions.answered(worker, message)


def _cut(lines: Iterable[str], count: int) -> tuple[str, ...]:
    everything = tuple(lines)
    shown = tuple(clean(line, _MAX_LINE) for line in everything[:count])
    return shown if len(everything) <= count else (*shown, f"... and {len(everything) - count} more")


def brief(outcome: Outcome) -> Outcome:
    """`outcome` in what fits into a message."""
    return msgspec.structs.replace(
        outcome, changes=_cut(outcome.changes, _MAX_CHANGES), error=clean(outcome.error, _MAX_ERROR)
    )


def brief_report(report: StatusReport) -> StatusReport:
    """`report` in what fits into a message."""
    last = report.reloads.last
    reloads = msgspec.structs.replace(report.reloads, last=None if last is None else brief(last))
    last_upgrade = report.upgrades.last
    if last_upgrade is not None:
        last_upgrade = msgspec.structs.replace(last_upgrade, error=clean(last_upgrade.error, _MAX_ERROR))
    upgrades = msgspec.structs.replace(report.upgrades, last=last_upgrade)
    return msgspec.structs.replace(
        report, config=clean(report.config, _MAX_ERROR), reloads=reloads, upgrades=upgrades
    )
