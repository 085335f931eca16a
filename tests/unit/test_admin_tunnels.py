"""Tunnels of several workers: listed page by page without a gap, and closed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest

from lb.admin.tunnels import MAX_QUESTIONS
from lb.admin.views import TunnelPage
from lb.control.control import Unanswered
from lb.master.report import WorkerReport
from tests.harness.admin import AdminServer
from tests.harness.control import StandInControl
from workers.contract.cells import WorkerCell
from workers.contract.messages import (
    CloseTunnels,
    ListTunnels,
    MoveTunnels,
    TunnelFilter,
    TunnelReport,
    Tunnels,
    TunnelsClosed,
)

PIDS = {0: 100, 1: 101, 2: 102}


def tunnel(number: int, pool: str = "chat") -> TunnelReport:
    return TunnelReport(
        number=number, route="r", pool=pool, server="a", client="10.0.0.9", host="h", path="/ws",
        request_id="id", age=5.0, idle=1.0, client_bytes=1, server_bytes=2, client_messages=3,
        server_messages=-1, tls=True,
    )  # fmt: skip


class Workers(StandInControl):
    """Workers that answer for themselves: `most` tunnels in one message, as a datagram has its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[int, list[int]] = {0: [1, 2, 5], 1: [], 2: [3, 4]}
        self.most = 1000
        self.silent: set[int] = set()
        self.be([0, 1, 2])

    def be(self, slots: list[int], state: str = "serving") -> None:
        reports = tuple(
            WorkerReport(
                slot=slot, pid=PIDS[slot], state=state, uptime=1.0, generation=1, connections=0, tunnels=0,
                accepted=0, requests=0, heartbeat_age=0.0, listening_sockets=1,
            )
            for slot in slots
        )  # fmt: skip
        self.status = msgspec.structs.replace(self.status, workers=reports)

    async def list_tunnels(self, slot: int, what: ListTunnels) -> Tunnels:
        self.asked.append((slot, what))
        if slot in self.silent:
            raise Unanswered(f"worker {slot} does not answer")
        left = [number for number in self.numbers[slot] if number > what.after]
        some = left[: min(what.limit, self.most)]
        return Tunnels(
            request=0,
            tunnels=tuple(map(tunnel, some)),
            total=len(self.numbers[slot]),
            more=len(left) > len(some),
        )

    async def close_tunnels(self, slot: int, what: CloseTunnels | MoveTunnels) -> TunnelsClosed:
        self.asked.append((slot, what))
        if slot in self.silent:
            raise Unanswered(f"worker {slot} does not answer")
        if isinstance(what, MoveTunnels):
            return TunnelsClosed(request=0, count=what.count)
        there = self.numbers[slot]
        wanted = what.where.numbers
        return TunnelsClosed(request=0, count=len(set(there) & set(wanted)) if wanted else len(there))


class Api:
    """The API over such workers."""

    def __init__(self, admin: AdminServer, workers: Workers) -> None:
        self.admin = admin
        self.workers = workers

    def page(self, query: str = "") -> TunnelPage:
        self.workers.asked.clear()
        answer = self.admin.get(f"tunnels{query}")
        assert answer.status == 200, answer
        return msgspec.convert(answer.body, TunnelPage)

    def pages(self, limit: int) -> list[TunnelPage]:
        found = [self.page(f"?limit={limit}")]
        while found[-1].cursor:
            assert len(found) < 50
            found.append(self.page(f"?limit={limit}&cursor={found[-1].cursor}"))
        return found


@pytest.fixture
def api(socket_folder: str) -> Iterator[Api]:
    workers = Workers()
    with workers, AdminServer(workers, socket_folder) as admin:
        yield Api(admin, workers)


ALL = ["0-100-1", "0-100-2", "0-100-5", "2-102-3", "2-102-4"]


def ids(*pages: TunnelPage) -> list[str]:
    return [tunnel.id for page in pages for tunnel in page.tunnels]


