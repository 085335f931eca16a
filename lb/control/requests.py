"""What the control process asks the master, and waits for: bounded in number and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from lb.control.channel import Channel
from lb.control.control import Unanswered
from lb.control.messages import AskReload, AskWorker, Reloaded, WorkerAnswer
from lb.master.report import Outcome
from workers.contract.messages import CloseTunnels, ListTunnels, Message, MoveTunnels

MAX_PENDING: Final = 1024
RELOAD_TIME: Final = 60.0  # one that is under way, and then its own
WORKER_TIME: Final = 8.0  # the master gives up earlier, and says why

_Answer = TypeVar("_Answer", Outcome, WorkerAnswer)


class Requests:
    """The requests without an answer, by number."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._reloads: dict[int, asyncio.Future[Outcome]] = {}
        self._workers: dict[int, asyncio.Future[WorkerAnswer]] = {}
        self._number = 0

    async def reload(self) -> Outcome:
        """Raises `Unanswered`."""
        return await self._ask(self._reloads, lambda number: AskReload(request=number), RELOAD_TIME)

    async def worker(self, slot: int, what: ListTunnels | CloseTunnels | MoveTunnels) -> WorkerAnswer:
        """Raises `Unanswered`, also where the master says why there is no answer."""
        answer = await self._ask(
            self._workers, lambda number: AskWorker(request=number, slot=slot, what=what), WORKER_TIME
        )
        if answer.error:
            raise Unanswered(answer.error)
        return answer

    def answered(self, message: Reloaded | WorkerAnswer) -> None:
        """An answer came. One that nobody waits for any more is dropped."""
        match message:
            case Reloaded(request=request, outcome=outcome):
                _resolve(self._reloads.get(request), outcome)
            case WorkerAnswer(request=request):
                _resolve(self._workers.get(request), message)

    def close(self, why: str) -> None:
        """No answer comes any more."""
        futures: list[asyncio.Future[Outcome] | asyncio.Future[WorkerAnswer]]
        futures = [*self._reloads.values(), *self._workers.values()]
        for future in futures:
            if not future.done():
                future.set_exception(Unanswered(why))

    async def _ask(
        self, table: dict[int, asyncio.Future[_Answer]], message: Callable[[int], Message], patience: float
    ) -> _Answer:
        if len(self._reloads) + len(self._workers) >= MAX_PENDING:
            raise Unanswered("too many requests wait for the master")
        self._number = number = self._number + 1
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        table[number] = future
        try:
            if not self._channel.send(message(number)):
                raise Unanswered("the master does not read its channel")
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            raise Unanswered(f"the master does not answer within {patience:g}s") from None
        finally:
            del table[number]


def _resolve(future: asyncio.Future[_Answer] | None, answer: _Answer) -> None:
    if future is not None and not future.done():
        future.set_result(answer)
