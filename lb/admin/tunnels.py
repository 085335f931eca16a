"""The tunnels of all workers: listed page by page, and closed.

Only the worker knows its tunnels, so it is asked. One that does not answer is named in `missing`: a list
that lacks something is never taken for the whole.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from aiohttp import web
from msgspec import UnsetType

from lb.admin import requests
from lb.admin.answers import json
from lb.admin.auth import caller
from lb.admin.problems import Refused
from lb.admin.requests import TunnelQuery
from lb.admin.views import CLOSE_CODES, Closed, TunnelClose, TunnelPage, TunnelView
from lb.control.control import Control, Unanswered
from lb.master.report import WorkerReport
from lb.metrics.app import FRESH
from workers.contract.cells import NANOSECONDS, WorkerCell
from workers.contract.messages import CloseTunnels, ListTunnels, TunnelFilter, TunnelReport

MAX_QUESTIONS: Final = 16  # rows of one page come in so many answers at most (a message has 64 KiB)
MAX_REASON: Final = 123  # bytes: a control frame has 125, and the code takes two (RFC 6455, section 5.5)
_ID: Final = re.compile(r"(\d{1,4})-(\d{1,10})-(\d{1,18})", re.ASCII)
_CURSOR: Final = re.compile(r"(\d{1,4})-(\d{1,10})-(\d{1,18})-(\d{1,12})-([0-9a-f]{16})", re.ASCII)


class _Place(NamedTuple):
    """Where a page begins: behind tunnel `number` of process `pid` in `slot`; `total` as first counted, -1
    where that is not known."""

    slot: int = 0
    pid: int = 0
    number: int = 0
    total: int = -1


class Tunnels:
    """The routes."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._key = secrets.token_bytes(16)

    async def page(self, request: web.Request) -> web.Response:
        """One page."""
        asked = requests.query(request, TunnelQuery)
        where = TunnelFilter(
            route=asked.route, pool=asked.pool, server=asked.server, client=asked.client,
            older=asked.older, idle=asked.idle,
        )  # fmt: skip
        workers = self._workers() if isinstance(asked.worker, UnsetType) else [self._worker(asked.worker)]
        return json(await self._page(workers, where, asked.limit, self._place(asked.cursor, where)))

    async def close(self, request: web.Request) -> web.Response:
        """Closes all that match, in all workers at once."""
        asked = await requests.body(request, TunnelClose)
        _check(asked)
        where = TunnelFilter(
            route=asked.route, pool=asked.pool, server=asked.server, client=asked.client,
            older=asked.older, idle=asked.idle,
        )  # fmt: skip
        orders = self._orders(asked, where)
        answers = await asyncio.gather(*(self._close(slot, order) for slot, order in orders))
        missing = tuple(slot for (slot, _), count in zip(orders, answers, strict=True) if count is None)
        closed = Closed(count=sum(count or 0 for count in answers), missing=missing)
        self._tell(caller(request), asked, closed)
        return json(closed)

    # --- listing -----------------------------------------------------------------------------------------

    def _workers(self) -> Sequence[WorkerReport]:
        """Those that can have tunnels, one per slot, in order."""
        there = {worker.slot: worker for worker in self._control.status.workers if worker.state != "starting"}
        return [there[slot] for slot in sorted(there)]

    def _worker(self, slot: int) -> WorkerReport:
        for worker in self._workers():
            if worker.slot == slot:
                return worker
        raise Refused(404, f"there is no worker {slot}; /api/v1/workers lists them")

    async def _page(
        self, workers: Sequence[WorkerReport], where: TunnelFilter, limit: int, place: _Place
    ) -> TunnelPage:
        page = _Page(limit, place)
        left, before = [], []
        for worker in workers:
            if worker.slot < place.slot:
                before.append(worker)
            else:
                # Who hangs is not waited for: a list is wanted most when something is wrong.
                if self._hangs(worker):
                    page.missing.append(worker.slot)
                else:
                    left.append(worker)
        while left and not page.full:
            await self._fill(page, left.pop(0), where)
        total = place.total
        if total < 0:
            total = page.total + await self._count(page, [*before, *left], where)
        return page.done(total, self._cursor(page.place, total, where) if page.more or left else "")

    def _place(self, cursor: str, where: TunnelFilter) -> _Place:
        """Where `cursor` says. Its total counts only if it was said here, of the same tunnels."""
        if not cursor:
            return _Place()
        found = _CURSOR.fullmatch(cursor)
        if found is None:
            raise Refused(400, "cursor is not one that a page ended with")
        place = _Place(*map(int, found.groups()[:4]))
        ours = hmac.compare_digest(cursor, self._cursor(place, place.total, where))
        return place if ours else place._replace(total=-1)

    def _cursor(self, place: _Place, total: int, where: TunnelFilter) -> str:
        text = f"{place.slot}-{place.pid}-{place.number}-{total}"
        mac = hmac.digest(self._key, text.encode() + msgspec.json.encode(where), "sha256")
        return f"{text}-{mac[:8].hex()}"

    def _hangs(self, worker: WorkerReport) -> bool:
        cells = self._control.board.slab(worker.slot).cells
        beat = cells[WorkerCell.HEARTBEAT] / NANOSECONDS
        return cells[WorkerCell.PID] == worker.pid and time.monotonic() - beat >= FRESH

    async def _fill(self, page: _Page, worker: WorkerReport, where: TunnelFilter) -> None:
        """Adds the tunnels of `worker`, from where the page before ended."""
        after = page.after(worker)
        first = True
        while True:
            page.questions += 1
            what = ListTunnels(request=0, where=where, after=after, limit=page.room)
            try:
                answer = await self._control.list_tunnels(worker.slot, what)
            except Unanswered:
                page.lacks(worker)
                return
            page.add(worker, answer.tunnels, answer.total if first else 0, answer.more)
            if not answer.more or not answer.tunnels or page.full:
                return
            first = False
            after = answer.tunnels[-1].number

    async def _count(self, page: _Page, workers: Iterable[WorkerReport], where: TunnelFilter) -> int:
        """How many match in workers that this page does not reach."""

        async def one(slot: int) -> int:
            try:
                return (
                    await self._control.list_tunnels(slot, ListTunnels(request=0, where=where, limit=1))
                ).total
            except Unanswered:
                page.missing.append(slot)
                return 0

        return sum(await asyncio.gather(*(one(worker.slot) for worker in workers)))

    # --- closing -----------------------------------------------------------------------------------------

    def _orders(self, asked: TunnelClose, where: TunnelFilter) -> list[tuple[int, CloseTunnels]]:
        """What to tell which worker slot. Tunnels of a process that is gone are closed already."""
        order = CloseTunnels(
            request=0, where=where, code=asked.code, reason=asked.reason, spread=asked.spread
        )
        if not asked.ids:
            return [(worker.slot, order) for worker in self._workers()]
        pids = {worker.slot: worker.pid for worker in self._workers()}
        numbers: dict[int, list[int]] = {}
        for text in asked.ids:
            slot, pid, number = _id(text)
            if pids.get(slot) == pid:
                numbers.setdefault(slot, []).append(number)
        return [
            (slot, msgspec.structs.replace(order, where=msgspec.structs.replace(where, numbers=tuple(some))))
            for slot, some in sorted(numbers.items())
        ]

    async def _close(self, slot: int, order: CloseTunnels) -> int | None:
        try:
            return (await self._control.close_tunnels(slot, order)).count
        except Unanswered as error:
            self._control.log.warning("tunnels not closed", worker=slot, error=error)
            return None

    def _tell(self, by: str, asked: TunnelClose, closed: Closed) -> None:
        conditions = _conditions(asked)
        self._control.log.info(
            "tunnels closed", by=by, count=closed.count, code=asked.code, reason=asked.reason, **conditions
        )
        self._control.events.add(
            "tunnels-closed",
            f"{closed.count} tunnels are being closed with {asked.code}, asked for by {by}",
            by=by, count=closed.count, code=asked.code, spread=asked.spread, **conditions,
        )  # fmt: skip


