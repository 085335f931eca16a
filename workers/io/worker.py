"""A worker: one event loop, its connections, and its half of the channel to the master."""

from __future__ import annotations

import os
import random
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, cast

from workers.contract import messages, snapshot
from workers.contract.bells import Bells
from workers.contract.cells import NANOSECONDS, WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.ledger import Ledger
from workers.contract.scoreboard import Scoreboard
from workers.contract.series import SeriesTable
from workers.contract.trust import TlsSetupError, server_name
from workers.core.forwarded import RequestIds
from workers.core.wheel import NEVER, TICK, Wheel
from workers.io import tunnel_desk
from workers.io.chores import Chores, Steps
from workers.io.endpoint import Endpoint
from workers.io.handover import Handovers
from workers.io.journal import Journal
from workers.io.keeping import Keeping
from workers.io.listening import Acceptor, Listener
from workers.io.pacing import Pacer
from workers.io.pipe import PIECES, Pipe
from workers.io.plan import Plan, PlanError, Prepared
from workers.io.reactor import Reactor
from workers.io.reclaiming import Reclaiming
from workers.io.returns import Returns
from workers.io.tls import TlsStream
from workers.io.transfer import Transfer
from workers.io.turns import Turns

if TYPE_CHECKING:
    import ssl

    from workers.io.downstream import Client
    from workers.io.pool import Pool
    from workers.io.server import Server
    from workers.io.sockets import Socket
    from workers.io.tunnel import Tunnel

BUFFER: Final = 256 * 1024
_EXPIRED: Final = 128  # timeouts that are seen to in a turn of the loop
_LET_GO_AFTER: Final = 5.0  # seconds after a reload
# So long before its end a worker refuses who still waits for admission: the answer is to arrive.
_LAST_ANSWERS: Final = 1.0


