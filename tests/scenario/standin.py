"""A load balancer whose workers are stand-ins: the real master over real processes, sockets and channels,
with workers that answer every connection with one JSON line about themselves.

Run as `python -m tests.scenario.standin CONFIG`. What a worker does wrong is told by files beside CONFIG:
`crash` (exits at start), `crash-prepare` (dies preparing), `crash-once` (the first that sees it removes it
and dies preparing), `refuse` (refuses to prepare), `slow`
(accepts nothing while the file is there), `late` (is not ready while the file
is there), `hang` (the event loop stands still when it accepts). The control process is a stand-in,
too, unless there is a file `real-control`; `crash-control` makes the stand-in exit. PREPARE_DEADLINE in the
environment is what workers get to prepare a reload, in seconds.

Tunnels are numbers here: a file `tunnels-SLOT` opens as many in the worker as it says, and is removed then.
Keepers and the workers' ends of hand-overs are stand-ins for them. `sticky` makes tunnels stay,
`no-answer` makes takers ignore what they are given, `no-settle` keepers ignore `Settle`, `crash-reclaim`
workers die instead of taking over what a predecessor left.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence

from lb.config import ConfigErrors
from lb.control.messages import Hello, Leave, receive_in_control
from lb.master import spawn
from lb.master.failures import StartError
from lb.master.master import Master
from lb.master.spawn import Programs
from workers.contract import messages
from workers.contract import snapshot as snapshots
from workers.contract.bells import Bells
from workers.contract.cells import ControlCell, WorkerCell
from workers.contract.ledger import Ledger
from workers.contract.messages import (
    Abort,
    AccessLogFd,
    Attach,
    CertificateFd,
    Commit,
    Committed,
    Give,
    Given,
    Keep,
    ListenerFd,
    Prepare,
    Prepared,
    Ready,
    Reclaimed,
    Refused,
    ReopenLogs,
    SnapshotFd,
    Stop,
    Take,
)
from workers.contract.scoreboard import Scoreboard, Slab
from workers.contract.tunnels import (
    BATCH,
    Attend,
    Back,
    BackEnd,
    Drop,
    Hold,
    KeeperReady,
    Ping,
    Pong,
    Reclaim,
    Settle,
    Settled,
    receive_in_keeper,
    receive_keeping,
)
from workers.contract.tunnels import (
    Leave as LeaveKeeper,
)

FOLDER = pathlib.Path(".")


class StandIn:
    """Speaks the worker's side of the channel, in the simplest way."""

    def __init__(self, slot: int, channel: socket.socket, slab: Slab) -> None:
        self.slot = slot
        self.channel = channel
        self.cells = slab.cells
        self.selector = selectors.DefaultSelector()
        self.selector.register(channel, selectors.EVENT_READ)
        self.attached: list[tuple[messages.FdRole, int]] = []
        self.listening: dict[int, socket.socket] = {}
        self.generation = 0
        self.log_fd = -1
        self.certificates: dict[str, int] = {}
        self.stopping = False
        self.tunnels: set[int] = set()
        self.opened = 0
        self.keeper: socket.socket | None = None
        self.reclaim = False
        self.takes: dict[int, socket.socket] = {}
        self.leave_by: float | None = None
        slab.clear_gauges()

    def run(self) -> int:
        self.cells[WorkerCell.PID] = os.getpid()
        if (FOLDER / "crash").exists():
            return 3
        while (FOLDER / "late").exists():
            time.sleep(0.01)
        messages.send(self.channel, Ready(pid=os.getpid()))
        while not self.stopping:
            self.cells[WorkerCell.HEARTBEAT] = time.monotonic_ns()
            self.open_tunnels()
            if self.leave_by is not None and (not self.tunnels or time.monotonic() > self.leave_by):
                return 0
            for key, _ in self.selector.select(0.02):
                if key.fileobj is self.channel:
                    if not self.obey():
                        return 0
                elif key.fd in self.takes:
                    self.take(self.takes.pop(key.fd))
                elif key.fileobj is self.keeper:
                    self.from_keeper(self.keeper)
                elif key.fd in self.listening and not (FOLDER / "slow").exists():
                    self.accept(self.listening[key.fd])
        return 0

    def obey(self) -> bool:
        received = messages.receive(self.channel)
        if received is None:
            return False
        message, fds = received
        match message:
            case Attach():
                self.attached += zip(message.roles, fds, strict=True)
            case Prepare():
                self.attached += zip(message.roles, fds, strict=True)
                self.prepare(message.generation)
            case Abort():
                self.drop_attached()
            case Commit():
                self.commit(message.generation)
            case ReopenLogs():
                os.close(self.log_fd)
                self.log_fd = fds[0]
            case Stop():
                for listening in self.listening.values():
                    self.drain(listening)
                self.stopping = not message.hand_over
                self.leave_by = time.monotonic() + message.grace
            case Keep():
                self.keep(socket.socket(fileno=fds[0]), message.reclaim)
            case Give():
                self.give(socket.socket(fileno=fds[0]), message)
            case Take():
                if not (FOLDER / "no-answer").exists():
                    self.selector.register(fds[0], selectors.EVENT_READ)
                self.takes[fds[0]] = socket.socket(fileno=fds[0])
        return True

    # --- tunnels, which are numbers ----------------------------------------------------------------------

    def count(self) -> None:
        self.cells[WorkerCell.TUNNELS] = len(self.tunnels)
        self.cells[WorkerCell.MOVABLE] = 0 if (FOLDER / "sticky").exists() else len(self.tunnels)
        self.cells[WorkerCell.SAFE] = len(self.tunnels) if self.keeper is not None else 0

    def open_tunnels(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            path = FOLDER / f"tunnels-{self.slot}"
            many = int(path.read_text())
            path.unlink()
            self.add(many)
        self.count()

    def add(self, many: int) -> None:
        fresh = range(self.opened, self.opened + many)
        self.opened += many
        self.tunnels |= {*fresh}
        self.hold(fresh)

    def hold(self, numbers: Sequence[int]) -> None:
        """Two descriptors each, as with real tunnels."""
        for start in range(0, len(numbers), BATCH):
            batch = [(number, 1) for number in numbers[start : start + BATCH]]
            if self.keeper is not None:
                with contextlib.suppress(ConnectionError):  # it died: the master sends another
                    messages.send(self.keeper, Hold(tunnels=tuple(batch)), [0, 0] * len(batch))
        self.count()

    def keep(self, keeper: socket.socket, reclaim: bool) -> None:
        if self.keeper is not None:
            self.lose_keeper(self.keeper)
        self.keeper, self.reclaim = keeper, reclaim
        keeper.setblocking(True)
        self.selector.register(keeper, selectors.EVENT_READ)
        self.hold(sorted(self.tunnels))

    def lose_keeper(self, keeper: socket.socket) -> None:
        self.selector.unregister(keeper)
        keeper.close()
        self.keeper = None

    def from_keeper(self, keeper: socket.socket) -> None:
        received = receive_keeping(keeper)
        if received is None:
            self.lose_keeper(keeper)
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        match message:
            case Back():
                self.tunnels |= {*message.entries}
                self.opened = max(self.opened, max(self.tunnels) + 1)
                self.count()
            case BackEnd():
                messages.send(self.channel, Reclaimed(restored=len(self.tunnels), closed=message.lost))

    def give(self, pair: socket.socket, order: Give) -> None:
        going = [] if (FOLDER / "sticky").exists() else sorted(self.tunnels)[: order.count]
        error = ""
        with pair:
            pair.setblocking(True)
            try:
                pair.send(b"%d" % len(going))
                if pair.recv(10) != b"ok":
                    raise ConnectionError("the taker is gone")
            except ConnectionError as failure:
                going, error = [], str(failure)
        self.tunnels -= {*going}
        if self.keeper is not None and going:
            messages.send(self.keeper, Drop(entries=tuple(going)))
        self.count()
        messages.send(self.channel, Given(transfer=order.transfer, count=len(going), error=error))

    def take(self, pair: socket.socket) -> None:
        self.selector.unregister(pair)
        with pair:
            said = pair.recv(100)
            if said:  # else the giver died
                self.add(int(said))
                pair.send(b"ok")

    # --- configurations and connections ------------------------------------------------------------------

    def prepare(self, generation: int) -> None:
        if (FOLDER / "crash-prepare").exists() and generation > 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if (FOLDER / "crash-once").exists():
            with contextlib.suppress(FileNotFoundError):
                (FOLDER / "crash-once").unlink()
                os.kill(os.getpid(), signal.SIGSEGV)
        if (FOLDER / "refuse").exists():
            self.drop_attached()
            messages.send(self.channel, Refused(generation=generation, error="told to refuse"))
            return
        messages.send(self.channel, Prepared(generation=generation))

    def drop_attached(self) -> None:
        for _, fd in self.attached:
            os.close(fd)
        self.attached = []

    def commit(self, generation: int) -> None:
        before, self.listening = self.listening, {}
        homes = {listening.getsockname() for listening in before.values()}
        names = set()
        for role, fd in self.attached:
            match role:
                case ListenerFd():
                    listening = socket.socket(fileno=fd)
                    listening.setblocking(False)
                    self.listening[fd] = listening
                    self.selector.register(listening, selectors.EVENT_READ)
                    names.add(listening.getsockname())
                case SnapshotFd():
                    snapshots.decode(os.pread(fd, os.fstat(fd).st_size, 0))
                    os.close(fd)
                case CertificateFd():
                    with open(f"/proc/self/fd/{fd}", "rb") as file:
                        self.certificates[role.certificate] = len(file.read())
                    os.close(fd)
                case AccessLogFd():
                    if self.log_fd >= 0:
                        os.close(self.log_fd)
                    self.log_fd = fd
        self.attached = []
        for listening in before.values():
            self.selector.unregister(listening)
            if listening.getsockname() in homes - names:
                self.drain(listening)
            listening.close()
        self.generation = generation
        self.cells[WorkerCell.GENERATION] = generation
        self.cells[WorkerCell.LISTENERS] = len(self.listening)
        messages.send(self.channel, Committed(generation=generation))
        if self.reclaim and self.keeper is not None:
            if (FOLDER / "crash-reclaim").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            self.reclaim = False
            messages.send(self.keeper, Reclaim())

    def drain(self, listening: socket.socket) -> None:
        while self.accept(listening):
            pass

    def accept(self, listening: socket.socket) -> bool:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return False
        answer = {
            "slot": self.slot,
            "pid": os.getpid(),
            "generation": self.generation,
            "uid": os.getuid(),
            "certificates": self.certificates,
        }
        while (FOLDER / "hang").exists():
            time.sleep(0.01)
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(json.dumps(answer).encode() + b"\n")
            if self.log_fd >= 0:
                os.write(self.log_fd, b"answered\n")
        self.cells[WorkerCell.REQUESTS] += 1
        return True


def run(slot: int, channel: socket.socket, board: Scoreboard, _bells: Bells, _ledger: Ledger) -> int:
    return StandIn(slot, channel, board.slab(slot)).run()


class Keeper:
    """Keeps numbers; the descriptors that come with them are closed."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.worker: socket.socket | None = None
        self.held: set[int] = set()

    def run(self) -> int:
        messages.send(self.channel, KeeperReady(pid=os.getpid()))
        while True:
            watched = [self.channel] if self.worker is None else [self.worker, self.channel]
            ready = select.select(watched, [], [])[0]
            if self.worker in ready:  # what it said before it died comes before `Settle`
                self.from_worker(self.worker)
            elif not self.from_master():
                return 0

    def from_master(self) -> bool:
        received = receive_in_keeper(self.channel)
        if received is None:
            return False
        match received[0]:
            case Attend():
                if self.worker is not None:
                    self.worker.close()
                self.worker = socket.socket(fileno=received[1][0])
                self.worker.setblocking(True)
            case Settle():
                if not (FOLDER / "no-settle").exists():
                    messages.send(self.channel, Settled(held=len(self.held)))
            case Ping():
                messages.send(self.channel, Pong())
            case LeaveKeeper():
                return False
        return True

    def from_worker(self, worker: socket.socket) -> None:
        received = receive_keeping(worker)
        if received is None:
            worker.close()
            self.worker = None
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        match message:
            case Hold():
                self.held |= {entry for entry, _ in message.tunnels}
            case Drop():
                self.held -= {*message.entries}
            case Reclaim():
                entries = sorted(self.held)
                for start in range(0, len(entries), BATCH):
                    messages.send(worker, Back(entries=tuple(entries[start : start + BATCH])))
                messages.send(worker, BackEnd())


def run_keeper(_slot: int, channel: socket.socket, _ledger: Ledger) -> int:
    return Keeper(channel).run()


def run_control(
    channel: socket.socket,
    board: Scoreboard,
    _bells: Bells,
    _metrics: socket.socket | None,
    _admin: socket.socket | None,
) -> int:
    """A control process that does nothing but live."""
    messages.send(channel, Hello(pid=os.getpid()))
    while True:
        board.control[ControlCell.HEARTBEAT] = time.monotonic_ns()
        if (FOLDER / "crash-control").exists():
            return 3
        if not select.select([channel], [], [], 0.1)[0]:
            continue
        received = receive_in_control(channel)
        if received is None or isinstance(received[0], Leave):
            return 0
        for fd in received[1]:
            os.close(fd)


def main() -> int:
    global FOLDER
    path = pathlib.Path(sys.argv[1])
    FOLDER = path.parent
    try:
        control = spawn.preload().control if (FOLDER / "real-control").exists() else run_control
        deadline = float(os.environ.get("PREPARE_DEADLINE", "2.0"))
        return Master(path, "test", Programs(run, control, run_keeper), prepare_deadline=deadline).run()
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return 1
    except StartError as error:
        print(f"lb: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
