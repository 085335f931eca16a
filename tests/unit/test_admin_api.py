"""Every route of the admin API, and every way in which it says no."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from lb.admin import requests
from lb.admin.operations import OPERATIONS
from lb.admin.views import (
    MAX_WEIGHT,
    AdmissionView,
    ConfigView,
    ListenerView,
    PoolView,
    RouteView,
    ServerView,
    StatusView,
)
from lb.control.control import LastCheck
from lb.master.report import Outcome, WorkerReport
from tests.harness.admin import AdminServer
from tests.harness.control import StandInControl
from workers.contract.cells import (
    Admin,
    CheckResult,
    EjectReason,
    Health,
    ListenerCell,
    MigrationResult,
    PoolCell,
    RouteCell,
    ServerCell,
    WorkerCell,
)
from workers.contract.errors import CONNECTION_LIMIT, REASON_INDEX
from workers.contract.series import Kind, SeriesTable, pack
from workers.contract.snapshot import (
    AdmissionSpec,
    CertificateSpec,
    EjectSpec,
    ListenerSpec,
    ListenTls,
    PoolSpec,
    RouteSpec,
    ServerSpec,
    Snapshot,
)

ODD = "unix:/run/app.sock?x#y%2F ü{i}"
SERVERS = (
    ServerSpec(slot=0, owner=1, name="10.0.0.1:80", host="10.0.0.1", port=80, weight=3, max_connections=9),
    ServerSpec(slot=1, owner=1, name="[::1]:80", host="::1", port=80, backup=True, addresses=("::1",)),
    ServerSpec(slot=2, owner=1, name=ODD, path="/run/app.sock"),
)
SNAPSHOT = Snapshot(
    generation=7,
    listeners=(
        ListenerSpec(
            slot=0, owner=1, name="public", bind=("0.0.0.0:443",),
            tls=ListenTls(certificates=(CertificateSpec(name="a.pem", hosts=("a",), not_after=4e9),)),
        ),
    ),
    routes=(RouteSpec(slot=0, owner=1, name="chat", host="a", path="/ws/*", pool="chat"),),
    pools=(
        PoolSpec(
            slot=0, owner=1, name="chat", servers=SERVERS, balance="p2c", eject=EjectSpec(),
            admission=AdmissionSpec(rate=50.0),
        ),
        PoolSpec(slot=1, owner=1, name="empty", servers=()),
    ),
)  # fmt: skip
CHAT = "pools/chat/servers/10.0.0.1:80"
ODD_PATH = "pools/chat/servers/unix%3A%2Frun%2Fapp.sock%3Fx%23y%252F%20%C3%BC%7Bi%7D"


@pytest.fixture
def admin(socket_folder: str) -> Iterator[AdminServer]:
    with StandInControl(SNAPSHOT) as control:
        control.spec = msgspec.structs.replace(
            control.spec, config_path="/etc/lb.toml", config_text="# ü\n", generation=7, admin_token="secret"
        )
        control.status = msgspec.structs.replace(
            control.status, workers=(worker(0), worker(1)), workers_wanted=2, version="1.2.3"
        )
        beat(control, 0)
        beat(control, 1)
        with AdminServer(control, socket_folder) as server:
            yield server


def worker(slot: int, state: str = "serving") -> WorkerReport:
    return WorkerReport(
        slot=slot, pid=os.getpid(), state=state, uptime=1.0, generation=7, connections=0, tunnels=0,
        accepted=0, requests=0, heartbeat_age=0.0, listening_sockets=1,
    )  # fmt: skip


def beat(control: StandInControl, slot: int) -> None:
    cells = control.board.slab(slot).cells
    cells[WorkerCell.HEARTBEAT] = time.monotonic_ns() + 60_000_000_000  # fresh throughout the test
    cells[WorkerCell.PID] = os.getpid()
    cells[WorkerCell.GENERATION] = 7


def status(admin: AdminServer) -> StatusView:
    answer = admin.get("status")
    assert answer.status == 200
    return msgspec.convert(answer.body, StatusView)


def server(admin: AdminServer, path: str = CHAT) -> ServerView:
    answer = admin.get(path)
    assert answer.status == 200, answer
    return msgspec.convert(answer.body, ServerView)


# --- what there is -------------------------------------------------------------------------------------


def test_the_status_holds_the_other_answers(admin: AdminServer) -> None:
    seen = status(admin)
    assert (seen.version, seen.state, seen.generation, seen.workers_wanted) == ("1.2.3", "serving", 7, 2)
    assert seen.ready
    assert seen.pid == seen.control_pid == os.getpid()
    assert 0 < seen.uptime < 3600 and abs(seen.time - time.time()) < 30
    assert msgspec.json.decode(msgspec.json.encode(seen.routes)) == admin.get("routes").body
    assert msgspec.json.decode(msgspec.json.encode(seen.listeners)) == admin.get("listeners").body
    assert [one["slot"] for one in admin.get("workers").body] == [0, 1]
    assert admin.get("pools/chat").body == msgspec.json.decode(msgspec.json.encode(seen.pools[0]))
    assert admin.get("pools").body == msgspec.json.decode(msgspec.json.encode(seen.pools))


def test_a_worker_is_what_linux_and_its_cells_say(admin: AdminServer) -> None:
    cells = admin.control.board.slab(1).cells
    for cell, value in (
        (WorkerCell.CONNECTIONS, 5), (WorkerCell.TUNNELS, 3), (WorkerCell.ACCEPTED, 100),
        (WorkerCell.REQUESTS, 90), (WorkerCell.CPU, 1_500_000_000), (WorkerCell.LAG, 2_000_000),
        (WorkerCell.SAFE, 1), (WorkerCell.MOVABLE, 2), (WorkerCell.PACED, 4),
        (WorkerCell.MIGRATIONS + 2 * MigrationResult.WIDTH, 6),
    ):  # fmt: skip
        cells[cell] = value
    seen = status(admin).workers[1]
    assert (seen.connections, seen.tunnels, seen.accepted, seen.requests) == (5, 3, 100, 90)
    assert (seen.crash_safe, seen.movable, seen.closing) == (1, 2, 4)
    assert status(admin).migrations["rebalance"] == {"ok": 6, "unproved": 0, "gone": 0, "refused": 0}
    assert (seen.cpu_seconds, seen.loop_lag, seen.generation, seen.wedged) == (1.5, 0.002, 7, False)
    assert seen.memory_bytes > 1_000_000 and seen.open_files > 3 and seen.uptime > 0


def test_gauges_of_the_process_before_are_not_the_new_ones(admin: AdminServer) -> None:
    cells = admin.control.board.slab(1).cells
    cells[WorkerCell.PID] = 1
    cells[WorkerCell.CONNECTIONS] = 5
    cells[WorkerCell.ACCEPTED] = 100
    seen = status(admin).workers[1]
    assert (seen.connections, seen.accepted) == (0, 100)


def test_a_listener_with_its_certificates_and_rejections(admin: AdminServer) -> None:
    slab = admin.control.board.slab(0)
    base = slab.listener_base(0)
    slab.cells[base + ListenerCell.OWNER] = 1
    slab.cells[base + ListenerCell.CONNECTIONS] = 2
    slab.cells[base + ListenerCell.ACCEPTED] = 10
    slab.cells[base + ListenerCell.REJECTED] = 3
    table = SeriesTable(slab, admin.control.board.capacity.series)
    slab.cells[table.place(Kind.REJECTED, 0, REASON_INDEX[CONNECTION_LIMIT], 1, 0)] = 3
    (seen,) = msgspec.convert(admin.get("listeners").body, list[ListenerView])
    assert (seen.name, seen.tls, seen.bind) == ("public", True, ("0.0.0.0:443",))
    assert (seen.connections, seen.accepted, seen.rejected) == (2, 10, 3)
    assert seen.rejected_by_reason == {"connection_limit": 3}
    assert (seen.certificates[0].name, seen.certificates[0].not_after) == ("a.pem", 4e9)


def test_a_route_is_the_sum_over_its_workers(admin: AdminServer) -> None:
    for number in (0, 1):
        slab = admin.control.board.slab(number)
        base = slab.route_base(0)
        slab.cells[base + RouteCell.OWNER] = 1
        slab.cells[base + RouteCell.CLIENT_BYTES] = 1000
        slab.cells[base + RouteCell.SERVER_MESSAGES] = 7
        slab.cells[base + RouteCell.HANDSHAKES] = 2
        table = SeriesTable(slab, admin.control.board.capacity.series)
        slab.cells[table.place(Kind.REQUESTS, 0, 503, 1, 0)] = 4
        slab.cells[table.place(Kind.REQUESTS, 0, 200, 1, 0)] = 40
    assert pack(Kind.REQUESTS, 0, 503, 1)
    (seen,) = msgspec.convert(admin.get("routes").body, list[RouteView])
    assert (seen.name, seen.host, seen.path, seen.pool) == ("chat", "a", "/ws/*", "chat")
    assert (seen.client_bytes, seen.server_messages, seen.errors) == (2000, 14, 8)
    assert seen.handshakes["accepted"] == 4


def test_a_pool_says_who_uses_it_and_how_it_is(admin: AdminServer) -> None:
    slab = admin.control.board.slab(0)
    base = slab.pool_base(0)
    slab.cells[base + PoolCell.OWNER] = 1
    slab.cells[base + PoolCell.QUEUED] = 4
    slab.cells[base + PoolCell.ADMISSION_QUEUED] = 3
    slab.cells[base + PoolCell.ADMITTED] = 2
    slab.cells[base + PoolCell.ADMISSION_REFUSED] = 1
    chat, empty = msgspec.convert(admin.get("pools").body, list[PoolView])
    assert (chat.name, chat.balance, chat.routes, chat.queued) == ("chat", "p2c", ("chat",), 4)
    assert (len(chat.servers), chat.usable, chat.panic) == (3, 3, False)
    assert chat.admission == AdmissionView(
        rate=50.0, burst=1000, queue=5000, waiting=3, admitted=2, refused=1
    )
    assert (empty.servers, empty.usable, empty.routes, empty.admission) == ((), 0, (), None)


def test_a_server_is_the_sum_over_its_workers(admin: AdminServer) -> None:
    control = admin.control
    for number in (0, 1):
        control.count(number, SERVERS[0], ServerCell.ACTIVE, 5)
        control.count(number, SERVERS[0], ServerCell.TUNNELS, number + 1)
    seen = server(admin)
    assert (seen.active, seen.tunnels, seen.tunnels_by_worker) == (10, 3, {"0": 1, "1": 2})
    assert (seen.weight, seen.effective_weight, seen.max_connections) == (3, 3.0, 9)
    assert (seen.state, seen.admin, seen.health, seen.why) == ("unchecked", "ready", "unknown", "")
    assert (seen.since, seen.ejected_until, seen.last_check) == (0.0, 0.0, None)


def test_names_and_addresses_of_servers(admin: AdminServer) -> None:
    assert server(admin).address == "10.0.0.1:80"
    six = server(admin, "pools/chat/servers/%5B::1%5D:80")
    assert (six.name, six.address, six.addresses, six.backup) == ("[::1]:80", "[::1]:80", ("::1",), True)
    odd = server(admin, ODD_PATH)
    assert (odd.name, odd.address) == (ODD, "unix:/run/app.sock")


def test_a_server_that_is_down_says_why_and_since_when(admin: AdminServer) -> None:
    control = admin.control
    admin.call(control.states.checked, SERVERS[0], CheckResult.STATUS)
    admin.call(control.states.set_health, "chat", SERVERS[0], Health.DOWN, "x")
    seen = server(admin)
    assert (seen.state, seen.health, seen.effective_weight, seen.checks_failed) == ("down", "down", 0.0, 1)
    assert "another status" in seen.why
    assert abs(seen.since - time.time()) < 30
    assert seen.last_check is not None and seen.last_check.result == "status"
    control.last_checks["chat", "10.0.0.1:80"] = LastCheck(CheckResult.STATUS, "got 503", time.time(), 0.25)
    seen = server(admin)
    assert seen.last_check is not None
    assert (seen.last_check.detail, seen.last_check.seconds) == ("got 503", 0.25)
    assert seen.why == "its checks fail: got 503"


def test_an_ejected_server_says_for_how_long(admin: AdminServer) -> None:
    states = admin.control.states
    admin.call(states.eject, "chat", SERVERS[0], EjectReason.CONNECT_FAILURES, 60.0, 1)
    seen = server(admin)
    assert (seen.state, seen.ejections) == ("ejected", 1)
    assert 50 < seen.ejected_until - time.time() < 70


def test_the_configuration_is_the_one_that_is_served(admin: AdminServer) -> None:
    answer = admin.get("config")
    assert msgspec.convert(answer.body, ConfigView) == ConfigView(
        path="/etc/lb.toml", generation=7, text="# ü\n"
    )
    assert "secret" not in str(answer)


# --- what changes something ----------------------------------------------------------------------------


def test_drain_and_back(admin: AdminServer) -> None:
    for word, state in (("drain", Admin.DRAIN), ("maint", Admin.MAINT), ("ready", Admin.READY)):
        answer = admin.ask("PATCH", CHAT, {"admin": word})
        assert (answer.status, answer.body["admin"]) == (200, word)
        assert admin.control.states.admin(SERVERS[0]) is state
        assert admin.control.last_event("server-admin").fields["admin"] == word
    log = admin.control.log_text()
    assert 'event="server changed"' in log and "admin=drain" in log
    assert f'by="uid {os.geteuid()} (pid {os.getpid()})"' in log


def test_weights(admin: AdminServer) -> None:
    for weight, effective in ((0, 0.0), (MAX_WEIGHT, 1000.0), (-1, 3.0)):
        answer = admin.ask("PATCH", CHAT, {"weight": weight})
        assert (answer.status, answer.body["effective_weight"]) == (200, effective)
    assert admin.control.states.weight(SERVERS[0]) == 3


def test_nothing_asked_for_changes_nothing(admin: AdminServer) -> None:
    assert admin.ask("PATCH", CHAT, {}).status == 200
    assert admin.ask("PATCH", CHAT, {"admin": None, "weight": None}).status == 200
    assert admin.control.kinds() == []


def test_a_server_with_an_odd_name_is_drained(admin: AdminServer) -> None:
    assert admin.ask("PATCH", ODD_PATH, {"admin": "drain"}).status == 200
    assert admin.control.states.admin(SERVERS[2]) is Admin.DRAIN


@pytest.mark.parametrize("ok", [True, False])
def test_a_reload_says_how_it_went(admin: AdminServer, ok: bool) -> None:
    admin.control.outcome = Outcome(
        ok=ok, generation=8, changes=("pool.chat changed",), error="" if ok else "line 3: no", seconds=0.5,
        at=1.0,
    )  # fmt: skip
    answer = admin.ask("POST", "reload", {})
    assert answer.status == 200
    assert answer.body["ok"] is ok and answer.body["changes"] == ["pool.chat changed"]
    assert admin.ask("POST", "reload").status == 200
    assert admin.control.reloads == 2
    assert 'event="reload asked for" by="uid ' in admin.control.log_text()


def test_a_master_that_does_not_answer_is_a_503(admin: AdminServer) -> None:
    answer = admin.ask("POST", "reload", {})
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "the master does not answer" in answer.body["detail"]


# --- problems ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("GET", "nothing", None, 404, "openapi.json"),
        ("GET", "/", None, 200, ""),
        ("GET", "/index.html", None, 404, ""),
        ("GET", "status/", None, 404, ""),
        ("GET", "pools/other", None, 404, "no pool other"),
        ("GET", "pools/chat/servers/other", None, 404, "no server other"),
        ("PATCH", "pools/other/servers/a", b"{}", 404, "no pool other"),
        ("PATCH", "pools/chat/servers/a", b"{}", 404, "no server a"),
        ("GET", "status?x=1", None, 400, "there is no parameter `x`"),
        ("GET", "events/recent?limit=0", None, 400, "limit"),
        ("GET", "events/recent?limit=1&limit=2", None, 400, "twice"),
        ("GET", "events/recent?limit=x", None, 400, "limit"),
        ("GET", "events/recent?after=-1", None, 400, "after"),
        ("GET", "tunnels?older=nan", None, 400, "older"),
        ("GET", "tunnels?limit=1001", None, 400, "limit"),
        ("GET", "tunnels?cursor=x", None, 400, "cursor"),
        ("GET", "tunnels?worker=9", None, 404, "no worker 9"),
        ("PATCH", "status", b"{}", 405, "GET"),
        ("DELETE", CHAT, None, 405, "GET, HEAD, PATCH"),
        ("GET", "reload", None, 405, "POST"),
        ("HEAD", "events", None, 405, ""),
        ("PATCH", CHAT, b"", 400, "no JSON"),
        ("PATCH", CHAT, b"{", 400, "no JSON"),
        ("PATCH", CHAT, b'{"admin": "\xff"}', 400, "no JSON"),
        ("PATCH", CHAT, b"[" * 60_000, 422, "Expected `object`"),
        ("PATCH", CHAT, b"[]", 422, "Expected `object`"),
        ("PATCH", CHAT, b'{"admin": "gone"}', 422, "$.admin"),
        ("PATCH", CHAT, b'{"weight": "3"}', 422, "$.weight"),
        ("PATCH", CHAT, b'{"weight": 1001}', 422, "$.weight"),
        ("PATCH", CHAT, b'{"weight": -2}', 422, "$.weight"),
        ("PATCH", CHAT, b'{"wieght": 3}', 422, "wieght"),
        ("POST", "reload", b'{"now": true}', 422, "now"),
        ("PATCH", CHAT, b" " * 65_537, 413, "64 KiB"),
    ],
)
def test_problems(
    admin: AdminServer, method: str, path: str, body: bytes | None, status: int, detail: str
) -> None:
    answer = admin.ask(method, path, body)
    assert answer.status == status, answer
    assert answer.headers["server"] == "lb"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    if status >= 400:
        assert answer.headers["content-type"].startswith("application/problem+json")
    if status >= 400 and method != "HEAD":
        assert answer.body["status"] == status
        assert detail in answer.body["detail"]
    if status == 405:
        assert answer.headers["allow"]
    assert admin.control.kinds() == []


def test_a_fault_of_ours_is_told_in_the_log_alone(admin: AdminServer) -> None:
    admin.control.snapshot = None  # type: ignore[assignment]
    answer = admin.get("status")
    assert (answer.status, answer.body["title"]) == (500, "Internal Server Error")
    assert "NoneType" not in str(answer.body)
    log = admin.control.log_text()
    assert 'event="admin request failed"' in log and "AttributeError" in log and "path=/api/v1/status" in log


def test_head_is_get_without_the_body(admin: AdminServer) -> None:
    for one in OPERATIONS:
        if one.method == "GET" and not one.path and one.name != "events":
            answer = admin.ask("HEAD", one.route.removeprefix("/"))
            assert (answer.status, answer.body) == (200, b"")


def test_a_body_that_does_not_come_is_not_waited_for(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_WITHIN", 0.05)
    connection = admin.connection()
    connection.putrequest("PATCH", f"/api/v1/{CHAT}")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 408
    assert "within 0.05s" in response.read().decode()
    connection.close()
