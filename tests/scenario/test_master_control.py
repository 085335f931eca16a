"""The control process comes, goes, hangs and is replaced, and the traffic never notices."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually, fetch, processes
from tests.harness import websocket as ws
from tests.harness.client import RawClient, request_bytes
from tests.harness.load import Background, HttpLoad
from tests.harness.settings import settings
from tests.harness.upstream import Connection, reply
from tests.scenario import master_harness
from tests.scenario.master_harness import Instance, children, flag

pytestmark = pytest.mark.scenario


@pytest.fixture
def instance(tmp_path: pathlib.Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    yield made
    made.clean_up()


def echo_target(connection: Connection) -> None:
    """Each request is answered with its target."""
    while (request := connection.read_request()) is not None:
        connection.send(reply(request.target.encode()))


def server_state(lb: LoadBalancer) -> tuple[str, int, int]:
    """What the operator wants of the only server, its weight, and the tunnels on it."""
    (server,) = lb.admin("pools/main")["servers"]
    return server["admin"], server["effective_weight"], server["tunnels"]


# --- the traffic goes on -------------------------------------------------------------------------------


def test_killed_under_load_it_comes_back_and_nothing_is_lost(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream(echo_target)
    lb = balancer(settings([server.address]))
    first = lb.wait_control()
    with Background() as background:
        load = HttpLoad(lb.port, connections=4, pause=0.001)
        running = asyncio.run_coroutine_threadsafe(load.run(), background.loop)
        eventually(lambda: load.done > 50, "traffic")
        os.kill(first, signal.SIGKILL)
        second = lb.wait_control(first)
        done = load.done
        eventually(lambda: load.done > done + 50, "traffic with its successor")
        background.loop.call_soon_threadsafe(load.stop)
        running.result(30)
    assert load.failures == []
    status = lb.status()
    assert status["control_restarts"] == {"SIGKILL": 1}
    assert status["restarts"] == {}
    assert fetch(lb.metrics_address, "/healthz").status == 200
    events = lb.admin("events/recent")
    assert [event["kind"] for event in events] == ["worker-serves", "worker-serves", "control-ended"]
    assert second != first


def test_what_the_operator_wants_outlives_it(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream(ws.serve_echo)
    lb = balancer(settings([server.address]))
    first = lb.wait_control()
    with ws.connect(lb.address) as tunnel:
        path = f"pools/main/servers/{server.address}"
        lb.admin(path, method="PATCH", body={"admin": "drain"})
        before = lb.admin("events/recent")
        os.kill(first, signal.SIGKILL)
        assert fetch(lb.address).status == 503  # the workers know without it
        lb.wait_control(first)
        assert server_state(lb)[0] == "drain"
        assert server_state(lb)[2] == 1
        after = lb.admin("events/recent")
        assert after[: len(before)] == before
        assert after[len(before)]["kind"] == "control-ended"
        tunnel.send(ws.frame(b"still there", masked=True))
        assert ws.read_frame(tunnel).payload == b"still there"
        lb.admin(path, method="PATCH", body={"admin": "ready"})
        eventually(lambda: fetch(lb.address).status == 200, "the server is used again")


def test_requests_to_the_admin_api_wait_for_its_successor(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream().address]))
    first = lb.wait_control()
    os.kill(first, signal.SIGKILL)
    assert lb.admin("status")["control_pid"] not in (0, first)


def test_wedged_it_is_replaced(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], process={"wedged_after": "1s"}))
    first = lb.wait_control()
    workers = lb.worker_pids()
    os.kill(first, signal.SIGSTOP)
    lb.wait_control(first)
    assert lb.status()["control_restarts"] == {"wedged": 1}
    assert "control process is wedged" in lb.stderr
    assert lb.worker_pids() == workers


def test_early_deaths_are_answered_slower_and_slower(instance: Instance) -> None:
    instance.start()
    before = instance.pids()
    with flag(instance, "crash-control"):
        master_harness.eventually(
            lambda: "the control process dies early, the next waits" in instance.errors, "the back-off"
        )
        assert instance.ask()["slot"] in (0, 1)
    pid = master_harness.eventually(lambda: steady_control(instance), "recovery")
    report = instance.status()
    assert report.control_restarts["exit-3"] >= 3
    assert (report.control_pid, report.restarts, instance.pids()) == (pid, {}, before)


def steady_control(instance: Instance) -> int:
    """The pid of a control process that lives longer than one that dies early."""
    pid = instance.status().control_pid
    started = f'event="control process started" pid={pid}'
    ended = f'event="control process ended" pid={pid} '
    time.sleep(0.2)  # between two looks
    return pid if pid and started in instance.errors and ended not in instance.errors else 0


def test_it_leaves_when_the_master_is_killed(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    control = lb.wait_control()
    os.kill(lb.pid, signal.SIGKILL)
    try:
        eventually(lambda: not processes.alive(control), "its end")
        assert 'component="control" event="control process leaves"' in lb.stderr
    finally:
        lb.stopped = True
        lb.kill()


# --- before the first fork -----------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "key"), [("metrics", "metrics.listen"), ("admin", "admin.listen")])
def test_an_address_in_use_is_told_before_anything_is_forked(
    instance: Instance, table: str, key: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        token = 'token_file = "token"\n' if table == "admin" else ""
        (instance.folder / "token").write_text("0123456789abcdef0123456789abcdef")
        (instance.folder / "token").chmod(0o600)
        instance.extra = f'[{table}]\nlisten = "127.0.0.1:{port}"\n{token}'
        assert instance.fail() == 3
    (line,) = instance.errors.splitlines()
    assert line.startswith(f"lb: {key}: can't listen on 127.0.0.1:{port}: the port is in use")
    left = {entry.name for entry in instance.folder.iterdir()}
    assert left == {"lb.toml", "stderr", "stdout", "token"}


def test_two_instances_of_one_admin_socket_are_refused(instance: Instance, tmp_path: pathlib.Path) -> None:
    instance.extra = f'[admin]\nlisten = "unix:{tmp_path}/a.sock"\n'
    instance.start()
    folder = tmp_path / "second"
    folder.mkdir()
    second = Instance(folder)
    second.extra = instance.extra
    assert second.fail() == 3
    assert "admin.listen: can't listen on unix:" in second.errors
    assert "another process listens there" in second.errors


def test_sockets_are_removed_at_the_end(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    path = pathlib.Path(lb.admin_path)
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    lb.stop()
    assert not path.exists()


def test_admin_off_and_no_metrics_still_have_a_control_process(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    tables = settings([upstream().address], admin={"listen": "off"})
    del tables["metrics"]
    lb = balancer(tables)
    control = lb.wait_control()
    assert not pathlib.Path(lb.admin_path).exists()
    assert sum(target.startswith("socket:") for target in lb.descriptors(control).values()) == 3


THREADS = """
import os, threading
from lb.master import spawn
spawn.preload()
print(threading.active_count(), len(os.listdir("/proc/self/task")))
"""


def test_what_is_imported_before_the_fork_starts_no_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=master_harness.ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("1 1\n", "")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")


@needs_root
def test_privileges_are_dropped(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(
        settings([upstream().address], process={"user": "nobody"}, access_log={"path": "off"}),
    )
    control = lb.wait_control()
    status = pathlib.Path(f"/proc/{control}/status").read_text()
    nobody = pwd.getpwnam("nobody")
    assert re.search(rf"^Uid:\s+{nobody.pw_uid}\s+{nobody.pw_uid}\s+{nobody.pw_uid}\s", status, re.MULTILINE)
    assert re.search(rf"^Gid:\s+{nobody.pw_gid}\s+{nobody.pw_gid}\s", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert pathlib.Path(lb.admin_path).stat().st_uid == 0
    assert lb.admin("status")["ready"] is True


def test_its_name_tells_it_apart(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    control = lb.wait_control()
    assert pathlib.Path(f"/proc/{control}/comm").read_text() == "lb-control\n"
    assert control in children(lb.pid)


# --- what passes through the master --------------------------------------------------------------------


def test_reloads_reach_it(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    lb.wait_control()
    lb.tables["pool"]["second"] = {"servers": [upstream().address]}
    lb.tables["route"].insert(0, {"name": "second", "path": "/second", "pool": "second"})
    lb.write()
    outcome = lb.admin("reload", method="POST", body={})
    assert (outcome["ok"], outcome["generation"]) == (True, 2)
    assert "second" in lb.admin("config")["text"]
    assert [pool["name"] for pool in lb.admin("pools")] == ["main", "second"]
    lb.file.write_text(lb.file.read_text() + "\n[nonsense]\n")
    refused = lb.admin("reload", method="POST", body={})
    assert (refused["ok"], refused["generation"]) == (False, 2)
    assert "nonsense" in refused["error"]
    kinds = [event["kind"] for event in lb.admin("events/recent")]
    assert kinds == ["worker-serves", "worker-serves", "reload", "reload-failed"]
    status = lb.admin("status")
    assert (status["reloads_succeeded"], status["reloads_failed"]) == (1, 1)


def test_a_worker_that_ends_is_told(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    lb.wait_control()
    old = lb.kill_worker(1)
    fresh = lb.wait_replaced(1, old)
    eventually(lambda: fresh in [worker["pid"] for worker in lb.admin("workers")], "the new worker is known")
    assert lb.admin("status")["restarts"] == {"SIGKILL": 1}
    (ended,) = [event for event in lb.admin("events/recent") if event["kind"] == "worker-ended"]
    assert ended["fields"] == {"slot": 1, "pid": old, "cause": "SIGKILL"}


def test_a_worker_that_dies_before_it_answers_is_missing(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream().address], process={"wedged_after": "1h"}))
    lb.wait_control()
    pid = lb.worker_pids()[1]
    os.kill(pid, signal.SIGSTOP)
    pages: list[Any] = []
    asking = threading.Thread(target=lambda: pages.append(lb.admin("tunnels")))
    asking.start()
    eventually(lambda: queued_for(pid), "the question")
    os.kill(pid, signal.SIGKILL)
    asking.join(30)
    assert pages[0]["missing"] == [1]


def queued_for(pid: int) -> bool:
    """Whether something waits in the stopped worker's channel: its socket of type SEQPACKET."""
    shown = subprocess.run(["ss", "-xpnH"], capture_output=True, text=True, timeout=10, check=True).stdout
    lines = [line.split() for line in shown.splitlines() if f"pid={pid}," in line]
    return any(fields[0] == "u_seq" and int(fields[2]) > 0 for fields in lines)