class Worker:
    """All that the connections of one worker share. `now` is the coarse clock: monotonic seconds as of the
    last tick, good for timeouts and nothing else."""

    def __init__(
        self, slot: int, channel: socket.socket, board: Scoreboard, bells: Bells, ledger: Ledger
    ) -> None:
        self.log = ErrorLog(f"worker {slot}")
        self.loop = Reactor(self._failed)
        self.slot = slot
        self.channel = channel
        self.board = board
        self.bells = bells
        self.ledger = ledger
        self.slab = board.slab(slot)
        self.slab.clear_gauges()
        self.series = SeriesTable(self.slab, board.capacity.series)
        self._slabs = board.slabs()
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.now = time.monotonic()
        self.wheel = Wheel(self.now)
        self.tunnels: dict[int, Tunnel] = {}  # by number, so in the order of their opening
        self.keeping = Keeping(self)
        # What tunnels receive into, and where they write down from which position on (see `pipe`).
        self.relay = self.keeping.relay
        self.pieces = [self.relay[:size] for size in range(PIECES)]
        self.mark = self.keeping.mark
        self._reclaiming = Reclaiming(self)
        self.random_bits = random.Random().getrandbits
        self.request_ids = RequestIds(os.urandom(8).hex().encode("ascii"))
        self.current: Plan | None = None
        self.clients: set[Client] = set()
        self._last_tunnel = 0
        self.pacer = Pacer(self)
        self.returns = Returns(self)
        self.handovers = Handovers(self, self.say)
        self.untold: list[Pipe] = []  # directions of tunnels whose figures the scoreboard has not yet
        self.listeners: dict[str, Listener] = {}
        self.acceptors: list[Acceptor] = []
        self.journal: Journal | None = None
        self.stopping = False
        self.admits = True  # whether handshakes may wait for their admission
        self._deadline = NEVER
        self._siblings: list[memoryview] = []
        self._tick_at = self.now
        self._expiring = False  # whether the next turn goes on with it
        self._attached: list[tuple[object, int]] = []
        self.chores = Chores(self.loop)
        self._turns = Turns(self.loop, self.log, self.now)
        self._preparing: Steps | None = None
        self._prepared: Prepared | None = None
        self._date = ""
        self._date_at = 0

    # --- what connections ask for --------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The configuration that is served."""
        assert self.current is not None
        return self.current

    def sibling_cells(self) -> list[memoryview]:
        """The cells of the workers that are or were there besides this one."""
        return self._siblings

    def next_tunnel(self) -> int:
        """The number of a new tunnel."""
        self._last_tunnel += 1
        return self._last_tunnel

    def date(self) -> str:
        """Now, as an IMF-fixdate (RFC 9110 section 5.6.7)."""
        now = int(time.time())
        if now != self._date_at:
            self._date_at = now
            self._date = formatdate(now, usegmt=True)
        return self._date

    def _failed(self, error: BaseException, callback: Callable[[], object]) -> None:
        """A callback of the loop let an exception through: a bug of ours, told with its place. It costs the
        connection whose callback it was, and nothing else."""
        self.slab.cells[WorkerCell.FAULTS] += 1
        trace = "".join(traceback.format_exception(error)[-3:])
        self.log.error("fault in the worker", error=repr(error), trace=trace)
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, (Endpoint, Pipe, Transfer)):
            try:
                owner.abandon()
            except Exception as second:  # whatever state the first one left behind
                self.log.error("fault while ending a connection", error=repr(second))

    def client_stream(self, context: ssl.SSLContext, sock: Socket, server: Server) -> TlsStream:
        """TLS on a fresh connection to `server`. Raises `OSError` where the peer is gone already."""
        spec = server.pool.spec.tls
        assert spec is not None
        return TlsStream(
            cast(socket.socket, sock),
            context,
            server_side=False,
            server_name=server_name(spec, server.spec.host),
        )

    # --- time ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to listen to the master, and tells it so."""
        cells = self.slab.cells
        # Counters of the process go on where those of the predecessor ended.
        self._cpu_before = cells[WorkerCell.CPU]
        self._long_turns_before = cells[WorkerCell.LONG_TURNS]
        self._dropped_before = cells[WorkerCell.LOG_DROPPED]
        self._lost_before = cells[WorkerCell.ERROR_LOG_DROPPED]
        cells[WorkerCell.PID] = os.getpid()
        cells[WorkerCell.GENERATION] = 0
        self._tick()
        self.loop.add_reader(self.channel.fileno(), self._on_channel)
        self.loop.add_bell(self.bells.workers, self._on_bell)
        self.loop.keep_reader(self.channel.fileno())
        self.loop.keep_reader(self.bells.workers)
        self.say(messages.Ready(pid=os.getpid()))

    def _tick(self) -> None:
        now = time.monotonic()
        self.now = now
        cells = self.slab.cells
        cells[WorkerCell.HEARTBEAT] = int(now * NANOSECONDS)
        cells[WorkerCell.LAG] = max(0, int((now - self._tick_at) * NANOSECONDS))
        cpu = time.process_time_ns()
        cells[WorkerCell.CPU] = self._cpu_before + cpu
        cells[WorkerCell.LONG_TURNS] = self._long_turns_before + self.loop.long_turns
        cells[WorkerCell.LONGEST_TURN] = int(self._turns.look(now, cpu, self.chores.busy) * NANOSECONDS)
        if self.untold:
            untold, self.untold = self.untold, []
            for pipe in untold:
                pipe.tell()
        cells[WorkerCell.ERROR_LOG_DROPPED] = self._lost_before + self.log.lost
        self._tick_at = now + TICK
        self.loop.call_later(TICK, self._tick)
        if not self._expiring:
            self._expire()
        self.keeping.tick()
        self.pacer.turn()
        self.handovers.tick()
        if self.current is not None:
            self._look_around(self.current)
        if self.journal is not None:
            cells[WorkerCell.LOG_DROPPED] = self._dropped_before + self.journal.dropped
        if self.stopping:
            self._look_for_end(now)

    def _expire(self) -> None:
        """Sees to the timeouts that are due: thousands at once take turns with everybody else."""
        self._expiring = False
        if self.wheel.advance(self.now, _EXPIRED):
            self._expiring = True
            self.loop.call_soon(self._expire)

    def _look_around(self, plan: Plan) -> None:
        """Takes in the other workers' figures, off the request path."""
        self._siblings = [
            other.cells
            for index, other in enumerate(self._slabs)
            if index != self.slot and other.cells[WorkerCell.HEARTBEAT]
        ]
        now = self.now
        for pool in plan.pools.values():
            if pool.until <= now:
                pool.look()
        plan.refresh()
        for listener in self.listeners.values():
            listener.others = sum(cells[listener.base] for cells in self._siblings)

    def _on_bell(self) -> None:
        """The state of some server changed."""
        if self.current is not None:
            self.chores.begin(self.current.look(), first=True)
            self.pacer.look()

    # --- the channel ---------------------------------------------------------------------------------

    def say(self, message: messages.AnyMessage) -> None:
        """Tells the master."""
        try:
            messages.send(self.channel, message)
        except BlockingIOError:
            # The master reads each message in its turn; a queue that is full means that it hangs.
            self.log.error("message to the master lost: its queue is full", message=type(message).__name__)
        except OSError as error:
            self.log.warning("message to the master not sent", message=type(message).__name__, error=error)

    def _on_channel(self) -> None:
        try:
            received = messages.receive(self.channel)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._orphaned(str(error))
            return
        if received is None:
            self._orphaned("the channel was closed")
            return
        message, fds = received
        self._obey(message, fds)

    def _obey(self, message: messages.AnyMessage, fds: list[int]) -> None:
        match message:
            case messages.Attach(roles=roles):
                self._attached.extend(zip(roles, fds, strict=True))
            case messages.Prepare(generation=generation, roles=roles):
                self._attached.extend(zip(roles, fds, strict=True))
                self._prepare(generation)
            case messages.Commit(generation=generation):
                self._commit(generation)
            case messages.Abort():
                self._abort()
            case messages.ReopenLogs():
                self._reopen(fds)
            case messages.Stop(grace=grace, hand_over=hand_over):
                self.stop(grace, hand_over=hand_over)
            case messages.Keep(reclaim=reclaim):
                self._reclaiming.attend(socket.socket(fileno=fds[0]), reclaim=reclaim)
            case messages.Give():
                self.handovers.give(message, fds)
            case messages.Take():
                self.handovers.take(message, fds)
            case messages.ListTunnels():
                self.say(tunnel_desk.page(self.tunnels, message, time.monotonic()))
            case messages.CloseTunnels():
                self.say(tunnel_desk.close(self, message))
            case messages.MoveTunnels():
                self.say(tunnel_desk.move(self, message))
            case _:
                self.log.error("message that a worker does not know", message=type(message).__name__)

    def _prepare(self, generation: int) -> None:
        self._abort_prepared()
        roles, self._attached = self._attached, []
        self._preparing = self._prepare_in_steps(generation, roles)
        next(self._preparing)  # from here on it sees to the descriptors
        self.chores.begin(self._preparing)

    def _prepare_in_steps(self, generation: int, roles: list[tuple[object, int]]) -> Steps:
        try:
            yield
            prepared = Prepared(self, _read_snapshot(roles))
            yield from prepared.build(roles)
        except GeneratorExit:
            _close_all([fd for _, fd in roles])
            raise
        except (PlanError, TlsSetupError, snapshot.SnapshotError, OSError) as error:
            _close_all([fd for _, fd in roles])
            # A text with a surrogate, as of an undecodable file name, could not be sent.
            text = str(error).encode("utf-8", "replace").decode("utf-8")
            self.say(messages.Refused(generation=generation, error=text))
            return
        except Exception as error:
            # A bug of ours, which must not cost the reloads to come: the master is told, and goes on.
            _close_all([fd for _, fd in roles])
            self._failed(error, self._on_channel)
            self.say(messages.Refused(generation=generation, error=f"fault in the worker: {error!r}"))
            return
        _close_all([fd for role, fd in roles if isinstance(role, _READ_AT_ONCE)])
        self._prepared, self._preparing = prepared, None
        self.say(messages.Prepared(generation=generation))

    def _commit(self, generation: int) -> None:
        prepared = self._prepared
        if prepared is None or prepared.snapshot.generation != generation:
            self.log.error("commit of what was not prepared", generation=generation)
            return
        self._prepared = None
        self.chores.begin(self._commit_in_steps(prepared))

    def _commit_in_steps(self, prepared: Prepared) -> Steps:
        """Where it is switched to the new configuration, there is no rest."""
        yield from prepared.plan.own_rows(self)
        former = self.current
        self._switch(prepared)
        yield
        yield from prepared.plan.adopt(former)
        self.say(messages.Committed(generation=prepared.snapshot.generation))
        self._reclaiming.serve()
        if former is not None:
            self._let_go_later(former.replaced_by(prepared.plan))

    def _let_go_later(self, pools: list[Pool]) -> None:
        if pools:
            self.loop.call_later(_LET_GO_AFTER, lambda: self.chores.begin(self._let_go(pools)))

    def _let_go(self, pools: list[Pool]) -> Steps:
        """Frees the pools of a former configuration, but for those by which an exchange is still under way.
        (Pools and servers know each other, so the collector would have to find them, all at once.)"""
        busy: set[Pool | None] = set()
        for client in tuple(self.clients):
            busy.add(getattr(client.exchange, "pool", None))
            yield
        for pool in pools:
            if pool not in busy:
                pool.servers = []
            yield
        self._let_go_later([pool for pool in pools if pool in busy])
        while pools:
            pools.pop()
            yield

    def _switch(self, prepared: Prepared) -> None:
        acceptors = prepared.commit(self.listeners, self.acceptors)
        if self.stopping:  # told so meanwhile
            for acceptor in acceptors:
                acceptor.close()
            acceptors = []
        self.acceptors = acceptors
        self.current = prepared.plan
        self.pacer.adopt(prepared.snapshot)
        self._set_journal(prepared)
        cells = self.slab.cells
        cells[WorkerCell.GENERATION] = prepared.snapshot.generation
        cells[WorkerCell.LISTENERS] = len(acceptors)

    def _set_journal(self, prepared: Prepared) -> None:
        spec = prepared.snapshot.access_log
        former = self.journal
        if prepared.log_fd < 0:
            self.journal = None
            if former is not None:
                former.finish()
        elif former is None:
            self.journal = Journal(self, prepared.log_fd, spec)
        else:
            former.reconfigure(prepared.log_fd, spec)

    def _abort(self) -> None:
        self._abort_prepared()
        _close_all([fd for _, fd in self._attached])
        self._attached = []

    def _abort_prepared(self) -> None:
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            self.chores.cancel(preparing)
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            _close_all([fd for _, fd in prepared.sockets])
            if prepared.log_fd >= 0:
                os.close(prepared.log_fd)

    def _reopen(self, fds: list[int]) -> None:
        if self.journal is not None and len(fds) == 1:
            self.journal.reopen(fds[0])
        else:
            _close_all(fds)

    # --- the end -------------------------------------------------------------------------------------

    def _orphaned(self, why: str) -> None:
        """The master is gone: no new connections, and what is there may live on for `drain.hard_stop`; only
        towards its end are tunnels closed."""
        self.log.warning("the master is gone; draining", why=why)
        self.loop.remove_reader(self.channel.fileno())
        self._abort()
        plan = self.current
        self.stop(plan.snapshot.drain.hard_stop if plan is not None else 0.0, late=True)

    def stop(self, grace: float, *, hand_over: bool = False, late: bool = False) -> None:
        """Accepts what is queued and nothing more, ends what is in flight, closes tunnels politely, and
        leaves after `grace` seconds at the latest. With `hand_over` only tunnels that can't be handed over
        are closed, and who waits for admission goes on to; with `late` all are closed only when it is time.
        A second call changes the grace."""
        self._deadline = time.monotonic() + grace
        if not self.stopping:
            self.stopping = True
            for acceptor in self.acceptors:
                acceptor.close()
            self.acceptors = []
            self.slab.cells[WorkerCell.LISTENERS] = 0
            self.chores.begin(self._stop_clients(hurried=not hand_over), first=True)
            if hand_over:
                self._withdraw()
        if not hand_over:
            self._end_admission()
        if grace > 0:
            self.pacer.leave(grace, hand_over=hand_over, late=late)
        self._look_for_end(time.monotonic())

    def _stop_clients(self, *, hurried: bool) -> Steps:
        for client in tuple(self.clients):
            client.stop(hurried=hurried)
            yield

    def _withdraw(self) -> None:
        pools = self.current.pools.values() if self.current is not None else ()
        for pool in pools:
            if pool.admission is not None:
                pool.admission.withdraw()

    def _end_admission(self) -> None:
        if self.admits:
            self.admits = False
            for client in tuple(self.clients):
                client.stop_waiting()

    def _look_for_end(self, now: float) -> None:
        late = now >= self._deadline
        if now >= self._deadline - _LAST_ANSWERS:
            self._end_admission()
        if late:
            self.handovers.abort("the worker stops")
            for tunnel in tuple(self.tunnels.values()):
                tunnel.stop()
            for client in tuple(self.clients):
                client.abandon()
        if not self.clients and not self.tunnels and (late or not self.handovers.busy):
            self.loop.stop()

    def close(self) -> None:
        """Lets go of what is left when the loop has ended: idle connections and the log."""
        self.handovers.abort("the worker ended")
        if self.current is not None:
            for pool in self.current.pools.values():
                for _ in pool.retire({}):
                    pass
        if self.journal is not None:
            self.journal.close()
        self.keeping.close()
        self.loop.close()
        self.log.flush()


_READ_AT_ONCE: Final = (messages.SnapshotFd, messages.CertificateFd)


def _read_snapshot(roles: list[tuple[object, int]]) -> snapshot.Snapshot:
    for role, fd in roles:
        if isinstance(role, messages.SnapshotFd):
            return snapshot.decode(os.pread(fd, os.fstat(fd).st_size, 0))
    raise PlanError("no snapshot came with the configuration")


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
