"""The reload in place: one transaction at a time, committed by all workers or by none.

::

    IDLE --request--> (read, compile, bind) --> PREPARING --all prepared--> COMMITTING --all told--> IDLE
                         |                        |
                         +------- failed ---------+--> IDLE, the old configuration serves on

Another number of workers (TTIN, TTOU), and other servers that were discovered, are the same transaction with
the configuration that is served: where a worker died over it, or was late, that was an accident, and it is
tried again.
"""

from __future__ import annotations

import enum
import pathlib
import time
from collections.abc import Callable
from typing import Final

from lb.config import ConfigErrors
from lb.control.spec import Discovery
from lb.master.deployment import DeployError
from lb.master.failures import BindError
from lb.master.fleet import Fleet
from lb.master.history import History
from lb.master.listeners import Listeners
from lb.master.loop import Loop, Timer
from lb.master.plan import InUse, Plan
from lb.master.report import Outcome, ReloadReport
from lb.master.supervision import LATE
from lb.master.transaction import Transaction
from lb.master.wishes import FAULT, Job, Reply, Wishes
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import Commit, Committed, Prepared, Refused

PREPARE_DEADLINE: Final = 10.0
_COMMIT_DEADLINE: Final = 10.0
MAX_TRIES: Final = 4  # of what accidents stopped


class Step(enum.Enum):
    """Where the transaction stands."""

    IDLE = "idle"
    PREPARING = "preparing"
    COMMITTING = "committing"