def test_all_on_one_page(api: Api) -> None:
    page = api.page()
    assert (ids(page), page.total, page.cursor, page.missing) == (ALL, 5, "", ())
    first = page.tunnels[0]
    assert (first.worker, first.client, first.age, first.tls) == (0, "10.0.0.9", 5.0, True)
    assert first.server_messages == -1


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("most", [1, 2, 1000])
def test_pages_have_neither_gaps_nor_repetitions(api: Api, limit: int, most: int) -> None:
    api.workers.most = most
    pages = api.pages(limit)
    assert ids(*pages) == ALL
    assert all(len(page.tunnels) <= limit for page in pages)
    assert {page.total for page in pages} == {5}


def test_a_later_page_asks_few_workers(api: Api) -> None:
    first = api.page("?limit=2")
    assert len(api.workers.asked) == 3  # each once: the total is of all
    api.page(f"?limit=1&cursor={first.cursor}")
    assert [slot for slot, _ in api.workers.asked] == [0]


@pytest.mark.parametrize("cursor", ["2-102-3-999999999999", "9999-9999999999-999999999999999999-7"])
def test_a_total_that_was_not_said_here_is_counted_anew(api: Api, cursor: str) -> None:
    assert api.page(f"?cursor={cursor}-{'0' * 16}").total == 5
    assert api.admin.get(f"tunnels?cursor={cursor}").status == 400


def test_a_total_is_of_one_filter(api: Api) -> None:
    first = api.page("?limit=2")
    api.workers.numbers = {0: [1, 2, 3, 4, 5, 6], 1: [], 2: []}
    assert api.page(f"?cursor={first.cursor}&limit=2").total == 5  # as first counted
    assert api.page(f"?cursor={first.cursor}&limit=2&route=r").total == 6


def test_questions_for_one_page_are_bounded(api: Api) -> None:
    api.workers.numbers = {0: list(range(1, 100)), 1: [], 2: [3]}
    api.workers.most = 1
    page = api.page("?limit=1000")
    assert len(page.tunnels) == MAX_QUESTIONS and page.cursor
    assert page.total == 100
    assert len(ids(*api.pages(1000))) == 100


def test_the_filter_goes_to_the_workers(api: Api) -> None:
    api.page("?route=r&pool=p&server=10.0.0.1:80&client=10.&older=1.5&idle=2&limit=7")
    _, what = api.workers.asked[0]
    assert isinstance(what, ListTunnels)
    assert what.limit == 7
    assert what.where == TunnelFilter(
        route="r", pool="p", server="10.0.0.1:80", client="10.", older=1.5, idle=2.0
    )


def test_one_worker_alone(api: Api) -> None:
    assert ids(api.page("?worker=2")) == ALL[3:]
    assert [slot for slot, _ in api.workers.asked] == [2]


@pytest.mark.parametrize("limit", [1, 100])
def test_who_does_not_answer_is_named(api: Api, limit: int) -> None:
    api.workers.silent = {0}
    pages = api.pages(limit)
    assert ids(*pages) == ALL[3:]
    assert pages[0].missing == (0,)
    api.workers.silent = {0, 1, 2}
    page = api.page()
    assert (page.tunnels, page.missing, page.cursor) == ((), (0, 1, 2), "")


def test_who_hangs_is_not_waited_for(api: Api) -> None:
    cells = api.workers.board.slab(0).cells
    cells[WorkerCell.PID] = PIDS[0]
    cells[WorkerCell.HEARTBEAT] = time.monotonic_ns() - 10_000_000_000
    page = api.page()
    assert (ids(page), page.missing, page.total) == (ALL[3:], (0,), 2)
    assert 0 not in [slot for slot, _ in api.workers.asked]
    cells[WorkerCell.HEARTBEAT] = time.monotonic_ns()
    assert ids(api.page()) == ALL


def test_who_stops_answering_in_the_middle_ends_the_list(api: Api) -> None:
    first = api.page("?limit=4")
    api.workers.silent = {2}
    page = api.page(f"?limit=4&cursor={first.cursor}")
    assert (page.tunnels, page.missing, page.cursor) == ((), (2,), "")


