"""How many tunnels move from which server, and what each worker is told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.admin.moves import LINGER, apportion, surplus
from lb.master.report import WorkerReport
from tests.harness.admin import AdminServer
from tests.harness.control import StandInControl
from workers.contract.cells import Admin, ServerCell, StateCell
from workers.contract.messages import CloseTunnels, MoveTunnels, TunnelsClosed
from workers.contract.snapshot import (
    DrainSpec,
    PoolSpec,
    ServerSpec,
    Snapshot,
    StickySpec,
)

WEIGHTS = st.lists(st.floats(0, 1000), min_size=1, max_size=20)


@given(st.integers(0, 10**6), WEIGHTS)
def test_parts_add_up_and_are_in_proportion(total: int, weights: list[float]) -> None:
    parts = apportion(total, weights)
    whole = sum(weights)
    if not whole:
        assert parts == [0] * len(weights)
        return
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / whole) < 1 + 1e-6


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 10)), min_size=1, max_size=10))
def test_what_one_has_too_many_others_have_too_few(servers: list[tuple[int, int]]) -> None:
    counts, weights = [count for count, _ in servers], [weight for _, weight in servers]
    if any(weights):
        assert sum(surplus(counts, weights)) == 0


# --- the route -------------------------------------------------------------------------------------------


def spec(slot: int, name: str, weight: int = 1, *, backup: bool = False) -> ServerSpec:
    return ServerSpec(
        slot=slot, owner=1, name=name, host="10.0.0.1", port=80 + slot, weight=weight, backup=backup
    )


A, B, C, SPARE = spec(0, "a"), spec(1, "b"), spec(2, "c", 2), spec(3, "spare", backup=True)
HASHED = PoolSpec(name="hashed", slot=1, owner=1, servers=(spec(4, "a"), spec(5, "b")), balance="hash")
BY_IP = PoolSpec(name="by-ip", slot=2, owner=1, servers=(spec(6, "a"),), sticky=StickySpec(kind="ip"))
ALONE = PoolSpec(name="alone", slot=3, owner=1, servers=(spec(7, "a"),))


class Workers(StandInControl):
    """Two workers that do what they are told."""

    def __init__(self) -> None:
        chat = PoolSpec(name="chat", slot=0, owner=1, servers=(A, B, C, SPARE))
        drain = DrainSpec(close_code=4012, spread=20.0)
        super().__init__(Snapshot(generation=1, pools=(chat, HASHED, BY_IP, ALONE), drain=drain))
        reports = tuple(
            WorkerReport(
                slot=slot, pid=100 + slot, state="serving", uptime=1.0, generation=1, connections=0,
                tunnels=0, accepted=0, requests=0, heartbeat_age=0.0, listening_sockets=1,
            )
            for slot in (0, 1)
        )  # fmt: skip
        self.status = msgspec.structs.replace(self.status, workers=reports)
        self.silent: set[int] = set()

    async def close_tunnels(self, slot: int, what: CloseTunnels | MoveTunnels) -> TunnelsClosed:
        assert isinstance(what, MoveTunnels)
        if slot not in self.silent:
            self.closed[slot] = TunnelsClosed(request=0, count=what.count)
        else:
            self.closed.pop(slot, None)
        return await super().close_tunnels(slot, what)

    def have(self, server: ServerSpec, first: int, second: int) -> None:
        """The tunnels of the two workers on `server`."""
        self.count(0, server, ServerCell.TUNNELS, first)
        self.count(1, server, ServerCell.TUNNELS, second)

    def orders(self) -> list[tuple[int, str, int, int]]:
        """Who was told what: worker, server, count, total."""
        found = []
        for slot, what in self.asked:
            assert isinstance(what, MoveTunnels)
            found.append((slot, what.where.server, what.count, what.total))
        return sorted(found)


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers()
    yield found
    found.close()


@pytest.fixture
def admin(workers: Workers, socket_folder: str) -> Iterator[AdminServer]:
    with AdminServer(workers, socket_folder) as server:
        yield server


def moved(admin: AdminServer, **asked: object) -> dict[str, int]:
    answer = admin.ask("POST", "tunnels/move", {"pool": "chat", **asked})
    assert answer.status == 200, answer
    found: dict[str, int] = answer.body["servers"]
    assert answer.body["count"] == sum(found.values())
    return found


def test_those_above_their_share_give_to_make_it_even(admin: AdminServer, workers: Workers) -> None:
    workers.have(A, 30, 10)
    workers.have(B, 20, 20)
    before = time.monotonic()
    assert moved(admin) == {"a": 20, "b": 20}  # shares are 20, 20 and 40
    assert workers.orders() == [(0, "a", 15, 20), (0, "b", 10, 20), (1, "a", 5, 20), (1, "b", 10, 20)]
    what = workers.asked[0][1]
    assert isinstance(what, MoveTunnels)
    assert (what.code, what.spread, what.pool, what.target) == (4012, 20.0, "chat", "")
    assert before + 20 + LINGER <= what.until <= time.monotonic() + 20 + LINGER
    event = workers.last_event("tunnels-closed")
    assert (event.fields["count"], event.fields["pool"]) == (40, "chat")


def test_one_server_gives_or_gets(admin: AdminServer, workers: Workers) -> None:
    workers.have(A, 40, 0)
    workers.have(B, 40, 0)
    workers.have(C, 10, 0)
    # Shares are 22 or 23, 22 or 23, and 45.
    assert sum(moved(admin, server="a").values()) in (17, 18)
    workers.asked.clear()
    found = moved(admin, to="c", spread=0, code=4000, reason="go")
    assert sum(found.values()) == 35
    what = workers.asked[0][1]
    assert isinstance(what, MoveTunnels)
    assert (what.target, what.aim, what.spread, what.code, what.reason) == ("c", 45, 0.0, 4000, "go")
    assert moved(admin, to="b") == {}


def test_so_many_as_are_asked_for(admin: AdminServer, workers: Workers) -> None:
    workers.have(A, 10, 0)
    workers.have(B, 10, 0)
    workers.have(C, 20, 0)
    assert moved(admin) == {}
    assert moved(admin, count=4, server="a") == {"a": 4}
    assert moved(admin, count=99, server="a") == {"a": 10}
    assert sum(moved(admin, count=8, to="c").values()) == 8


def test_who_is_taken_out_gives_only_when_it_is_named(admin: AdminServer, workers: Workers) -> None:
    workers.have(A, 30, 0)
    workers.have(B, 10, 0)
    workers.have(C, 20, 0)
    admin.call(workers.states.set_admin, "chat", A, Admin.DRAIN, None)
    assert moved(admin) == {}
    assert moved(admin, server="a") == {"a": 30}


def test_backups_give_back_what_they_had(admin: AdminServer, workers: Workers) -> None:
    workers.have(SPARE, 8, 0)
    assert moved(admin) == {"spare": 8}


def test_a_worker_that_does_not_answer_is_missing(admin: AdminServer, workers: Workers) -> None:
    workers.have(A, 20, 20)
    workers.silent = {1}
    answer = admin.ask("POST", "tunnels/move", {"pool": "chat"})
    assert (answer.status, answer.body["missing"]) == (200, [1])
    assert 'event="tunnels not moved" worker=1' in workers.log_text()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"pool": "chats"}, "no pool chats"),
        ({"server": "z"}, "no server z"),
        ({"to": "z"}, "no server z"),
        ({"server": "a", "to": "a"}, "the same server"),
        ({"pool": "hashed"}, "come back to where they were"),
        ({"pool": "by-ip"}, "come back to where they were"),
        ({"pool": "alone", "server": "a"}, "no other server"),
        ({"code": 1005}, "no code that a Close frame may carry"),
        ({"reason": "ü" * 62}, "longer than 123 bytes"),
        ({"count": 0}, ">= 1"),
        ({"spread": 86401}, "<= 86400"),
        ({"serverr": "a"}, "serverr"),
    ],
)
def test_what_can_not_be_done_is_refused(
    asked: dict[str, object], says: str, admin: AdminServer, workers: Workers
) -> None:
    answer = admin.ask("POST", "tunnels/move", {"pool": "chat", **asked})
    assert answer.status == 422, answer
    assert says in answer.body["detail"]
    assert workers.asked == []


def test_nothing_goes_to_who_gets_nothing(admin: AdminServer, workers: Workers) -> None:
    admin.call(workers.states.set_admin, "chat", C, Admin.MAINT)
    answer = admin.ask("POST", "tunnels/move", {"pool": "chat", "to": "c"})
    assert (answer.status, "no new sessions" in answer.body["detail"]) == (422, True)


# --- draining --------------------------------------------------------------------------------------------

PLACE = "pools/chat/servers/a"


def empty_by(workers: Workers) -> float:
    return workers.states.empty_by(A)


def test_a_drain_says_until_when(admin: AdminServer, workers: Workers) -> None:
    for body, spread in (({}, 20.0), ({"spread": 5}, 5.0)):
        answer = admin.ask("PATCH", PLACE, {"admin": "drain", **body})
        assert (answer.status, "asked to move" in answer.body["why"]) == (200, True)
        assert spread - 2 < empty_by(workers) - time.monotonic() <= spread
        assert workers.last_event("server-admin").fields["spread"] == spread
    assert admin.ask("PATCH", PLACE, {"admin": "drain", "keep_tunnels": True}).status == 200
    assert empty_by(workers) == 0.0
    assert "spread" not in workers.last_event("server-admin").fields


@pytest.mark.parametrize("word", ["ready", "maint"])
def test_anything_else_calls_it_off(word: str, admin: AdminServer, workers: Workers) -> None:
    admin.ask("PATCH", PLACE, {"admin": "drain"})
    rings = workers.board.control[0:3].tolist()[2]
    assert admin.ask("PATCH", PLACE, {"admin": word}).status == 200
    assert workers.states.get(A, StateCell.EMPTY_BY) == 0
    assert workers.board.control[0:3].tolist()[2] > rings  # workers are told


def test_the_same_drain_without_tunnels_is_nothing_new(admin: AdminServer, workers: Workers) -> None:
    admin.ask("PATCH", PLACE, {"admin": "drain", "keep_tunnels": True})
    admin.ask("PATCH", PLACE, {"admin": "drain", "keep_tunnels": True})
    assert workers.kinds() == ["server-admin"]


@pytest.mark.parametrize(
    "asked",
    [
        {"spread": 5},
        {"admin": "ready", "spread": 5},
        {"keep_tunnels": True},
        {"admin": "maint", "keep_tunnels": True},
        {"admin": "drain", "spread": 5, "keep_tunnels": True},
        {"admin": "drain", "spread": -1},
    ],
)
def test_what_is_said_of_tunnels_goes_with_a_drain(
    asked: dict[str, object], admin: AdminServer, workers: Workers
) -> None:
    assert admin.ask("PATCH", PLACE, asked).status == 422
    assert (workers.kinds(), empty_by(workers)) == ([], 0.0)