class Reloader:
    """Takes requests at any time; those that come before the file is read are served by one reload."""

    def __init__(
        self,
        loop: Loop,
        log: ErrorLog,
        path: pathlib.Path,
        fleet: Fleet,
        listeners: Listeners,
        in_use: InUse,
        deadline: float,
    ) -> None:
        self.step = Step.IDLE
        self.on_start: Callable[[], None] = lambda: None
        self.on_end: Callable[[Outcome], None] = lambda _outcome: None
        self._loop = loop
        self._log = log
        self._fleet = fleet
        self._listeners = listeners
        self._deadline = deadline
        self._attempt = fleet.deployment.generation  # never used twice: a late answer must not fit
        self._wishes = Wishes(log, path, fleet, in_use)
        self._job: Job | None = None
        self._tries = 0  # of a job that accidents stopped, in a row
        self._timer: Timer | None = None
        self._began = 0.0
        self._transaction: Transaction | None = None
        self._asked: dict[int, WorkerProcess] = {}
        self._done: set[int] = set()
        self.history = History(log)
        self._reopen = False
        self._open = False
        self._paused = ""  # why requests have to wait
        self._closed = ""  # why nothing is served any more

    @property
    def report(self) -> ReloadReport:
        """The counters and the last outcome."""
        return self.history.report

    @property
    def reloading(self) -> bool:
        """Whether a reload goes on, or a change of the number of workers."""
        return self.step is not Step.IDLE and self._job is not None and self._job.counted

    # --- requests --------------------------------------------------------------------------------------

    def open(self) -> None:
        """The first start is over: serves what was asked meanwhile, and whatever comes."""
        self._open, self._paused = True, ""
        self._soon()

    def pause(self, why: str) -> None:
        """What goes on comes to its end. Until `open`, reloads are refused to those who wait for the
        outcome, and so are other numbers of workers; what else is asked waits."""
        self._open, self._paused = False, why

    @property
    def attempt(self) -> int:
        """The highest number that a configuration ever had."""
        return self._attempt

    def request(self, reply: Reply | None = None) -> None:
        """Asks for a reload of the file; `reply` gets the outcome."""
        refusal = self._closed or self._paused
        if refusal and (self._closed or reply is not None):
            if reply is not None:
                reply(self._outcome(error=refusal))
            return
        self._wishes.reload(reply)
        self._soon()

    def scale(self, delta: int) -> None:
        """Asks for `delta` workers more (less, where it is negative)."""
        if self._paused:
            self._log.warning("the number of workers stays", reason=self._paused)
            return
        self._wishes.scale(delta)
        self._soon()

    def discover(self, discovery: Discovery, reply: Reply) -> None:
        """Asks for what is served with other servers; `reply` gets the outcome, which is not counted as a
        reload. Replaces an earlier request that has not begun."""
        self._wishes.discover(discovery, reply)
        self._soon()

    def reopen_logs(self) -> None:
        """Opens the access log anew; a configuration that is being prepared gets its own anew, too."""
        self._reopen = self.step is not Step.IDLE
        try:
            fd = self._fleet.deployment.reopen_log()
        except DeployError as error:
            self._log.error("access log can't be reopened, the old file is kept", error=error)
            return
        if fd is not None:
            self._fleet.reopen_logs(fd)
        self._log.info("logs reopened")

    def close(self, why: str) -> None:
        """Ends what is going on; no request is served any more."""
        self._open, self._closed = False, why
        if self.step is Step.PREPARING:
            self._abort(why)
        elif self.step is Step.COMMITTING:
            self._finish(self._outcome(ok=True))
        for reply in self._wishes.waiting():
            reply(self._outcome(error=why))

    def _soon(self) -> None:
        # Not at once: what came in the same round of the loop belongs to the same reload.
        self._loop.later(0.0, self._next)

    def _next(self) -> None:
        if self.step is Step.IDLE and self._open and (job := self._wishes.take()) is not None:
            self._start(job)

    # --- prepare ---------------------------------------------------------------------------------------

    def _start(self, job: Job) -> None:
        self._began = time.monotonic()
        self._attempt += 1
        self._job = job
        if job.counted:
            self.on_start()
        try:
            plan, changes = job.build(self._attempt)
            if not job.counted and self._fleet.deployment.absorb(plan):
                self._finish(self._outcome(ok=True))
                return
            self._transaction = Transaction.stage(plan, self._slots(plan), changes, self._listeners)
        except (ConfigErrors, BindError, DeployError) as error:
            self._finish(self._outcome(error=str(error)))
            return
        except Exception as error:
            # Whoever waits for the outcome must not wait for ever; the loop reports the fault itself.
            self._finish(self._outcome(error=f"{FAULT}{error!r}"))
            raise
        self.step = Step.PREPARING
        self._timer = self._loop.later(self._deadline, self._missed_deadline)
        for worker in list(self._fleet.workers.values()):
            self._invite(worker)
        self._check_prepared()

    def _slots(self, plan: Plan) -> tuple[int, ...]:
        active = self._fleet.slots_for(plan.workers)
        if len(active) < plan.workers:
            self._log.warning("leaving workers hold slots, reload again later", workers=len(active))
        return active

    def _invite(self, worker: WorkerProcess) -> None:
        """Workers on their way up come later: they get what is served when they ask for it."""
        transaction = self._transaction
        if transaction is None or worker.phase is not Phase.SERVING or worker.slot not in transaction.active:
            return
        self._asked[worker.slot] = worker
        served = self._listeners.served_by(worker.slot, transaction.active, transaction.staged.layout)
        self._fleet.prepare(worker, transaction.deployment, served)

    def _check_prepared(self) -> None:
        transaction = self._transaction
        if self.step is not Step.PREPARING or transaction is None:
            return
        loading = any(worker.phase is Phase.LOADING for worker in self._fleet.workers.values())
        if not loading and self._asked.keys() <= self._done:
            self._commit(transaction)

    def _missed_deadline(self) -> None:
        names = [
            f"worker {worker.slot} (pid {worker.pid})"
            for worker in self._fleet.workers.values()
            if worker.phase is Phase.LOADING or (worker.slot in self._asked and worker.slot not in self._done)
        ]
        self._accident(f"no answer within {self._deadline:g}s from {', '.join(names)}")

    def _accident(self, why: str) -> None:
        """Something stopped what is being prepared that need not have to do with it."""
        again = self._job.again if self._job is not None else None
        self._tries += 1
        if again is None or not self._open:
            self._abort(why)
        elif self._tries >= MAX_TRIES:
            self._abort(f"{why}; tried {self._tries} times, given up")
        else:
            self._log.warning("a change of the workers is tried again", tries=self._tries, error=why)
            self._drop()
            self._rest()
            again()

    def _abort(self, why: str) -> None:
        self._drop()
        self._finish(self._outcome(error=why))

    def _drop(self) -> None:
        """Nobody serves what was prepared."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            for worker in self._asked.values():
                self._fleet.abort(worker, transaction.deployment.generation)
            transaction.drop(self._listeners)

    # --- commit ----------------------------------------------------------------------------------------

    def _commit(self, transaction: Transaction) -> None:
        """All are prepared: from here on there is no way back."""
        try:
            for slot in self._asked:
                self._listeners.listen(transaction.staged, slot, transaction.active)
        except BindError as error:
            self._abort(str(error))
            return
        self._cancel_timer()
        self.step = Step.COMMITTING
        generation = transaction.deployment.generation
        # Closed here first: what a worker closes after serving its queue is the last of that socket.
        self._listeners.commit(transaction.staged)
        for worker in self._asked.values():
            worker.send(Commit(generation=generation))
        before = set(self._fleet.active)
        self._done = set()
        self._asked = {slot: worker for slot, worker in self._asked.items() if not worker.closed}
        self._fleet.switch(transaction.deployment, transaction.active)
        for slot in transaction.active:
            fresh = self._fleet.workers.get(slot)
            if slot not in before and fresh is not None:
                self._asked[slot] = fresh
        self._timer = self._loop.later(_COMMIT_DEADLINE, self._missed_commit)
        self._check_committed()

    def _check_committed(self) -> None:
        if self.step is Step.COMMITTING and self._asked.keys() <= self._done:
            self._finish(self._outcome(ok=True))

    def _missed_commit(self) -> None:
        """The configuration is committed; who doesn't follow is replaced by one that does."""
        for slot, worker in self._asked.items():
            if slot not in self._done and worker.phase is Phase.SERVING and not worker.closed:
                self._log.error("worker does not commit", slot=slot, pid=worker.pid)
                self._fleet.kill(worker, LATE)
        self._finish(self._outcome(ok=True))

    # --- what workers do (the fleet's observer) --------------------------------------------------------

    def serving(self, worker: WorkerProcess) -> None:
        """A fresh worker serves what is current; it joins what is being prepared."""
        if self.step is Step.COMMITTING:
            self._done.add(worker.slot)
            self._check_committed()
            return
        self._invite(worker)
        self._check_prepared()

    def answered(self, worker: WorkerProcess, message: Prepared | Refused | Committed) -> None:
        """An answer about a reload; one about an earlier attempt is out of date."""
        if self._asked.get(worker.slot) is not worker or message.generation != self._attempt:
            return
        match message:
            case Prepared():
                self._done.add(worker.slot)
                self._check_prepared()
            case Refused() if self.step is Step.PREPARING:
                self._abort(f"worker {worker.slot} refused it: {message.error}")
            case Committed():
                self._done.add(worker.slot)
                self._check_committed()
            case _:
                self._log.error("worker refused after preparing", slot=worker.slot, error=message)

    def failed(self, worker: WorkerProcess, why: str) -> None:
        """A worker ended. While preparing, the new configuration may be the reason, so it is not
        committed; afterwards the successor comes up under it."""
        if self._asked.get(worker.slot) is worker:
            if self.step is Step.PREPARING:
                self._asked.pop(worker.slot)
                self._accident(f"worker {worker.slot} (pid {worker.pid}) {why} while preparing")
                return
            self._asked.pop(worker.slot)
        self._check_prepared()
        self._check_committed()

    # --- the end ---------------------------------------------------------------------------------------

    def _outcome(self, *, ok: bool = False, error: str = "") -> Outcome:
        transaction = self._transaction
        changes = transaction.changes if ok and transaction is not None else ()
        return Outcome(
            ok=ok,
            generation=self._fleet.deployment.generation,
            changes=changes,
            error=error,
            seconds=round(time.monotonic() - self._began, 3),
            at=time.time(),
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(self, outcome: Outcome) -> None:
        job, self._job = self._job, None
        self._tries = 0
        self._rest()
        if job is None:
            return
        if job.counted:
            self.history.record(outcome)
            self.on_end(outcome)
        for reply in job.replies:
            reply(outcome)

    def _rest(self) -> None:
        """Nothing goes on: the next may begin."""
        self._cancel_timer()
        self.step = Step.IDLE
        self._transaction = None
        self._asked = {}
        self._done = set()
        if self._reopen:
            self.reopen_logs()
        self._soon()