def test_a_process_that_replaced_another_is_listed_from_its_start(api: Api) -> None:
    first = api.page("?limit=2")
    api.workers.status = msgspec.structs.replace(
        api.workers.status,
        workers=tuple(msgspec.structs.replace(one, pid=one.pid + 900) for one in api.workers.status.workers),
    )
    page = api.page(f"?limit=10&cursor={first.cursor}")
    assert ids(page) == ["0-1000-1", "0-1000-2", "0-1000-5", "2-1002-3", "2-1002-4"]


def test_a_slot_that_is_gone_is_passed_over(api: Api) -> None:
    first = api.page("?limit=2")
    api.workers.be([1, 2])
    assert ids(api.page(f"?cursor={first.cursor}")) == ALL[3:]


def test_workers_that_only_start_are_not_asked(api: Api) -> None:
    api.workers.be([0, 1, 2], "starting")
    page = api.page()
    assert (page.tunnels, page.missing, api.workers.asked) == ((), (), [])


# --- closing -------------------------------------------------------------------------------------------


def close(api: Api, **asked: object) -> tuple[int, dict[str, object]]:
    answer = api.admin.ask("POST", "tunnels/close", asked)
    return answer.status, answer.body


def test_closing_by_condition_reaches_every_worker(api: Api) -> None:
    status, body = close(api, pool="chat", code=4001, reason="tschüss")
    assert (status, body) == (200, {"count": 5, "missing": []})
    assert sorted(slot for slot, _ in api.workers.asked) == [0, 1, 2]
    for _, what in api.workers.asked:
        assert isinstance(what, CloseTunnels)
        assert (what.where.pool, what.code, what.reason) == ("chat", 4001, "tschüss")
    event = api.workers.last_event("tunnels-closed")
    assert (event.fields["count"], event.fields["code"], event.fields["pool"]) == (5, 4001, "chat")
    assert str(event.fields["by"]).startswith("uid ")
    log = api.workers.log_text()
    assert 'event="tunnels closed" by="uid' in log and "pool=chat" in log and "count=5" in log


def test_closing_by_id_asks_those_workers_alone(api: Api) -> None:
    assert close(api, ids=["0-100-1", "2-102-4", "2-102-3"]) == (200, {"count": 3, "missing": []})
    asked = {slot: what.where.numbers for slot, what in api.workers.asked}
    assert asked == {0: (1,), 2: (4, 3)}


def test_tunnels_of_a_process_that_is_gone_are_closed_already(api: Api) -> None:
    assert close(api, ids=["0-99-1", "9-100-1"]) == (200, {"count": 0, "missing": []})
    assert api.workers.asked == []


def test_all_is_said_in_so_many_words(api: Api) -> None:
    assert close(api, all=True) == (200, {"count": 5, "missing": []})


def test_a_worker_that_does_not_answer_is_missing(api: Api) -> None:
    api.workers.silent = {2}
    assert close(api, all=True) == (200, {"count": 3, "missing": [2]})
    assert 'event="tunnels not closed" worker=2' in api.workers.log_text()


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1012, 1014, 3000, 4999])
def test_codes_that_a_close_frame_may_carry(api: Api, code: int) -> None:
    assert close(api, all=True, code=code)[0] == 200


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"all": False},
        {"code": 1000},
        {"all": True, "pool": "chat"},
        {"all": True, "ids": ["0-100-1"]},
        {"pool": ""},
        {"older": 0},
        {"older": -1},
        {"ids": ["0-100"]},
        {"ids": ["0-100-1\n"]},
        {"ids": ["0-100-1"] * 1001},
        {"poool": "chat"},
        {"all": True, "reason": "x" * 124},
        {"all": True, "reason": "ü" * 62},
        *({"all": True, "code": code} for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)),
    ],
)
def test_what_is_not_clear_closes_nothing(api: Api, asked: dict[str, object]) -> None:
    status, body = close(api, **asked)
    assert status == 422, body
    assert api.workers.asked == [] and api.workers.kinds() == []
