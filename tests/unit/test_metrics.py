"""Metrics: every name with its labels, every figure where it belongs, in formats that others can read."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import prometheus_client
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from lb.master.report import Outcome, ReloadReport, UpgradeReport, WorkerReport
from lb.metrics import metrics_app
from lb.metrics.app import MAX_SCRAPES
from lb.metrics.collector import registry
from lb.metrics.exposition import wants_gzip, wants_openmetrics
from lb.metrics.families import FAMILIES, Family
from tests.harness.board import GET, ONE, SNAPSHOT, TWO, Hand, fill
from tests.harness.control import StandInControl
from workers.contract.cells import Admin, Health, StateCell, WorkerCell
from workers.contract.series import Kind
from workers.contract.snapshot import WebSocketSpec

ROOT = Path(__file__).parents[2]

# What operators were promised; the rest is extra.
PROMISED: dict[str, tuple[str, ...]] = {
    "lb_build_info": ("version", "form"),
    "lb_config_reloads_total": ("result",),
    "lb_config_last_reload_successful": (),
    "lb_config_last_reload_success_timestamp_seconds": (),
    "lb_workers": (),
    "lb_worker_restarts_total": ("reason",),
    "lb_worker_connections": ("worker",),
    "lb_worker_tunnels": ("worker",),
    "lb_worker_loop_lag_seconds": ("worker",),
    "lb_worker_longest_turn_seconds": ("worker",),
    "lb_worker_long_turns_total": ("worker",),
    "lb_listener_connections": ("listener",),
    "lb_listener_connections_total": ("listener",),
    "lb_listener_rejected_total": ("listener", "reason"),
    "lb_tls_handshakes_total": ("version", "result"),
    "lb_tls_certificate_not_after_timestamp_seconds": ("name",),
    "lb_http_requests_total": ("route", "method", "code"),
    "lb_http_requests_in_flight": ("route",),
    "lb_http_request_duration_seconds": ("route",),
    "lb_websocket_tunnels": ("route", "pool", "server"),
    "lb_websocket_handshakes_total": ("route", "result"),
    "lb_websocket_handshake_duration_seconds": ("route",),
    "lb_websocket_tunnel_duration_seconds": ("route",),
    "lb_websocket_bytes_total": ("route", "direction"),
    "lb_websocket_messages_total": ("route", "direction"),
    "lb_websocket_closes_total": ("route", "initiator", "code"),
    "lb_websocket_migrations_total": ("reason", "result"),
    "lb_websocket_drain_queue_length": (),
    "lb_websocket_ping_duration_seconds": ("route",),
    "lb_websocket_ping_timeouts_total": ("route",),
    "lb_worker_tunnels_crash_safe": ("worker",),
    "lb_upgrades_total": ("result",),
    "lb_upstream_admission_total": ("pool", "result"),
    "lb_upstream_admission_queue_length": ("pool",),
    "lb_upstream_connections": ("pool", "server", "kind"),
    "lb_upstream_requests_total": ("pool", "server", "code"),
    "lb_upstream_connect_duration_seconds": ("pool",),
    "lb_upstream_errors_total": ("pool", "server", "reason"),
    "lb_upstream_retries_total": ("pool",),
    "lb_upstream_queue_length": ("pool",),
    "lb_upstream_server_state": ("pool", "server", "state"),
    "lb_upstream_health_checks_total": ("pool", "server", "result"),
    "lb_upstream_ejections_total": ("pool", "server", "reason"),
    "lb_sticky_lookups_total": ("pool", "result"),
}

# prometheus_client leaves it without types.
read_openmetrics: Callable[[str], Iterable[prometheus_client.Metric]] = (
    openmetrics_parser.text_string_to_metric_families
)

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def report(slot: int, pid: int = 0, state: str = "serving", heartbeat_age: float = 0.0) -> WorkerReport:
    return WorkerReport(
        slot=slot, pid=pid or 1000 + slot, state=state, uptime=1.0, generation=3, connections=0, tunnels=0,
        accepted=0, requests=0, heartbeat_age=heartbeat_age, listening_sockets=1,
    )  # fmt: skip


@pytest.fixture
def control() -> Iterator[StandInControl]:
    with StandInControl(SNAPSHOT) as made:
        made.status = msgspec.structs.replace(
            made.status, version="1.2", form="compiled", workers_wanted=2,
            workers=(report(0, os.getpid()), report(2)),
            restarts={"SIGKILL": 3}, control_restarts={"exit-1": 2}, keeper_restarts={"SIGSEGV": 5},
            upgrades=UpgradeReport(succeeded=6, failed=7),
            reloads=ReloadReport(succeeded=4, failed=1, last=Outcome(ok=False, generation=3),
                                 last_success=5e8),
        )  # fmt: skip
        yield made


def ask(
    control: StandInControl,
    path: str = "/metrics",
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
) -> tuple[int, Mapping[str, str], bytes]:
    """One request to the application; the body is not unpacked."""

    async def run() -> tuple[int, Mapping[str, str], bytes]:
        async with TestClient(TestServer(metrics_app(control)), auto_decompress=False) as client:
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            async with client.request(method, path, headers=sent) as response:
                return response.status, response.headers, await response.read()

    return asyncio.run(run())


def scrape(control: StandInControl) -> str:
    status, _, body = ask(control)
    assert status == 200
    return body.decode()


def figures(text: str) -> Figures:
    """Every sample; none may stand there twice."""
    found: Figures = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def only(found: Figures, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one metric, by the values of its labels in the promised order."""
    names = FAMILIES[name].labels
    return {
        tuple(dict(labels)[label] for label in names): value
        for (sample, labels), value in found.items()
        if sample == name
    }


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMISED)
def test_what_was_promised_is_there_with_its_labels(name: str, control: StandInControl) -> None:
    assert FAMILIES[name].labels == PROMISED[name]
    fill(control)
    family = FAMILIES[name]
    shown = f"{name}_count" if family.type == "histogram" else name
    labels = [{key for key, _ in labels} for sample, labels in figures(scrape(control)) if sample == shown]
    assert labels
    assert all(found == {*family.labels} for found in labels)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_names_follow_the_conventions(family: Family) -> None:
    name, kind, text, labels, unit = family
    assert re.fullmatch(r"lb_[a-z]+(_[a-z]+)*", name)
    assert name.endswith("_total") == (kind == "counter")
    assert name.endswith("_info") == (kind == "info")
    assert name.removesuffix("_total").endswith(f"_{unit}" if unit else "")
    assert ("_seconds" in name, "_bytes" in name) == (unit == "seconds", unit == "bytes")
    assert (text.endswith(".") and text[0].isupper()) or text[0] == "1"
    assert ("worker" in labels) == (name.startswith("lb_worker_") and name != "lb_worker_restarts_total")


