"""A load balancer whose workers are stand-ins: the real master over real processes, sockets and channels,
with workers that answer every connection with one JSON line about themselves.

Run as `python -m tests.scenario.standin CONFIG`. What a worker does wrong is told by files beside CONFIG:
`crash` (exits at start), `crash-prepare` (dies preparing), `refuse` (refuses to prepare), `slow`
(accepts nothing while the file is there), `late` (is not ready while the file
is there), `hang` (the event loop stands still when it accepts). The control process is a stand-in,
too, unless there is a file `real-control`; `crash-control` makes the stand-in exit.
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
    ListenerFd,
    Prepare,
    Prepared,
    Ready,
    Refused,
    ReopenLogs,
    SnapshotFd,
    Stop,
)
from workers.contract.scoreboard import Scoreboard, Slab

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

    def run(self) -> int:
        self.cells[WorkerCell.PID] = os.getpid()
        if (FOLDER / "crash").exists():
            return 3
        while (FOLDER / "late").exists():
            time.sleep(0.01)
        messages.send(self.channel, Ready(pid=os.getpid()))
        while not self.stopping:
            self.cells[WorkerCell.HEARTBEAT] = time.monotonic_ns()
            for key, _ in self.selector.select(0.1):
                if key.fileobj is self.channel:
                    if not self.obey():
                        return 0
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
                self.stopping = True
        return True

    def prepare(self, generation: int) -> None:
        if (FOLDER / "crash-prepare").exists() and generation > 1:
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
        return Master(path, "test", Programs(run, control), prepare_deadline=2.0).run()
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return 1
    except StartError as error:
        print(f"lb: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