def test_found_servers_outlive_it_and_reloads(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: pathlib.Path
) -> None:
    servers = [upstream() for _ in range(2)]
    tables = settings([])
    found = tmp_path / "servers.json"
    found.write_text(listed(servers[0].address))
    tables["pool"]["main"] = {"discover": {"file": str(found), "refresh": "100ms"}}
    lb = balancer(tables)
    first = lb.wait_control()
    replace(found, listed(*(server.address for server in servers)))
    eventually(lambda: len(lb.admin("pools/main")["servers"]) == 2, "the second server")
    status = lb.status()
    assert status["reloads"]["succeeded"] == 0
    (event,) = [event for event in lb.admin("events/recent") if event["kind"] == "discovered"]
    assert event["text"] == f"main: {servers[1].address} is there"
    assert event["fields"]["generation"] == status["generation"]
    os.kill(first, signal.SIGKILL)
    lb.wait_control(first)
    assert lb.reload()["generation"] > status["generation"]
    assert len(lb.admin("pools/main")["servers"]) == 2


def test_what_workers_refuse_is_tried_again_with_the_next_discovery(instance: Instance) -> None:
    found = instance.folder / "servers.json"
    found.write_text(listed("127.0.0.1:8"))
    (instance.folder / "real-control").touch()
    instance.pool = 'discover = { file = "servers.json", refresh = "100ms" }'
    instance.start()
    with flag(instance, "refuse"):
        replace(found, listed("127.0.0.1:8", "127.0.0.1:10"))
        master_harness.eventually(
            lambda: "what was discovered can't be served" in instance.errors, "the refusal"
        )
        assert instance.status().generation == 1
    replace(found, listed("127.0.0.1:8", "127.0.0.1:11"))
    master_harness.eventually(lambda: instance.status().generation > 1, "the next one")
    assert 'event="changed" key="web: 127.0.0.1:11 is there"' in instance.errors
    assert instance.status().reloads.failed == 0


def replace(file: pathlib.Path, text: str) -> None:
    """Writes `file` as a whole or not at all."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def listed(*targets: str) -> str:
    """A file of servers."""
    return json.dumps([{"targets": targets}])


def test_listeners_of_events_do_not_hold_up_the_end(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    control = lb.wait_control()
    with RawClient(lb.admin_path) as client:
        client.send(request_bytes("/api/v1/events", host="localhost"))
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        lb.stop()
    assert f'event="control process left" pid={control} cause=exit-0' in lb.stderr


def test_a_stopped_one_does_not_hold_up_the_end(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    control = lb.wait_control()
    os.kill(control, signal.SIGSTOP)
    lb.stop(within=10)
    assert f'event="control process left" pid={control} cause=late' in lb.stderr