def test_every_metric_is_told_even_before_anything_happened(control: StandInControl) -> None:
    text = scrape(control)
    for family in FAMILIES.values():
        assert f"# HELP {family.name} {family.help}\n# TYPE {family.name} " in text


# --- figures --------------------------------------------------------------------------------------------

EXPECTED: dict[str, dict[tuple[str, ...], float]] = {
    "lb_up": {(): 1},
    "lb_build_info": {("1.2", "compiled"): 1},
    "lb_config_generation": {(): 3},
    "lb_config_reloads_total": {("success",): 4, ("failure",): 1},
    "lb_config_last_reload_successful": {(): 0},
    "lb_config_last_reload_success_timestamp_seconds": {(): 5e8},
    "lb_control_restarts_total": {("exit-1",): 2},
    "lb_workers": {(): 2},
    "lb_workers_wanted": {(): 2},
    "lb_worker_restarts_total": {("SIGKILL",): 3},
    "lb_keeper_restarts_total": {("SIGSEGV",): 5},
    "lb_upgrades_total": {("success",): 6, ("failure",): 7},
    "lb_accept_paused_total": {(): 66},
    "lb_access_log_dropped_total": {(): 55},
    "lb_error_log_dropped_total": {(): 154},
    "lb_scoreboard_series_full_total": {(): 143},
    "lb_worker_connections": {("0",): 2, ("2",): 20},
    "lb_worker_tunnels": {("0",): 3, ("2",): 30},
    "lb_worker_tunnels_crash_safe": {("0",): 91, ("2",): 910},
    "lb_worker_tunnels_movable": {("0",): 90, ("2",): 900},
    "lb_worker_longest_turn_seconds": {("0",): 93, ("2",): 930},
    "lb_worker_long_turns_total": {("0",): 94, ("2",): 940},
    "lb_worker_faults_total": {("0",): 7, ("2",): 70},
    "lb_worker_cpu_seconds_total": {("0",): 12, ("2",): 120},
    "lb_listener_connections": {("public",): 165},
    "lb_listener_connections_total": {("public",): 176},
    "lb_listener_rejected_total": {
        ("public", "connection_limit"): 0, ("public", "no_route"): 198, ("public", "other"): 187,
    },
    "lb_tls_handshakes_total": {
        ("1.2", "ok"): 88, ("1.3", "ok"): 99, ("none", "failed"): 110, ("none", "timeout"): 121,
    },
    "lb_tls_certificate_not_after_timestamp_seconds": {("a.pem",): 4e9},
    "lb_http_requests_total": {
        ('ch"at', "GET", "200"): 440, ('ch"at', "POST", "other"): 451, ('ch"at', "other", "404"): 462,
        ('ch"at', "other", "other"): 231,
    },
    "lb_http_requests_in_flight": {('ch"at',): 209},
    "lb_websocket_tunnels": {
        ('ch"at', "main", "one"): 506, ('ch"at', "main", "[::1]:9002"): 0, ('ch"at', "main", "other"): 253,
    },
    "lb_websocket_handshakes_total": {
        ('ch"at', "accepted"): 330, ('ch"at', "rejected"): 341, ('ch"at', "refused"): 352,
        ('ch"at', "failed"): 363, ('ch"at', "client_closed"): 374,
    },
    "lb_websocket_bytes_total": {('ch"at', "from_client"): 264, ('ch"at', "from_server"): 275},
    "lb_websocket_messages_total": {('ch"at', "from_client"): 286, ('ch"at', "from_server"): 297},
    "lb_websocket_closes_total": {
        ('ch"at', "client", "1000"): 473, ('ch"at', "server", "4xxx"): 484, ('ch"at', "client", "none"): 495,
        ('ch"at', "other", "other"): 242,
    },
    "lb_websocket_migrations_total": {
        (reason, result): 11 * (100 + 4 * row + column)
        for row, reason in enumerate(("crash", "retire", "rebalance", "upgrade"))
        for column, result in enumerate(("ok", "unproved", "gone", "refused"))
    },
    "lb_websocket_drain_queue_length": {(): 1012},
    "lb_websocket_ping_timeouts_total": {('ch"at',): 308},
    "lb_upstream_admission_total": {("main", "admitted"): 616, ("main", "refused"): 627},
    "lb_upstream_admission_queue_length": {("main",): 638},
    "lb_upstream_requests_total": {
        ("main", "one", "200"): 737, ("main", "one", "503"): 748, ("main", "one", "other"): 715,
    },
    "lb_upstream_errors_total": {("main", "one", "connect_failed"): 759, ("main", "one", "other"): 726},
    "lb_upstream_retries_total": {("main",): 517},
    "lb_upstream_queue_length": {("main",): 528},
    "lb_upstream_server_weight": {("main", "one"): 4, ("main", "[::1]:9002"): 1},
    "lb_upstream_connections": {
        ("main", "one", "active"): 770, ("main", "one", "idle"): 330, ("main", "one", "tunnel"): 671,
        ("main", "[::1]:9002", "active"): 0, ("main", "[::1]:9002", "idle"): 0,
        ("main", "[::1]:9002", "tunnel"): 0,
    },
    "lb_sticky_lookups_total": {
        ("main", "hit"): 550, ("main", "new"): 561, ("main", "invalid"): 572, ("main", "moved"): 583,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_every_figure_is_where_it_belongs(name: str, control: StandInControl) -> None:
    fill(control)
    assert only(figures(scrape(control)), name) == EXPECTED[name]


def test_histograms_are_cumulative(control: StandInControl) -> None:
    fill(control)
    found = figures(scrape(control))

    def bucket(le: str) -> float:
        labels = frozenset({("route", 'ch"at'), ("le", le)})
        return found["lb_http_request_duration_seconds_bucket", labels]

    assert [bucket(le) for le in ("0.001", "0.0025", "10.0", "60.0", "+Inf")] == [0, 22, 22, 22, 33]
    route = frozenset({("route", 'ch"at')})
    assert found["lb_http_request_duration_seconds_count", route] == 33
    assert found["lb_http_request_duration_seconds_sum", route] == 1100
    assert found["lb_websocket_tunnel_duration_seconds_sum", route] == 11e6
    assert found["lb_websocket_handshake_duration_seconds_count", route] == 33
    assert found["lb_websocket_ping_duration_seconds_sum", route] == 77
    assert found["lb_websocket_ping_duration_seconds_count", route] == 66
    assert found["lb_websocket_ping_duration_seconds_bucket", route | {("le", "0.005")}] == 66
    assert found["lb_websocket_ping_duration_seconds_bucket", route | {("le", "0.0025")}] == 0
    assert found["lb_upstream_connect_duration_seconds_count", frozenset({("pool", "main")})] == 55


def test_the_state_of_a_server_is_one_of_all(control: StandInControl) -> None:
    control.states.set_health("main", ONE, Health.DOWN)
    control.states.set_admin("main", TWO, Admin.DRAIN)
    states = only(figures(scrape(control)), "lb_upstream_server_state")
    assert len(states) == 14
    assert {key[1:] for key, value in states.items() if value} == {("one", "down"), (TWO.name, "drain")}


def test_checks_and_ejections_are_told_where_there_are_any(control: StandInControl) -> None:
    control.board.control[control.board.state_base(ONE.slot) + StateCell.CHECKS + 2] = 5
    found = figures(scrape(control))
    checks = only(found, "lb_upstream_health_checks_total")
    assert {server for _, server, _ in checks} == {"one"}, "the other has no check"
    assert checks["main", "one", "timeout"] == 5
    assert len(only(found, "lb_upstream_ejections_total")) == 6


def test_pings_and_admission_are_told_where_they_are_configured(control: StandInControl) -> None:
    fill(control)
    route = msgspec.structs.replace(SNAPSHOT.routes[0], websocket=WebSocketSpec())
    pool = msgspec.structs.replace(SNAPSHOT.pools[0], admission=None)
    control.serve(msgspec.structs.replace(SNAPSHOT, routes=(route,), pools=(pool,)))
    found = {name for name, _ in figures(scrape(control))}
    assert not [name for name in found if "_ping_" in name or "_admission_" in name]


def test_a_worker_that_is_gone_has_no_gauges_but_keeps_its_counters(control: StandInControl) -> None:
    fill(control)
    control.status = msgspec.structs.replace(control.status, workers=(report(0),))
    found = figures(scrape(control))
    assert only(found, "lb_worker_connections") == {("0",): 2}
    assert only(found, "lb_worker_faults_total") == {("0",): 7, ("2",): 70}
    assert only(found, "lb_worker_loop_lag_seconds").keys() == {("0",)}


def test_what_linux_tells_of_a_worker(control: StandInControl) -> None:
    fill(control)
    found = figures(scrape(control))
    assert only(found, "lb_worker_resident_memory_bytes")["0",] > 2**20
    assert only(found, "lb_worker_open_files")["0",] >= len(os.listdir("/proc/self/fd")) - 5
    assert ("2",) not in only(found, "lb_worker_open_files") or Path("/proc/1002").exists()
    assert time.time() - 10**4 < only(found, "lb_start_time_seconds")[()] <= time.time() + 1


def test_a_silent_worker_is_late_by_the_age_of_its_heartbeat(control: StandInControl) -> None:
    fill(control)
    cells = control.board.slab(2).cells
    cells[WorkerCell.HEARTBEAT] -= 40 * 10**9
    cells[WorkerCell.LAG] = 10**9
    control.board.slab(0).cells[WorkerCell.PID] = os.getpid()
    control.board.slab(0).cells[WorkerCell.LAG] = 25 * 10**9
    lag = only(figures(scrape(control)), "lb_worker_loop_lag_seconds")
    assert 39 <= lag["2",] < 60
    assert lag["0",] == 25


def test_rows_that_a_reload_took_away_are_told_while_they_live(control: StandInControl) -> None:
    route, server = SNAPSHOT.retired_routes[0], SNAPSHOT.retired_servers[0]
    hand = Hand(control, 1)
    hand.route(route, in_flight=2).server(server, connections=3, idle=1, tunnels=4)
    hand.series(Kind.TUNNELS, route, server.slot, 4)
    found = figures(scrape(control))
    assert only(found, "lb_http_requests_in_flight") == {('ch"at',): 0, ("old",): 2}
    assert only(found, "lb_websocket_tunnels") == {("old", "main", "gone"): 4}
    gone = {key: value for key, value in only(found, "lb_upstream_connections").items() if key[1] == "gone"}
    assert gone == {("main", "gone", "active"): 2, ("main", "gone", "idle"): 1, ("main", "gone", "tunnel"): 4}
    hand.route(route, in_flight=-2).server(server, connections=-3, idle=-1, tunnels=-4)
    hand.series(Kind.TUNNELS, route, server.slot, -4)
    assert 'server="gone"' not in scrape(control)
    assert 'route="old"' not in scrape(control)


def test_a_row_that_was_taken_away_and_its_namesake_are_not_told_twice(control: StandInControl) -> None:
    route = msgspec.structs.replace(SNAPSHOT.retired_routes[0], name='ch"at')
    server = msgspec.structs.replace(SNAPSHOT.retired_servers[0], name="one")
    control.serve(msgspec.structs.replace(SNAPSHOT, retired_routes=(route,), retired_servers=(server,)))
    Hand(control, 1).route(route, in_flight=2).server(server, connections=3)
    figures(scrape(control))


def test_counters_of_a_worker_and_its_successor_add_up(control: StandInControl) -> None:
    route = SNAPSHOT.routes[0]
    Hand(control, 0).series(Kind.REQUESTS, route, GET | 200, 7)
    Hand(control, 0).series(Kind.REQUESTS, route, GET | 200, 1)
    assert only(figures(scrape(control)), "lb_http_requests_total") == {('ch"at', "GET", "200"): 8}


def test_labels_of_the_last_configuration_are_forgotten(control: StandInControl) -> None:
    async def run() -> tuple[str, str]:
        async with TestClient(TestServer(metrics_app(control))) as client:
            before = await (await client.get("/metrics")).text()
            route = msgspec.structs.replace(SNAPSHOT.routes[0], name="later")
            control.serve(msgspec.structs.replace(SNAPSHOT, generation=4, routes=(route,)))
            return before, await (await client.get("/metrics")).text()

    before, after = asyncio.run(run())
    assert 'route="ch\\"at"' in before and 'route="later"' not in before
    assert 'route="ch\\"at"' not in after and 'route="later"' in after


# --- formats --------------------------------------------------------------------------------------------


def test_the_text_is_what_prometheus_client_would_write(control: StandInControl) -> None:
    fill(control)
    ours = [*parser.text_string_to_metric_families(scrape(control))]
    theirs = [
        *parser.text_string_to_metric_families(prometheus_client.generate_latest(registry(control)).decode())
    ]
    assert [(family.name, family.type, family.documentation) for family in ours] == [
        (family.name, family.type, family.documentation) for family in theirs
    ]
    moving = ("lb_worker_loop_lag_seconds", "lb_worker_resident_memory_bytes", "lb_worker_open_files")
    for one, other in zip(ours, theirs, strict=True):
        if one.name not in moving:
            assert one.samples == other.samples


def test_openmetrics_is_read_by_a_strict_parser(control: StandInControl) -> None:
    fill(control)
    status, headers, body = ask(control, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert status == 200
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = [*read_openmetrics(body.decode())]
    assert {family.unit for family in families} == {"", "seconds", "bytes"}
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    text = figures(scrape(control))
    assert samples.keys() == text.keys()
    assert samples["lb_listener_connections_total", frozenset({("listener", "public")})] == 176


def test_promtool_has_nothing_to_say(control: StandInControl) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    fill(control)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(control), capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=1.0.0", True),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text; version=x\u00e9", False),
        ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text; q=0.5, text/plain", False),
        ("application/openmetrics-text; q=nan", False),
        ("application/openmetrics-text; q=x; q", False),
        (";,=;,", False),
        ("," * 10**6 + "application/openmetrics-text", False),
    ],
)
def test_openmetrics_is_for_those_who_ask(accept: str, expected: bool) -> None:
    assert wants_openmetrics(accept) is expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("identity", False),
        ("*", False),
    ],
)
def test_gzip_is_for_those_who_ask(accept: str, expected: bool) -> None:
    assert wants_gzip(accept) is expected


