"""The control process: what the master tells it, and the parts that work with that."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import traceback
from typing import Any, Final

import msgspec

from lb.control.channel import Channel
from lb.control.control import LastCheck
from lb.control.events import EventLog
from lb.control.messages import (
    Configured,
    Discovered,
    Event,
    Hello,
    Leave,
    MasterStatus,
    Reloaded,
    ToControl,
    WorkerAnswer,
)
from lb.control.parts import Parts
from lb.control.requests import Requests
from lb.control.spec import ControlSpec, Discovery
from lb.control.states import ServerStates
from lb.master.deployment import sealed
from lb.master.report import Outcome, StatusReport
from workers.contract import snapshot as snapshots
from workers.contract.bells import Bells
from workers.contract.cells import ControlCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import CloseTunnels, ListTunnels, MoveTunnels, Tunnels, TunnelsClosed
from workers.contract.scoreboard import Scoreboard
from workers.contract.snapshot import Snapshot

BEAT: Final = 0.5
EXIT_FAULT: Final = 70  # sysexits: internal software error


class ControlProcess:
    """Implements `lb.control.control.Control`. `snapshot`, `spec` and `status` are there from the moment on
    that the parts are made."""

    snapshot: Snapshot
    spec: ControlSpec
    status: StatusReport

    def __init__(
        self,
        channel: socket.socket,
        board: Scoreboard,
        bells: Bells,
        metrics: socket.socket | None,
        admin: socket.socket | None,
    ) -> None:
        """To be made where the event loop runs."""
        self.board = board
        self.bells = bells
        self.log = ErrorLog("control")
        self.started = time.time()
        self.events = EventLog(self._forward)
        self.states = ServerStates(board, bells, self.events)
        self._sockets = metrics, admin
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._fault)
        self._over: asyncio.Future[int] = self._loop.create_future()
        self._channel = Channel(channel, self._took, self._orphaned)
        self._requests = Requests(self._channel)
        self._parts: Parts | None = None
        self._starting: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Works until the master says so, or is gone; the exit status."""
        self.board.control[ControlCell.PID] = os.getpid()
        self._beat()
        self._channel.send(Hello(pid=os.getpid()))
        try:
            return await self._over
        finally:
            await self._close()

    # --- what the parts ask for (Control) ----------------------------------------------------------------

    async def reload(self) -> Outcome:
        """Reloads the configuration and waits for the outcome. Raises `Unanswered`."""
        return await self._requests.reload()

    async def list_tunnels(self, slot: int, what: ListTunnels) -> Tunnels:
        """Asks the worker in `slot`. Raises `Unanswered`."""
        answer = await self._requests.worker(slot, what)
        return answer.tunnels or Tunnels(request=0, tunnels=(), total=0, more=False)

    async def close_tunnels(self, slot: int, what: CloseTunnels | MoveTunnels) -> TunnelsClosed:
        """Tells the worker in `slot`. Raises `Unanswered`."""
        answer = await self._requests.worker(slot, what)
        return answer.closed or TunnelsClosed(request=0, count=0)

    def discovered(self, discovery: Discovery) -> None:
        """Tells the master what was found."""
        fd = sealed("lb-discovery", msgspec.msgpack.encode(discovery))
        try:
            if not self._channel.send(Discovered(), (fd,)):
                self.log.error("what was discovered can't be told to the master")
        finally:
            os.close(fd)

    def last_check(self, pool: str, server: str) -> LastCheck | None:
        """The last active check of a server; `None` before the first."""
        return None if self._parts is None else self._parts.last_check(pool, server)

    def check_problems(self) -> list[str]:
        """Which health checks come late, a line for each pool."""
        return [] if self._parts is None else self._parts.check_problems()

    def discovery_problems(self) -> list[str]:
        """What discovery can't find now, a line for each."""
        return [] if self._parts is None else self._parts.discovery_problems()

    # --- what the master says ----------------------------------------------------------------------------

    def _took(self, message: ToControl, fds: list[int]) -> None:
        try:
            match message:
                case Configured():
                    self._configure(fds)
                case MasterStatus(report=report):
                    self.status = report
                    self._start()
                case Event():
                    self.events.take(message)
                case Reloaded() | WorkerAnswer():
                    self._requests.answered(message)
                case Leave():
                    self._end(0)
        except (OSError, ValueError, *snapshots.DECODE_ERRORS) as error:
            self.log.error("what the master said can't be read", what=type(message).__name__, error=error)
            self._end(EXIT_FAULT)
        finally:
            for fd in fds:
                os.close(fd)

    def _configure(self, fds: list[int]) -> None:
        snapshot, spec = fds
        self.snapshot = snapshots.decode(_content(snapshot))
        self.spec = msgspec.msgpack.decode(_content(spec), type=ControlSpec)
        self.states.adopt(self.snapshot)
        if self._parts is not None:
            self._parts.adopt()

    def _start(self) -> None:
        """The first status comes after the first configuration: now all that the parts need is there."""
        if self._starting is None:
            self._starting = self._loop.create_task(self._serve())
            self._starting.add_done_callback(self._started)

    async def _serve(self) -> None:
        self._parts = Parts(self)
        self._loop.add_reader(self.bells.control, self._rung)
        await self._parts.serve(*self._sockets)
        self.log.info("control process serves", pid=os.getpid())

    def _started(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            trace = "".join(traceback.format_exception(error)[-3:])
            self.log.error("the control process can't start", error=repr(error), trace=trace)
            self._end(EXIT_FAULT)

    def _rung(self) -> None:
        self.bells.silence_control()
        if self._parts is not None:
            self._parts.look()

    def _orphaned(self, why: str) -> None:
        self.log.warning("control process leaves", reason=why)
        self._end(0)

    # --- the loop ----------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self.board.control[ControlCell.HEARTBEAT] = time.monotonic_ns()
        self._loop.call_later(BEAT, self._beat)

    def _forward(self, event: Event) -> None:
        if not self._channel.send(event):
            self.log.warning("an event is not kept beyond this process", kind=event.kind)

    def _fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        fields = {"what": context["message"], "error": repr(error)}
        if error is not None:
            fields["trace"] = "".join(traceback.format_exception(error)[-3:])
        self.log.error("fault in the control process, please report it", **fields)

    def _end(self, status: int) -> None:
        if not self._over.done():
            self._over.set_result(status)

    async def _close(self) -> None:
        self._loop.remove_reader(self.bells.control)
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        self._requests.close("the load balancer stops")
        if self._parts is not None:
            await self._parts.close()
        self._channel.close()
        self.log.flush()


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
