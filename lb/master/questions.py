"""What the control process asks workers, passed on by the master: bounded in number and in time."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import msgspec

from lb.control.messages import AskWorker, WorkerAnswer
from lb.master.control_process import ControlProcess
from lb.master.fleet import Fleet
from lb.master.loop import Loop, Timer
from lb.master.returns import Returns
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.messages import MAX_BYTES, CloseTunnels, MoveTunnels, Tunnels, TunnelsClosed

MAX_PENDING: Final = 1024
ANSWER_TIME: Final = 5.0
MAX_REASON: Final = 123
_ASKED: Final = (Phase.SERVING, Phase.LEAVING)


class _Question(NamedTuple):
    asker: ControlProcess
    request: int  # the asker's number
    worker: WorkerProcess
    timer: Timer


def _wrong(order: CloseTunnels | MoveTunnels) -> str:
    """Why `order` can't be carried out (RFC 6455, 5.5 and 7.4): a worker would only find out while it writes
    the frame."""
    if not 1000 <= order.code <= 4999:
        return f"{order.code} is no close code: they go from 1000 to 4999"
    if len(order.reason.encode("utf-8", "replace")) > MAX_REASON:
        return f"the reason has more than {MAX_REASON} bytes"
    return ""


class Questions:
    """The questions without an answer. Each has a number of the master's own, so that an answer to an
    earlier control process is not mistaken for one to its successor."""

    def __init__(self, loop: Loop, fleet: Fleet, answer_time: float = ANSWER_TIME) -> None:
        self._loop = loop
        self._fleet = fleet
        self._answer_time = answer_time
        self._pending: dict[int, _Question] = {}
        self.returns = Returns()
        # Never used twice, not even by a master that this process was before an upgrade.
        self._number = time.monotonic_ns()

    def ask(self, asker: ControlProcess, message: AskWorker) -> None:
        """Passes `message` on, or answers why not."""
        worker = self._fleet.workers.get(message.slot)
        error = ""
        if worker is None or worker.phase not in _ASKED or worker.closed:
            error = f"worker {message.slot} does not serve"
        elif len(self._pending) >= MAX_PENDING:
            error = "too many questions wait for the workers' answers"
        elif isinstance(message.what, (CloseTunnels, MoveTunnels)):
            error = _wrong(message.what)
        if worker is None or error:
            asker.send(WorkerAnswer(request=message.request, slot=message.slot, error=error))
            return
        self._number = number = self._number + 1
        timer = self._loop.later(self._answer_time, lambda: self._too_late(number))
        self._pending[number] = _Question(asker, message.request, worker, timer)
        worker.send(msgspec.structs.replace(message.what, request=number))
        if isinstance(message.what, MoveTunnels):
            self.returns.note(message.what)

    def answered(self, worker: WorkerProcess, message: Tunnels | TunnelsClosed) -> None:
        """Passes the answer on; one that nobody waits for any more is dropped."""
        number = message.request
        question = self._pending.get(number)
        if question is None or question.worker is not worker:
            return
        message = msgspec.structs.replace(message, request=question.request)
        answer = WorkerAnswer(
            request=question.request,
            slot=worker.slot,
            tunnels=message if isinstance(message, Tunnels) else None,
            closed=message if isinstance(message, TunnelsClosed) else None,
        )
        if len(msgspec.msgpack.encode(answer)) > MAX_BYTES:
            self._refuse(number, f"the answer of worker {worker.slot} is too long, ask for fewer")
            return
        self._take(number).asker.send(answer)

    def ended(self, worker: WorkerProcess) -> None:
        """`worker` is gone, and with it its answers."""
        for number, question in list(self._pending.items()):
            if question.worker is worker:
                self._refuse(number, f"worker {worker.slot} ended before it answered")

    def forget(self) -> None:
        """Who asked is gone."""
        for number in list(self._pending):
            self._take(number)

    def _too_late(self, number: int) -> None:
        slot = self._pending[number].worker.slot
        self._refuse(number, f"worker {slot} does not answer within {self._answer_time:g}s")

    def _refuse(self, number: int, why: str) -> None:
        question = self._take(number)
        question.asker.send(WorkerAnswer(request=question.request, slot=question.worker.slot, error=why))

    def _take(self, number: int) -> _Question:
        question = self._pending.pop(number)
        question.timer.cancel()
        return question
