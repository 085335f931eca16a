"""The master process: supervises, reloads, answers commands, and ends everything in order."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from lb.master import ground, places, signals, spawn, status
from lb.master import plan as plans
from lb.master.boot import Boot
from lb.master.command import CommandServer, Respond
from lb.master.control_process import ControlKeeper
from lb.master.desk import Desk
from lb.master.failures import EXIT_BOOT
from lb.master.fleet import Fleet
from lb.master.ground import Forks
from lb.master.instance import Instance
from lb.master.keepers import Keepers
from lb.master.lending import Lending
from lb.master.loop import READ, Loop
from lb.master.mover import Mover
from lb.master.notify import Notifier
from lb.master.reload import PREPARE_DEADLINE, Reloader
from lb.master.report import Outcome, Reply, Request, StatusReport, UpgradeOutcome
from lb.master.spawn import Programs
from lb.master.supervision import LATE
from lb.master.upgrade import Upgrader
from lb.master.upgrade_launch import Launch
from lb.master.upgrade_resume import Heritage, Takeover
from workers.contract.errorlog import ErrorLog
from workers.contract.sink import Sink
from workers.core.descriptors import connection_cap

_AT_ONCE: Final = 0.5  # how long an immediate stop may take
_WORKERS_FIRST: Final = 0.5  # how long the control process waits for the workers to be ready
_DONE: Final = object()


class Master:
    """One load balancer. Made, it holds its addresses; `run` forks and serves."""

    def __init__(
        self,
        path: pathlib.Path,
        version: str,
        programs: Programs | None = None,
        prepare_deadline: float = PREPARE_DEADLINE,
        launch: Launch | None = None,
        heritage: Heritage | None = None,
    ) -> None:
        """`path` is the configuration file; `prepare_deadline` is what workers get to prepare a reload,
        in seconds. `launch` says how to start this program again (without, it can't be upgraded in place);
        `heritage` is what the predecessor in an upgrade has left. Raises `ConfigErrors` or `StartError`;
        nothing is left behind then."""
        # Not resolved: where a deployment swaps a symbolic link, a reload reads what it names then.
        self._path = path.absolute()
        self._version = version
        self._launch = launch
        self._heritage = heritage
        self._state = "starting" if heritage is None else "serving"
        self._exit_code = 0
        self._stops = 0
        self._stop_replies: list[Respond] = []
        self._log = ErrorLog("master")
        self._open_files = spawn.raise_open_files()
        self._notifier = Notifier.from_environment(
            lambda error: self._log.warning("systemd can't be notified", error=error)
        )
        first = heritage.plan if heritage is not None else plans.first(self._path)
        user = spawn.identity(first.config.process.user)
        # What is imported later is there before a successor could do without it.
        self._rest: Iterator[None] | None = iter(())
        if programs is None and heritage is None:
            self._rest = spawn.preload_rest()
        programs = programs or (spawn.preload() if heritage is not None else spawn.preload_workers())
        if heritage is None:
            self._ground = ground.fresh(self._path, first, self._open_files)
        else:
            self._ground = heritage.ground
            self._notifier.address = heritage.state.notify
        self._board, self._holdings = self._ground.board, self._ground.holdings
        self._wire(Forks(self._ground, programs, user), prepare_deadline)
        self._wire_upgrades(heritage)

    def _wire(self, forks: Forks, prepare_deadline: float) -> None:
        holdings, log = self._holdings, self._log
        self._loop = loop = Loop(self._fault)
        keepers = Keepers(loop, log, forks.keeper)
        self._fleet = Fleet(
            loop, log, self._board, holdings.listeners, forks.worker, keepers, holdings.deployment
        )
        self._control = ControlKeeper(loop, log, self._board, forks.control)
        self._fleet.on_empty = lambda: keepers.leave(lambda: self._control.leave(loop.stop))
        self._reloader = Reloader(
            loop, log, self._path, self._fleet, holdings.listeners, self._in_use, prepare_deadline
        )
        self._reloader.on_start = self._reloading
        self._reloader.on_end = self._reloaded
        self._desk = Desk(loop, log, self._fleet, self._reloader, self._status)
        self._fleet.witness = self._desk
        keepers.on_end = self._desk.keeper_ended
        self._control.on_message = self._desk.took
        self._control.on_end = self._desk.control_ended
        self._fleet.mover = self._mover = Mover(
            loop, log, self._fleet, self._board, connection_cap(self._open_files)
        )
        self._lending = Lending(loop, self._fleet, self._board)

    def _wire_upgrades(self, heritage: Heritage | None) -> None:
        holdings, loop = self._holdings, self._loop
        identity = None if heritage is None else heritage.state.command.file
        self._command = CommandServer(
            loop, holdings.command_socket, holdings.command_path, self._serve, identity
        )
        self._instance = instance = Instance(
            path=self._path,
            version=self._version,
            ground=self._ground,
            fleet=self._fleet,
            control=self._control,
            reloader=self._reloader,
            desk=self._desk,
            command=self._command,
            notifier=self._notifier,
        )
        self._upgrader = Upgrader(loop, self._log, instance, self._launch)
        self._upgrader.on_start = self._reloading
        self._upgrader.on_end = self._upgraded
        if heritage is None:
            self._fleet.observer = Boot(loop, self._fleet, self._ready, self._give_up)
            return
        self._takeover = Takeover(loop, heritage, instance, self._reloader)
        self._takeover.on_ready = self._taken_over
        self._takeover.on_late = self._late
        self._upgrader.resume(heritage.state, self._takeover.adopt(), heritage.trouble)

    def run(self) -> int:
        """Serves until it is told to stop. Returns the exit code."""
        queue = signals.SignalQueue()
        self._loop.watch(queue.fd, READ, signals.watch(queue, self._handlers()))
        slots: Collection[int] = range(self._fleet.deployment.plan.workers)
        if self._heritage is not None:
            self._heritage.unblock_signals()
            self._lending.inherit(self._heritage.state.used_slots)
            slots = {*self._fleet.workers, *self._heritage.slots}
        self._warn()
        spawn.freeze()
        self._loop.later(0.0, self._first_fork if self._heritage is None else self._take_over)
        self._loop.later(0.0, self._watch_heartbeats)
        self._mover.start()
        self._lending.start(slots)
        try:
            self._loop.run()
        finally:
            self._holdings.release()
            for respond in self._stop_replies:
                respond(Reply(pid=os.getpid()))
            self._command.close()
            self._fleet.deployment.close()
            queue.close()
            self._loop.close()
            self._log.flush()
        return self._exit_code

    def _handlers(self) -> Mapping[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGCHLD: self._reap,
            signal.SIGHUP: self._reloader.request,
            signal.SIGTERM: self._stop,
            signal.SIGQUIT: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGUSR1: self._reloader.reopen_logs,
            signal.SIGUSR2: self._upgrader.request,
            signal.SIGTTIN: lambda: self._reloader.scale(+1),
            signal.SIGTTOU: lambda: self._reloader.scale(-1),
        }

    # --- the start -------------------------------------------------------------------------------------

    def _reap(self) -> None:
        self._fleet.reap()
        self._control.reap()
        self._upgrader.reap()

    def _in_use(self, kind: str, row: int) -> bool:
        return status.in_use(self._fleet, self._board, kind, row)

    def _first_fork(self) -> None:
        if not self._stops:
            deployment = self._fleet.deployment
            self._fleet.switch(deployment, tuple(range(deployment.plan.workers)))
            self._control_due = self._loop.later(_WORKERS_FIRST, self._prepare_control)

    def _take_over(self) -> None:
        self._reap()  # who died in between
        self._takeover.begin()

    def _warn(self) -> None:
        plan = self._fleet.deployment.plan
        for warning in plan.config.warnings:
            self._log.warning("configuration", warning=warning)
        # The kernel spreads connections evenly; each costs its worker a descriptor on either side. (So do
        # its keeper's duplicates of a tunnel, in a table of the keeper's own.)
        connections = sum(listener.limits.connections for listener in plan.snapshot.listeners)
        wanted, possible = -(-connections // plan.workers), connection_cap(self._open_files)
        if wanted > possible:
            self._log.warning(
                "limits.connections is more than the open files of a worker allow; it refuses the rest",
                advice="raise the hard limit (LimitNOFILE=, ulimit -Hn) or lower limits.connections",
                open_files=self._open_files,
                connections_wanted=wanted,
                connections_possible=possible,
            )

    def _ready(self) -> None:
        self._state = "serving"
        self._fleet.observer = self._reloader
        text = self._summary()
        _say(f"ready: {text}")
        self._notifier.ready(text)
        self._log.info("commands are taken", socket=self._holdings.command_path)
        for name, service in self._holdings.services._asdict().items():
            if service is not None:
                self._log.info("listening for the control process", what=name, address=service.address)
        self._desk.changed()
        self._reloader.open()
        self._control_due.cancel()
        self._prepare_control()

    def _prepare_control(self) -> None:
        """Imports what the control process needs, step by step, and starts it. Neither workers nor readiness
        wait for it: without it, the traffic goes on."""
        rest = self._rest
        if self._stops or rest is None:
            return
        try:
            done = next(rest, _DONE) is _DONE
        except ImportError as error:
            self._give_up(f"the installation is not whole: {error}")
            return
        if done:
            self._rest = None
            spawn.freeze()
            self._control.start()
        else:
            self._control_due = self._loop.later(0.0, self._prepare_control)

    def _summary(self) -> str:
        count = len(self._fleet.active)
        addresses = ", ".join(self._holdings.listeners.addresses) or "nothing"
        return f"{count} worker{'s' if count != 1 else ''}, listening on {addresses}"

    def _fault(self, error: Exception) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}:{place.lineno} in {place.name}"
        self._log.error("fault in the master, please report it", error=error, where=where)

    def _give_up(self, why: str) -> None:
        _say(f"lb: {why}")
        self._exit_code = EXIT_BOOT
        self._stop(0.0)

    # --- while it runs ---------------------------------------------------------------------------------

    def _watch_heartbeats(self) -> None:
        limit = self._fleet.deployment.plan.config.process.wedged_after
        tick = min(1.0, limit / 4)
        self._fleet.watch_heartbeats(tick)
        self._control.watch_heartbeat(tick, limit)
        self._loop.later(tick, self._watch_heartbeats)

    def _reloading(self) -> None:
        self._notifier.reloading()
        self._desk.changed()

    def _notify_ready(self) -> None:
        """A reload or an upgrade is over; the other may still go on."""
        if not (self._stops or self._reloader.reloading or self._upgrader.upgrading):
            self._notifier.ready(self._summary())

    def _reloaded(self, outcome: Outcome) -> None:
        self._notify_ready()
        self._desk.reloaded(outcome)

    def _upgraded(self, outcome: UpgradeOutcome) -> None:
        self._notify_ready()
        self._desk.upgraded(outcome)

    def _taken_over(self) -> None:
        """The successor's workers serve."""
        self._fleet.observer = self._reloader
        if self._upgrader.upgrading:  # not where it was told before that it takes too long
            self._upgrader.succeed()
        if self._heritage is not None and self._heritage.trouble:
            self._reloader.request()  # it was right a moment ago, it may be again
        self._reloader.open()

    def _late(self, why: str) -> None:
        """They don't, and a reload may be what they need."""
        self._upgrader.fail_after(why)
        self._reloader.open()

    def _serve(self, request: Request, respond: Respond) -> None:
        """A request from the command socket."""
        if request.config and not places.same_file(pathlib.Path(request.config), self._path):
            respond(Reply(error=f"the lb that answers (pid {os.getpid()}) runs on {self._path}"))
            return
        match request.command:
            case "status":
                respond(Reply(status=self._status(), pid=os.getpid()))
            case "reload":
                self._reloader.request(lambda outcome: respond(Reply(outcome=outcome, pid=os.getpid())))
            case "upgrade":
                self._upgrader.request(respond)
            case "stop":
                self._stop_replies.append(respond)
                if request.now or not self._stops:
                    self._stop(0.0 if request.now else None)

    def _status(self) -> StatusReport:
        state = self._state
        if state == "serving" and self._upgrader.upgrading:
            state = "upgrading"
        elif state == "serving" and self._reloader.reloading:
            state = "reloading"
        return status.report(self._instance, state, self._upgrader.report)

    # --- the end ---------------------------------------------------------------------------------------

    def _stop(self, grace: float | None = None) -> None:
        """The first call stops gracefully (within `process.shutdown_timeout`), the second at once."""
        self._stops += 1
        if grace is None:
            process = self._fleet.deployment.plan.config.process
            grace = process.shutdown_timeout if self._stops == 1 else 0.0
        if self._stops == 1:
            self._state = "stopping"
            self._notifier.stopping()
            self._upgrader.close("lb is stopping")
            self._reloader.close("lb is stopping")
            # Closed here first: what a worker closes after serving its queue is the last of that socket.
            self._holdings.listeners.close()
        self._log.info("stopping", grace=grace)
        self._desk.happened("stopping", f"stopping within {grace:g}s", grace=grace)
        self._desk.changed()
        self._fleet.stop_all(grace)
        if not grace:
            self._loop.later(_AT_ONCE, lambda: self._fleet.kill_all(LATE))


def _say(line: str) -> None:
    """A plain line for people and for scripts that wait for it. Standard error may be closed or full, and
    there is no other place to say so."""
    with contextlib.suppress(OSError):
        Sink(2).write(f"{line}\n".encode())