@pytest.mark.parametrize("accept", ["*/*", PROMETHEUS])
def test_a_scrape_is_packed_when_asked(accept: str, control: StandInControl) -> None:
    fill(control)
    status, headers, body = ask(control, headers={"Accept": accept, "Accept-Encoding": "gzip"})
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert headers["Vary"] == "Accept, Accept-Encoding"
    text = gzip.decompress(body).decode()
    assert len(body) * 4 < len(text)
    assert text.endswith("# EOF\n") == (accept == PROMETHEUS)


# --- the application ------------------------------------------------------------------------------------


def test_scrapes_at_the_same_time_wait_and_too_many_are_refused(control: StandInControl) -> None:
    async def run() -> list[int]:
        async with TestClient(TestServer(metrics_app(control))) as client:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(client.get("/metrics")) for _ in range(4 * MAX_SCRAPES)]
            return [task.result().status for task in tasks]

    statuses = asyncio.run(run())
    assert {*statuses} <= {200, 503}
    assert statuses.count(200) >= MAX_SCRAPES


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/api/v1/status", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/readyz", 405),
        ("HEAD", "/metrics", 200),
        ("HEAD", "/healthz", 200),
        ("GET", "/healthz", 200),
    ],
)
def test_nothing_else_is_served(method: str, path: str, status: int, control: StandInControl) -> None:
    found, _, body = ask(control, path, method=method)
    assert found == status
    assert (method != "HEAD") or not body


