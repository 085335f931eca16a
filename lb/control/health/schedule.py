"""When which server is checked, and what its results change."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import Final

from lb.control.control import Control, LastCheck
from lb.control.health.check import check
from lb.control.health.finding import Finding, NotChecked
from lb.control.health.places import Places, most_at_once
from lb.control.health.target import Contexts, Target, tls_of
from lb.control.health.verdict import Verdict
from workers.contract.cells import Health
from workers.contract.snapshot import PoolSpec, ServerSpec

FIRST_WITHIN: Final = 1.0  # seconds in which all first checks begin
JITTER: Final = 0.1  # of the interval, both ways

Key = tuple[int, int]  # slot and owner


class Watch:
    """A server that is checked."""

    __slots__ = ("due", "last", "late", "pool", "target", "task", "verdict")

    def __init__(self, pool: str, target: Target, verdict: Verdict) -> None:
        self.pool = pool
        self.target = target
        self.verdict = verdict
        self.last: LastCheck | None = None
        self.due = 0.0  # when the next check should begin (monotonic); 0.0 while one runs
        self.late = 0.0  # seconds by which the last one began late
        self.task: asyncio.Task[None] | None = None

    def lateness(self, now: float) -> float:
        """Seconds by which its checks are late: the one that waits, or the last."""
        return max(self.late, now - self.due if self.due else 0.0)

    def stop(self) -> asyncio.Task[None] | None:
        """No more checks. The task that is ending, to be waited for."""
        self.target.close()
        if self.task is not None:
            self.task.cancel()
        return self.task


class HealthChecks:
    """Checks every server that has a `HealthSpec`, whatever the operator wants of it: one in drain or maint
    is known to be up or down before it is used again.

    The first checks are spread over a moment, and each interval is up to a tenth shorter or longer, so that
    neither the servers of one load balancer nor several load balancers fall into step. An interval is from
    the begin of a check to the begin of the next, and no server is checked twice at once.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._watches: dict[Key, Watch] = {}
        self._by_name: dict[tuple[str, str], Watch] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._contexts = Contexts()
        self._places = Places(most_at_once())
        self._random = random.Random()

    def adopt(self) -> None:
        """`control.snapshot` was replaced. Checks that stay the same go on where they are; changed ones
        start anew, with the health that is on the board until they say otherwise."""
        former, self._watches = self._watches, {}
        new: list[Watch] = []
        for pool in self._control.snapshot.pools:
            for index, server in enumerate(pool.servers):
                self._adopt_server(pool, index, server, former, new)
        for watch in former.values():
            self._stop(watch)
        self._by_name = {(watch.pool, watch.target.server.name): watch for watch in self._watches.values()}
        self._contexts.keep({watch.target.tls for watch in self._watches.values() if watch.target.tls})
        self._places.share({watch.pool for watch in self._watches.values()})
        self._start(new)

    def _adopt_server(
        self, pool: PoolSpec, index: int, server: ServerSpec, former: dict[Key, Watch], new: list[Watch]
    ) -> None:
        spec = pool.checks[index] if pool.checks else None
        if spec is None:
            # A verdict that nobody renews would stay for ever.
            self._control.states.set_health(pool.name, server, Health.UNKNOWN, "not checked any more")
            return
        key = (server.slot, server.owner)
        target = Target(server, spec, tls_of(spec, pool), self._contexts)
        watch = former.get(key)
        if watch is not None and watch.target.same_as(target):
            del former[key]
            watch.pool = pool.name
            watch.target.server = server  # its addresses and weight may be others
        else:
            verdict = Verdict(spec.fall, spec.rise, self._control.states.health(server))
            watch = Watch(pool.name, target, verdict)
            new.append(watch)
        self._watches[key] = watch

    def last(self, pool: str, server: str) -> LastCheck | None:
        """The last check of a server; `None` before the first, and where there are none."""
        watch = self._by_name.get((pool, server))
        return watch.last if watch else None

    def problems(self) -> list[str]:
        """Of which pools the checks come late, a line for each: they begin more than two intervals after the
        one before."""
        now = time.monotonic()
        servers: dict[str, int] = {}
        worst: dict[str, tuple[float, float]] = {}  # lateness and interval
        for watch in self._watches.values():
            late, every = watch.lateness(now), watch.target.spec.every
            if late > every:
                servers[watch.pool] = servers.get(watch.pool, 0) + 1
                worst[watch.pool] = max(worst.get(watch.pool, (0.0, 0.0)), (late + every, every))
        return [
            f"pool {pool}: {count} servers are checked too late, after {worst[pool][0]:.1f}s instead of"
            f" {worst[pool][1]:g}s: more than {self._places.most} checks would run at once; allow more open"
            " files, or give the checks a longer every or a shorter timeout"
            for pool, count in servers.items()
        ]

    async def close(self) -> None:
        """Stops all checks, those that are running too, and waits until they have let go."""
        for watch in self._watches.values():
            self._stop(watch)
        self._watches = {}
        self._by_name = {}
        await asyncio.gather(*self._ending, return_exceptions=True)

    # --- tasks -------------------------------------------------------------------------------------------

    def _start(self, watches: list[Watch]) -> None:
        loop = asyncio.get_running_loop()
        for index, watch in enumerate(watches):
            delay = min(watch.target.spec.every, FIRST_WITHIN) * index / len(watches)
            watch.task = loop.create_task(self._run(watch, delay))

    def _stop(self, watch: Watch) -> None:
        task = watch.stop()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _run(self, watch: Watch, delay: float) -> None:
        while True:
            watch.due = time.monotonic() + delay
            await asyncio.sleep(delay)
            async with self._places.place(watch.pool):
                began = time.monotonic()
                watch.late, watch.due = began - watch.due, 0.0
                await self._check(watch)
            every = watch.target.spec.every * self._random.uniform(1 - JITTER, 1 + JITTER)
            delay = max(0.0, began + every - time.monotonic())

    async def _check(self, watch: Watch) -> None:
        began = time.monotonic()
        try:
            async with AsyncExitStack() as stack:
                finding = await check(watch.target, stack)
                # Before the connection has ended: a slow farewell must not hold back a flip.
                self._found(watch, finding, time.monotonic() - began)
        except NotChecked as error:
            self._complain("health check could not be made", watch, str(error))
        except Exception as error:  # a fault of ours: told, and no reason to stop checking
            self._complain("fault in a health check", watch, repr(error))

    def _complain(self, event: str, watch: Watch, error: str) -> None:
        server = watch.target.server.name
        self._control.log.error(event, pool=watch.pool, server=server, error=error)

    # --- results -----------------------------------------------------------------------------------------

    def _found(self, watch: Watch, finding: Finding, seconds: float) -> None:
        server = watch.target.server
        states = self._control.states
        watch.last = LastCheck(finding.result, finding.detail, time.time(), seconds)
        states.checked(server, finding.result)
        flip = watch.verdict.observe(finding.result)
        if flip is not None:
            states.set_health(watch.pool, server, flip, finding.detail if flip is Health.DOWN else "")
            tell = self._control.log.warning if flip is Health.DOWN else self._control.log.info
            tell(f"server is {flip.name.lower()}", pool=watch.pool, server=server.name, why=finding.detail)
