"""What the control process found becomes what the workers serve: in the same transaction as a reload, at
most once a second, seldomer where a name has other addresses all the time, and again where it failed."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from lb.control.quota import Quota
from lb.control.spec import MAX_ADDRESSES, Discovery
from lb.master.loop import Loop, Timer
from lb.master.plan import Plan
from lb.master.report import Outcome
from lb.master.wishes import FAULT, Reply
from workers.contract.errorlog import ErrorLog

LEAST_DISTANCE: Final = 1.0
RETRY: Final = 10.0
_LONGEST_RETRY: Final = 300.0
_MOST_FAULTS: Final = 5
_LONGEST_PACE: Final = 30.0
_QUIET: Final = 60.0  # seconds after which a change of a name's addresses is the first again
_SHOWN: Final = 5  # changes in an event's text
_MOST_ADDRESSES: Final = 65_536  # of all names
_MAX_ERROR: Final = 1000


class Server(Protocol):
    """Who makes a configuration of what was found: the reloader."""

    def discover(self, discovery: Discovery, reply: Reply) -> None:
        """Serves `discovery`, and tells `reply` how that ended."""


class Happened(Protocol):
    """Takes an event."""

    def __call__(self, kind: str, text: str, **fields: str | int | float) -> None: ...


class Rotation(NamedTuple):
    """A name whose addresses change: when they did so last, and how long that is to last at the least."""

    at: float
    pace: float


class Rotations:
    """How long a change of a name's addresses waits: not at all where it is the first for a minute, then
    1, 2, 4 up to 30 seconds after the one before. Name servers that answer with another part of many
    addresses each time would have everything rebuilt each second."""

    def __init__(self) -> None:
        self._names: dict[str, Rotation] = {}

    def due(self, before: Discovery, after: Discovery) -> float:
        """The monotonic time from which on `after` may follow upon `before`."""
        if before.servers != after.servers:
            return 0.0
        names = [name for name, it in after.addresses.items() if it != before.addresses.get(name)]
        return min((self._due(name) if before.addresses.get(name) else 0.0 for name in names), default=0.0)

    def _due(self, name: str) -> float:
        last = self._names.get(name)
        return 0.0 if last is None else last.at + last.pace

    def note(self, before: Discovery, after: Discovery) -> None:
        """`after` followed upon `before`."""
        now = time.monotonic()
        self._names = {name: it for name, it in self._names.items() if name in after.addresses}
        for name, addresses in after.addresses.items():
            if before.addresses.get(name, addresses) == addresses:
                continue
            last = self._names.get(name)
            again = last is not None and now - last.at < _QUIET
            pace = min(last.pace * 2, _LONGEST_PACE) if last is not None and again else LEAST_DISTANCE
            self._names[name] = Rotation(now, pace)


class Discoveries:
    """Keeps the newest, and sees to it that it is served."""

    def __init__(
        self,
        loop: Loop,
        log: ErrorLog,
        plan: Callable[[], Plan],
        reloader: Server,
        happened: Happened,
        retry: float = RETRY,
    ) -> None:
        self._retry = retry  # seconds after a failure
        self._loop = loop
        self._log = log
        self._plan = plan
        self._reloader = reloader
        self._happened = happened
        self._rotations = Rotations()
        self._quota = Quota(10, 60.0)
        self._told = ""  # the failure that was told last
        self._failures = 0  # in a row
        self._newest: Discovery | None = None  # that is not served yet
        self._timer: Timer | None = None
        self._last = -LEAST_DISTANCE

    def found(self, discovery: Discovery) -> None:
        """The control process found this; what it says nothing of stays as it was."""
        plan = self._plan()
        why = refusal(discovery, plan.state.capacity.servers)
        if why:
            self.refuse(why)
            return
        before = self._newest or plan.discovery
        merged = merge(
            before, discovery, frozenset(spec.pool for spec in plan.control.discover), _hosts(plan)
        )
        if merged == before:
            return
        self._newest = merged
        due = max(self._last + LEAST_DISTANCE, self._rotations.due(plan.discovery, merged))
        self._apply_in(max(0.0, due - time.monotonic()))

    def refuse(self, why: str) -> None:
        """What was found can't be served, now or ever."""
        self._log.error("what was discovered is refused", error=why[:_MAX_ERROR])
        self._tell_failure(why)

    def _apply_in(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.later(delay, self._apply)

    def _apply(self) -> None:
        self._timer = None
        self._last = time.monotonic()
        newest, before = self._newest, self._plan().discovery
        if newest is not None:
            self._reloader.discover(newest, lambda outcome: self._done(before, newest, outcome))

    def _done(self, before: Discovery, discovery: Discovery, outcome: Outcome) -> None:
        if not outcome.ok:
            self._failed(outcome.error)
            return
        if self._newest is discovery:
            self._newest = None
        self._failures, self._told = 0, ""
        self._rotations.note(before, discovery)
        if outcome.changes:
            self._tell(outcome)

    def _failed(self, error: str) -> None:
        self._failures += 1
        again = min(self._retry * 2.0 ** min(self._failures - 1, 16), _LONGEST_RETRY)
        hopeless = error.startswith(FAULT) and self._failures >= _MOST_FAULTS
        shown = error[:_MAX_ERROR]
        self._log.error("what was discovered can't be served", error=shown, retry_in=0 if hopeless else again)
        self._tell_failure(error.partition("\n")[0])
        if self._timer is None and not hopeless:
            self._apply_in(again)

    def _tell_failure(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._happened("discovery-failed", f"what was discovered can't be served: {why}", error=why)

    def _tell(self, outcome: Outcome) -> None:
        fields = {"generation": outcome.generation, "changes": len(outcome.changes)}
        self._log.info("discovered", **fields)
        for change in outcome.changes:
            self._log.info("changed", key=change)
        text = "; ".join(outcome.changes[:_SHOWN])
        more = len(outcome.changes) - _SHOWN
        shown = self._quota.take(text + (f"; and {more} more" if more > 0 else ""))
        if shown is not None:
            self._happened("discovered", shown, **fields)


def refusal(discovery: Discovery, room: int) -> str:
    """Why `discovery` can never be served, whatever the configuration; empty where it may be. There is `room`
    for so many servers."""
    count = sum(map(len, discovery.servers.values()))
    if count > room:
        return f"{count} servers were found, and there is room for {room}"
    if sum(map(len, discovery.addresses.values())) > _MOST_ADDRESSES:
        return f"more than {_MOST_ADDRESSES} addresses were found"
    for name, addresses in discovery.addresses.items():
        if len(addresses) > MAX_ADDRESSES:
            return f"{name[:255]} has {len(addresses)} addresses: more than {MAX_ADDRESSES} of one name"
        if wrong := [one for one in addresses if not _is_address(one)]:
            return f"{name[:255]} is {wrong[0][:80]}, which is no IP address"
    return ""


def _is_address(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _hosts(plan: Plan) -> frozenset[str]:
    """The hosts that the configuration itself names."""
    return _hosts_of(server.address for pool in plan.config.pool for server in pool.every_server)


def _hosts_of(addresses: Iterable[str]) -> frozenset[str]:
    return frozenset(address.rpartition(":")[0] for address in addresses)


def merge(before: Discovery, found: Discovery, pools: frozenset[str], hosts: frozenset[str]) -> Discovery:
    """`found`, and of `before` what it says nothing of: a fresh control process has found little yet, and
    what is not found again keeps its last answer. Left out is what nobody needs any more: pools that are
    not among `pools`, and addresses of names that are neither among `hosts` nor a server's."""
    servers = {**before.servers, **found.servers}
    servers = {pool: ones for pool, ones in servers.items() if pool in pools}
    needed = hosts | _hosts_of(server.address for ones in servers.values() for server in ones)
    addresses = {**before.addresses, **found.addresses}
    return Discovery(
        servers=servers, addresses={name: it for name, it in addresses.items() if name in needed}
    )