def ready(control: StandInControl) -> tuple[int, str]:
    status, _, body = ask(control, "/readyz")
    return status, body.decode()


def test_ready_while_every_workers_heart_beats(control: StandInControl) -> None:
    fill(control)
    assert ready(control) == (200, "ready\n")
    control.status = msgspec.structs.replace(control.status, state="reloading")
    assert ready(control) == (200, "ready\n")


@pytest.mark.parametrize("state", ["starting", "stopping"])
def test_not_ready_while_it_starts_or_stops(state: str, control: StandInControl) -> None:
    fill(control)
    control.status = msgspec.structs.replace(control.status, state=state)
    assert ready(control) == (503, f"not ready: the load balancer is {state}\n")
    assert ask(control, "/healthz")[0] == 200
    assert only(figures(scrape(control)), "lb_up") == {(): 0}


def test_not_ready_while_a_worker_is_wedged(control: StandInControl) -> None:
    fill(control)
    control.board.slab(2).cells[WorkerCell.HEARTBEAT] -= 40 * 10**9
    status, text = ready(control)
    assert status == 503
    assert re.fullmatch(r"not ready: worker 2 \(pid 1002\) is wedged: no heartbeat for \d\d\.\ds\n", text), (
        text
    )


def test_not_ready_while_no_worker_serves(control: StandInControl) -> None:
    control.status = msgspec.structs.replace(control.status, workers=(report(0, state="loading"),))
    assert ready(control) == (503, "not ready: no worker serves\n")


def test_a_worker_without_a_heartbeat_is_as_late_as_the_master_says(control: StandInControl) -> None:
    fill(control)
    fresh = report(0, pid=77, state="starting")
    control.status = msgspec.structs.replace(control.status, workers=(fresh, report(2)))
    control.board.slab(0).cells[WorkerCell.HEARTBEAT] -= 40 * 10**9  # its predecessor's
    assert ready(control)[0] == 200
    late = msgspec.structs.replace(fresh, heartbeat_age=3.0)
    control.status = msgspec.structs.replace(control.status, workers=(late, report(2)))
    assert ready(control)[0] == 503


# --- the page about them --------------------------------------------------------------------------------


def test_the_documentation_tells_of_every_metric() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(lb_\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert list(rows) == list(FAMILIES)
    for name, row in rows.items():
        family = FAMILIES[name]
        kind, unit, labels, meaning = row.split(" | ", 3)
        assert (kind, unit) == (family.type, family.unit or "-"), name
        assert tuple(re.findall(r"`(\w+)`", labels)) == family.labels, name
        assert meaning.startswith(family.help.removesuffix(".")), name
