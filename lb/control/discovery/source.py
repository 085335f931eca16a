"""One thing that is asked for again and again: a name or a file. What fails keeps its last answer."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, NamedTuple, TypeVar

from lb.control.events import EventLog
from lb.control.quota import Quota
from workers.contract.errorlog import ErrorLog

Value = TypeVar("Value")

PATIENCE: Final = 5.0  # seconds until an answer that does not come is a failure
GIVE_UP: Final = 60.0  # and until it is not waited for any more
LEAST_TTL: Final = 1.0
MOST_TTL: Final = 3600.0
NO_TTL: Final = 30.0  # for answers that have none, such as those of /etc/hosts
LONGEST_BACK_OFF: Final = 30.0
_EVENTS: Final = 10  # of one source at once; then one a minute


class Failed(Exception):
    """There is no answer; `str()` says why in words for the operator."""


class Answer(NamedTuple, Generic[Value]):
    """What was found, and in how many seconds it is to be asked for again. `warning` says what is not as it
    should be with it."""

    value: Value
    again: float
    warning: str = ""


def clamp(ttl: float) -> float:
    """Seconds to keep an answer with this TTL: a TTL of 0 is not asked for in a busy loop, and one of a week
    does not hide a change for a week."""
    return min(max(ttl, LEAST_TTL), MOST_TTL)


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 1, 2, 4, ... 30."""
    return min(2.0 ** (min(failures, 16) - 1), LONGEST_BACK_OFF)


class Source(Generic[Value]):
    """Asks by `ask` until it is closed: a question without an answer is waited for a minute, while the source
    is told to fail, and then given up and asked anew. No fault of `ask` is the end: it is a failure, too.

    `value` is the last answer, `None` before the first; `settled` says that the first attempt is over;
    `problem` says what fails now, `warning` what is not as it should be with the last answer. `changed()` is
    called after every change of these. `looks_every` is for what costs nobody anything: it is asked for so
    often, and no seldomer after failures.
    """

    def __init__(
        self,
        what: str,
        ask: Callable[[], Coroutine[Any, Any, Answer[Value]]],
        changed: Callable[[], None],
        log: ErrorLog,
        events: EventLog,
        *,
        looks_every: float | None = None,
    ) -> None:
        self.what = what
        self.value: Value | None = None
        self.settled = False
        self.problem = ""
        self.warning = ""
        self.answers = 0
        self.failures = 0
        self._ask = ask
        self._changed = changed
        self._log = log
        self._events = events
        self._looks_every = looks_every
        self._in_a_row = 0
        self._asked: asyncio.Future[Answer[Value]] | None = None
        self._asked_at = 0.0
        self._quota = Quota(_EVENTS, 60.0)

    async def run(self) -> None:
        """Asks for ever; ends by cancellation."""
        try:
            while True:
                await asyncio.sleep(await self._once())
        finally:
            if self._asked is not None:
                self._asked.cancel()

    async def _once(self) -> float:
        """Waits for one answer; returns the seconds until the next question."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._ask())
            self._asked_at = time.monotonic()
        done, _ = await asyncio.wait({self._asked}, timeout=PATIENCE)
        if not done:
            if time.monotonic() - self._asked_at >= GIVE_UP:
                self._asked.cancel()
                self._asked = None
            return self._failed(f"no answer within {PATIENCE:g} s")
        asked, self._asked = self._asked, None
        try:
            answer = asked.result()
        except Failed as failed:
            return self._failed(str(failed))
        except Exception as error:
            trace = "".join(traceback.format_exception(error)[-3:])
            self._log.error("fault in discovery, please report it", source=self.what, trace=trace)
            return self._failed(f"fault in lb: {type(error).__name__}")
        self._warn(answer.warning)
        self._found(answer.value)
        return answer.again

    def _warn(self, warning: str) -> None:
        if warning and warning != self.warning:
            self._log.warning("discovery", source=self.what, warning=warning)
        self.warning = warning

    def _found(self, value: Value) -> None:
        self.answers += 1
        self._in_a_row = 0
        if self.problem:
            self._log.info("discovery works again", source=self.what)
            self._tell("discovered", f"{self.what}: works again", source=self.what)
        if value != self.value or self.problem or not self.settled:
            self.value, self.problem, self.settled = value, "", True
            self._changed()

    def _failed(self, why: str) -> float:
        self.failures += 1
        self._in_a_row += 1
        if why != self.problem:
            # What a name server says varies during one outage; what is wrong in a file is another thing each
            # time.
            self._log.warning("discovery failed", source=self.what, reason=why, kept=self.value is not None)
            if not self.problem or self._looks_every is not None:
                self._tell("discovery-failed", f"{self.what}: {why}", source=self.what, reason=why)
            self.problem, self.settled = why, True
            self._changed()
        return back_off(self._in_a_row) if self._looks_every is None else self._looks_every

    def _tell(self, kind: str, text: str, **fields: str) -> None:
        shown = self._quota.take(text)
        if shown is not None:
            self._events.add(kind, shown, **fields)
