"""A real Prometheus: every query of every panel and rule has data, and the figures are what was sent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.metrics.families import FAMILIES
from tests.conftest import StartBalancer
from tests.harness import LoadBalancer, eventually
from tests.harness.prometheus import Labels, Prometheus
from tests.interop.conftest import program
from tests.interop.prometheus_traffic import Scene

pytestmark = pytest.mark.interop

GRAFANA = Path(__file__).parents[2] / "grafana"
RULES = sorted((GRAFANA / "rules").glob("*.yml"))
VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$job": "lb"}
THRESHOLD = re.compile(r"\s*(?:<=|>=|<|>|==|!=)\s*[0-9.]+\s*$")
# What moves only when something is lost or broken that this test does not break.
STILL = {
    "lb_accept_paused_total",
    "lb_access_log_dropped_total",
    "lb_error_log_dropped_total",
    "lb_scoreboard_series_full_total",
    "lb_upgrades_total",
    "lb_upstream_admission_queue_length",
    "lb_websocket_drain_queue_length",
    "lb_worker_faults_total",
}
# Turns of the event loop are told from some length on: whether there is one is the machine's business.
BY_CHANCE = {"lb_worker_long_turns_total", "lb_worker_longest_turn_seconds"}
MUST_BE_ACTIVE = {
    "LbCertificateExpires",
    "LbPoolDown",
    "LbReloadFailed",
    "LbServerDown",
    "LbWorkerReplaced",
}
LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """The servers, closed at the end."""
    found = Scene(tmp_path)
    yield found
    found.close()


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs promtool, which prints what it does not like."""
    return subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_rules_are_right() -> None:
    done = promtool("check", "rules", "--lint-fatal", *map(str, RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((GRAFANA / "rules/tests").glob("*.yml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_has_data_and_the_figures_are_what_was_sent(
    scene: Scene, balancer: StartBalancer, tmp_path: Path
) -> None:
    path = program("prometheus")
    lb = balancer(scene.tables())
    lb.wait_control()
    target = "{}:{}".format(*lb.metrics_address)
    with Prometheus(path, tmp_path, target, RULES) as prometheus:
        _run(lb, scene, prometheus)
        _assert_equal(scene, prometheus)
        _assert_all_moved(prometheus)
        _assert_all_have_data(prometheus)
        _assert_rules_work(prometheus)


def _run(lb: LoadBalancer, scene: Scene, prometheus: Prometheus) -> None:
    """Two rounds of traffic, and between them all that an operator fears."""
    eventually(lambda: prometheus.value("sum(lb_up)") == 1, "the first scrape")
    tunnels = scene.round(lb)
    waiting = scene.fill_queue(lb, 6)
    eventually(
        lambda: prometheus.value("sum(lb_websocket_tunnels)") == len(tunnels), "Prometheus sees WebSockets"
    )
    eventually(lambda: prometheus.value("sum(lb_upstream_queue_length)"), "Prometheus sees a queue")
    scene.leave_queue(waiting)
    eventually(_sees(prometheus, "sum(lb_http_requests_total{code='499'})", 1), "Prometheus sees who left")
    kept, *others = tunnels
    for tunnel in others:
        tunnel.close(1000)
    scene.serve_queue(waiting)
    _trouble(lb)
    kept.talk(300)
    kept.close(1000)
    for tunnel in scene.round(lb):
        tunnel.close(1000)
    scene.vanish(lb)


def _sees(prometheus: Prometheus, query: str, value: float) -> Callable[[], bool]:
    return lambda: prometheus.value(query) == value


def _trouble(lb: LoadBalancer) -> None:
    """A keeper, the worker of a WebSocket and the control process die, a reload succeeds and one fails."""

    def alone(other_than: int = 0) -> dict[str, Any]:
        """The worker of the only connection there is, once a keeper has both of its sockets."""
        workers = [worker for worker in lb.status()["workers"] if worker["connections"]]
        if len(workers) != 1 or workers[0]["connections"] != 1 or not workers[0]["keeper_pid"]:
            return {}
        pids = (workers[0]["pid"], workers[0]["keeper_pid"], lb.pid)
        theirs, kept, masters = (set(lb.descriptors(pid).values()) for pid in pids)
        # A keeper that was forked only now still has the master's sockets, two listening ones among them.
        shared = [name for name in (theirs & kept) - masters if name.startswith("socket:")]
        return workers[0] if len(shared) == 2 and workers[0]["keeper_pid"] != other_than else {}

    keeper = eventually(alone, "a WebSocket that is kept, and nothing else")["keeper_pid"]
    os.kill(keeper, signal.SIGKILL)
    slot = eventually(lambda: alone(keeper), "the next keeper has it")["slot"]
    lb.wait_replaced(slot, lb.kill_worker(slot))
    old = lb.control_pid
    os.kill(old, signal.SIGKILL)
    lb.wait_control(old)
    lb.tables["pool"]["web"]["balance"] = "random"
    lb.reload()
    lb.tables["pool"]["web"]["balance"] = "no such thing"
    lb.reload(check=False)


def _assert_equal(scene: Scene, prometheus: Prometheus) -> None:
    """Prometheus' last figures are the clients' and the servers' own."""
    for (series, labels), figures in _expected(scene).items():
        query = f"sum by ({', '.join(labels)}) ({series})"
        _assert_becomes(prometheus, query, labels, {key: value for key, value in figures.items() if value})


def _expected(scene: Scene) -> dict[tuple[str, Labels], Mapping[Labels, float]]:
    """What must be equal: series and labels, and the figures by the labels' values."""
    tally = scene.tally
    chat = '{route="chat"}'
    web = sum(count for (route, _, _), count in tally.requests.items() if route == "web")
    return {
        ("lb_http_requests_total", ("route", "method", "code")): tally.requests,
        ('lb_http_request_duration_seconds_count{route="web"}', ("route",)): {("web",): web},
        (f"lb_websocket_messages_total{chat}", ("direction",)): tally.messages,
        (f"lb_websocket_bytes_total{chat}", ("direction",)): tally.bytes,
        (f"lb_websocket_closes_total{chat}", ("initiator", "code")): tally.closes,
        (f"lb_websocket_handshakes_total{chat}", ("result",)): tally.handshakes,
        ("lb_websocket_tunnel_duration_seconds_count", ("route",)): {
            ("chat",): sum(tally.closes.values()),
            ("silent",): tally.vanished,
        },
        ("lb_websocket_ping_timeouts_total", ("route",)): {("silent",): tally.vanished},
        ("lb_tls_handshakes_total", ("result",)): tally.tls,
        ('lb_listener_rejected_total{reason="no_route"}', ("listener",)): {("public",): tally.unrouted},
        ('lb_upstream_requests_total{pool=~"web|flaky"}', ("server",)): {
            (server.name,): len(server.requests) for server in (*scene.web, scene.good)
        },
        ('lb_upstream_errors_total{pool="flaky"}', ("reason",)): {
            ("upstream_reset",): len(scene.bad.requests)
        },
        ('lb_upstream_retries_total{pool="flaky"}', ("pool",)): {("flaky",): len(scene.bad.requests)},
        ('lb_upstream_server_state{state=~"down|ejected|drain|maint"}', ("server", "state")): {
            ("gone", "down"): 1,
            ("bad", "ejected"): 1,
        },
        ("lb_sticky_lookups_total", ("result",)): {("new",): web - tally.returned, ("hit",): tally.returned},
        ("lb_config_reloads_total", ("result",)): {("success",): 1, ("failure",): 1},
        ("lb_worker_restarts_total", ("reason",)): {("SIGKILL",): 1},
        ("lb_keeper_restarts_total", ("reason",)): {("SIGKILL",): 1},
        ("lb_websocket_migrations_total", ("reason", "result")): {("crash", "ok"): 1},
        ("lb_upstream_admission_total", ("pool", "result")): {
            ("chat", "admitted"): sum(tally.handshakes.values())
        },
        ("lb_control_restarts_total", ("reason",)): {("SIGKILL",): 1},
        ("lb_websocket_tunnels", ()): {},
        ("lb_http_requests_in_flight", ()): {},
        ("lb_listener_connections", ()): {},
        ("lb_upstream_queue_length", ()): {},
    }


def _assert_all_moved(prometheus: Prometheus) -> None:
    """Else the queries' data would be the zeros of a load balancer that does nothing."""
    still = {
        family.name
        for family in FAMILIES.values()
        if not prometheus.value(
            f"max(max_over_time({family.name}{'_count' if family.type == 'histogram' else ''}[2m]))"
        )
    }
    assert still - BY_CHANCE == STILL


def _assert_all_have_data(prometheus: Prometheus) -> None:
    """Rules are evaluated some time after what they read was scraped."""
    silent = queries()

    def none_left() -> bool:
        silent[:] = [query for query in silent if not prometheus.has_data(query)]
        return not silent

    try:
        eventually(none_left, "every query has data", 10)
    except AssertionError:
        assert silent == []
        raise


def _assert_becomes(
    prometheus: Prometheus, query: str, labels: Labels, figures: Mapping[Labels, float]
) -> None:
    seen: dict[Labels, float] = {}

    def same() -> bool:
        seen.clear()
        seen.update({key: value for key, value in prometheus.values(query, *labels).items() if value})
        return seen == figures

    try:
        eventually(same, query, 5)
    except AssertionError:
        assert seen == figures, query
        raise


def _assert_rules_work(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    eventually(lambda: _active(prometheus) >= MUST_BE_ACTIVE, f"{MUST_BE_ACTIVE} are active", 10)
    alerts = prometheus.api("alerts")["alerts"]
    for alert in alerts:
        for text in alert["annotations"].values():
            assert not re.search("<no value>|<error", text), alert


def _active(prometheus: Prometheus) -> set[str]:
    return {alert["labels"]["alertname"] for alert in prometheus.api("alerts")["alerts"]}


# --- the queries -------------------------------------------------------------------------------------


def queries() -> list[str]:
    """All queries of the dashboards, their variables and annotations, and of the rules."""
    found = [rule["record"] for rule in _rules() if "record" in rule]
    for rule in _rules():
        clauses = rule["expr"].split("\nand\n") if "alert" in rule else [rule["expr"]]
        found += [THRESHOLD.sub("", clause) for clause in clauses] if "alert" in rule else clauses
    for path in sorted((GRAFANA / "dashboards").glob("*.json")):
        found += _of_dashboard(json.loads(path.read_text()))
    return found


def _rules() -> list[dict[str, Any]]:
    documents = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


def _of_dashboard(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield _substituted(target["expr"])
    for annotation in dashboard["annotations"]["list"]:
        yield _substituted(annotation["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = LABEL_VALUES.fullmatch(variable["definition"])
            assert match, variable
            yield _substituted(f"count by ({match[2]}) ({match[1]})")


def _substituted(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return re.sub(r"\$(?:instance|route|pool|worker)\b", ".*", query)
