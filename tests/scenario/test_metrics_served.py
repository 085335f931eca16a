"""Metrics and probes of the real thing: with stuck workers, killed workers and a killed control process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, RawClient, eventually, fetch
from tests.harness import websocket as ws
from tests.harness.certificates import Authority
from tests.harness.figures import Scrape, probe
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

PATIENT = {"wedged_after": "60s"}  # nobody is killed for standing still in these tests


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that stand still until the end of the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def ready(lb: LoadBalancer) -> bool:
    """Whether /readyz says so."""
    return probe(lb, "/readyz").status == 200


def test_a_stuck_worker_is_late_and_the_probe_names_it(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream().address], workers=2, process=PATIENT))
    lb.wait_control()
    eventually(lambda: ready(lb), "all workers serve")
    victim = lb.worker_pids()[1]
    with stopped([victim]):
        eventually(lambda: not ready(lb), "the probe notices")
        response = probe(lb, "/readyz")
        assert response.status == 503
        assert response.text.startswith(f"not ready: worker 1 (pid {victim}) is wedged: no heartbeat for ")
        scrape = Scrape(lb)
        assert scrape.total("lb_worker_loop_lag_seconds", worker="1") >= 2
        assert scrape.total("lb_worker_loop_lag_seconds", worker="0") < 2
        assert probe(lb, "/healthz").status == 200
    eventually(lambda: ready(lb), "the worker goes on")
    eventually(lambda: Scrape(lb).total("lb_worker_loop_lag_seconds", worker="1") < 2, "it is in time again")


def test_a_scrape_needs_no_worker(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=2, process=PATIENT))
    lb.wait_control()
    for _ in range(5):
        assert fetch(lb.address, "/").status == 200
    # (A response is on its way before it is counted.)
    eventually(lambda: Scrape(lb).total("lb_http_requests_total") == 5, "all are counted")
    with stopped(lb.worker_pids()):
        scrape = Scrape(lb)
        assert scrape.by("lb_http_requests_total", "route", "method", "code") == {("all", "GET", "200"): 5}
        assert scrape.total("lb_workers") == 2


@contextlib.contextmanager
def tunnels_over_tls(balancer: StartBalancer, server: str, folder: Path) -> Iterator[LoadBalancer]:
    """Two workers with 12 WebSockets over TLS, which nobody can take over."""
    authority = Authority(folder)
    authority.issue("server.pem", "test.example")
    lb = balancer(settings([server], workers=2, listen={"tls": {"certs": [f"{folder}/server.pem"]}}))
    lb.wait_control()
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            client = RawClient(lb.address, tls=authority.client_context(), server_name="test.example")
            ws.upgrade(stack.enter_context(client))
        yield lb


def test_tunnels_that_outlive_a_killed_worker_stay_in_the_gauges(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=2))
    lb.wait_control()
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(ws.connect(lb.address))
        eventually(lambda: Scrape(lb).total("lb_worker_tunnels_crash_safe") == 12, "keepers have them all")
        assert Scrape(lb).total("lb_worker_tunnels_movable") == 12
        moved = int(Scrape(lb).total("lb_worker_tunnels", worker="0"))
        assert 0 < moved < 12
        lb.wait_replaced(0, lb.kill_worker(0))
        crash = {"reason": "crash", "result": "ok"}
        name = "lb_websocket_migrations_total"
        eventually(lambda: Scrape(lb).total(name, **crash) == moved, "they are taken over")
        after = Scrape(lb)
        for name in ("lb_websocket_tunnels", "lb_worker_tunnels", "lb_listener_connections"):
            assert after.total(name) == 12, name
        assert after.total("lb_websocket_migrations_total") == moved, "none was lost"
    eventually(lambda: not Scrape(lb).total("lb_websocket_tunnels"), "all are closed")
    eventually(lambda: Scrape(lb).total("lb_websocket_closes_total") == 12, "all ends are counted")
    assert not Scrape(lb).total("lb_worker_tunnels_crash_safe")


def test_tunnels_of_a_killed_worker_leave_the_gauges(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    with tunnels_over_tls(balancer, upstream(ws.serve_echo).address, tmp_path) as lb:
        eventually(lambda: Scrape(lb).total("lb_worker_tunnels") == 12, "all are counted")
        victims = int(Scrape(lb).total("lb_worker_tunnels", worker="0"))
        assert 0 < victims < 12
        lb.wait_replaced(0, lb.kill_worker(0))
        for name, labels in (
            ("lb_websocket_tunnels", {}),
            ("lb_worker_tunnels", {}),
            ("lb_listener_connections", {}),
            ("lb_upstream_connections", {"kind": "tunnel"}),
        ):
            eventually(lambda n=name, k=labels: Scrape(lb).total(n, **k) == 12 - victims, name)  # type: ignore[misc]
        assert Scrape(lb).total("lb_websocket_handshakes_total", result="accepted") == 12
    eventually(lambda: not Scrape(lb).total("lb_websocket_tunnels"), "all are closed")
    eventually(lambda: Scrape(lb).total("lb_websocket_closes_total") == 12 - victims, "all ends are counted")


def test_tunnels_of_a_worker_that_is_killed_while_it_leaves(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    with tunnels_over_tls(balancer, upstream(ws.serve_echo).address, tmp_path) as lb:
        eventually(lambda: Scrape(lb).total("lb_worker_tunnels") == 12, "all are counted")
        victims = int(Scrape(lb).total("lb_worker_tunnels", worker="1"))
        assert 0 < victims < 12
        pid = lb.worker_pids()[1]
        lb.tables["process"]["workers"] = 1
        lb.reload()
        os.kill(pid, signal.SIGKILL)  # nobody takes its slot
        eventually(lambda: Scrape(lb).total("lb_websocket_tunnels") == 12 - victims, "its tunnels are gone")
        assert Scrape(lb).total("lb_listener_connections") == 12 - victims


def test_counters_survive_the_control_process(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=2))
    control = lb.wait_control()
    for _ in range(3):
        fetch(lb.address, "/")
    eventually(lambda: Scrape(lb).total("lb_http_requests_total") == 3, "all are counted")
    before = Scrape(lb)
    os.kill(control, signal.SIGKILL)
    lb.wait_control(control)
    after = Scrape(lb)
    name = "lb_http_requests_total"
    assert after.by(name, "code") == before.by(name, "code") == {("200",): 3}
    assert after.by("lb_control_restarts_total", "reason") == {("SIGKILL",): 1}
    assert abs(after.total("lb_start_time_seconds") - before.total("lb_start_time_seconds")) < 0.1


def test_a_failed_reload_shows(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    lb.wait_control()
    assert Scrape(lb).total("lb_config_last_reload_successful") == 1
    lb.reload()
    good = Scrape(lb).total("lb_config_last_reload_success_timestamp_seconds")
    lb.tables["route"][0]["pool"] = "nowhere"
    lb.reload(check=False)
    eventually(lambda: not Scrape(lb).total("lb_config_last_reload_successful"), "the failure is told")
    scrape = Scrape(lb)
    assert scrape.by("lb_config_reloads_total", "result") == {("success",): 1, ("failure",): 1}
    assert scrape.total("lb_config_last_reload_success_timestamp_seconds") == good
    lb.tables["route"][0]["pool"] = "main"


def test_promtool_has_nothing_to_say(balancer: StartBalancer, upstream: StartUpstream) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    lb = balancer(settings([upstream(ws.serve_echo).address]))
    lb.wait_control()
    with ws.connect(lb.address):
        fetch(lb.address, "/")
        text = probe(lb, "/metrics").body
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