class _Page:
    """What was found so far."""

    def __init__(self, limit: int, place: _Place) -> None:
        self.missing: list[int] = []
        self.questions = 0
        self.total = 0
        self._limit = limit
        self.place = place
        self._found: list[TunnelView] = []
        self.more = False

    @property
    def room(self) -> int:
        return self._limit - len(self._found)

    @property
    def full(self) -> bool:
        return not self.room or self.questions >= MAX_QUESTIONS

    def after(self, worker: WorkerReport) -> int:
        """The number that the page before ended with, if that was in this process."""
        place = self.place
        return place.number if (place.slot, place.pid) == (worker.slot, worker.pid) else 0

    def add(self, worker: WorkerReport, tunnels: Sequence[TunnelReport], total: int, more: bool) -> None:
        self._found += [_view(worker, tunnel) for tunnel in tunnels]
        self.total += total
        self.more = more
        last = tunnels[-1].number if tunnels else self.after(worker)
        self.place = _Place(worker.slot, worker.pid, last)

    def lacks(self, worker: WorkerReport) -> None:
        self.missing.append(worker.slot)
        self.more = False

    def done(self, total: int, cursor: str) -> TunnelPage:
        return TunnelPage(
            tunnels=tuple(self._found), total=total, cursor=cursor, missing=tuple(sorted(self.missing))
        )


def _view(worker: WorkerReport, tunnel: TunnelReport) -> TunnelView:
    fields = msgspec.structs.asdict(tunnel)
    number = fields.pop("number")
    return TunnelView(id=f"{worker.slot}-{worker.pid}-{number}", worker=worker.slot, **fields)


def _id(text: str) -> tuple[int, int, int]:
    found = _ID.fullmatch(text)
    if found is None:
        raise Refused(422, f"{text[:64]!r} is no id of a tunnel: they look like 0-4711-12")
    slot, pid, number = map(int, found.groups())
    return slot, pid, number


def _conditions(asked: TunnelClose) -> dict[str, str | int | float]:
    """The conditions of `asked` that say something."""
    names = ("route", "pool", "server", "client", "older", "idle")
    found: dict[str, str | int | float] = {
        name: getattr(asked, name) for name in names if getattr(asked, name)
    }
    if asked.ids:
        found["ids"] = " ".join(asked.ids[:10]) + (" ..." if len(asked.ids) > 10 else "")
    return found


def _check(asked: TunnelClose) -> None:
    """Raises `Refused` where `asked` is not clear, or not what a Close frame can say."""
    conditions = _conditions(asked)
    if asked.all and conditions:
        raise Refused(422, "all = true closes every tunnel: give conditions, or all, not both")
    if not asked.all and not conditions:
        raise Refused(422, "say which tunnels: ids, route, pool, server, client, older, idle, or all = true")
    check_close(asked.code, asked.reason)


def check_close(code: int, reason: str) -> None:
    """Raises `Refused` where a Close frame can't say this."""
    if not any(low["minimum"] <= code <= low["maximum"] for low in CLOSE_CODES):
        raise Refused(422, f"{code} is no code that a Close frame may carry (RFC 6455, section 7.4)")
    if len(reason.encode("utf-8", "surrogatepass")) > MAX_REASON:
        raise Refused(422, f"reason is longer than {MAX_REASON} bytes (RFC 6455, section 5.5)")
