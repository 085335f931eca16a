"""Upgrade in place: what is installed takes the place of what runs, and nothing ends by it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, eventually, fetch, processes, reply, websocket
from tests.harness.client import RawClient, request_bytes
from tests.harness.load import Backend, HttpLoad, WebSocketLoad
from tests.harness.ports import free_port
from tests.harness.releases import Releases, interpret, patch
from tests.harness.settings import Tables, settings
from tests.scenario.test_admin import listening
from tests.scenario.test_reload_load import backend, progressed

pytestmark = pytest.mark.scenario

UPGRADES = 5
TUNNELS = 20
Break = Callable[[Path, LoadBalancer], object]


def start(balancer: StartBalancer, releases: Releases, tables: Tables) -> LoadBalancer:
    return balancer(tables, program=(releases.script,))


def upgrade(lb: LoadBalancer, code: int = 0) -> str:
    """What `lb upgrade` prints."""
    done = lb.command("upgrade", "-c", str(lb.file), timeout=100)
    assert done.returncode == code, f"{done.stdout}{done.stderr}\n{lb.stderr}"
    return done.stdout + done.stderr


def wait_settled(lb: LoadBalancer) -> Counter[str]:
    """Waits until only workers that serve are left, with their keepers; what the master's descriptors are
    then, by kind."""

    def settled() -> bool:
        report = lb.status()
        states = {worker["state"] for worker in report["workers"]}
        return states == {"serving"} and set(processes.children(lb.pid)) == known_children(report)

    eventually(settled, "the old workers left")
    return Counter(target.partition(":")[0] for target in lb.descriptors(lb.pid).values())


def known_children(report: dict[str, Any]) -> set[int]:
    """The pids that the master tells of."""
    workers = report["workers"]
    pids = [worker[key] for worker in workers for key in ("pid", "keeper_pid")]
    return {*pids, report["control_pid"]}


def open_tunnels(lb: LoadBalancer, count: int = TUNNELS) -> list[RawClient]:
    return [websocket.connect(lb.address, f"/{number}") for number in range(count)]


def assert_echo(tunnels: list[RawClient], text: str) -> None:
    for number, tunnel in enumerate(tunnels):
        message = f"{number} {text}".encode()
        tunnel.send(websocket.frame(message, websocket.TEXT, masked=True))
        assert websocket.read_frame(tunnel).payload == message


def close(tunnels: list[RawClient]) -> None:
    for tunnel in tunnels:
        tunnel.close()


def metric(lb: LoadBalancer, name: str) -> float:
    """The sum of the samples that begin with `name`."""
    text = fetch(lb.metrics_address, "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def event(lb: LoadBalancer, kind: str) -> dict[str, Any]:
    """The first event of `kind` that the admin API still has."""
    with listening(lb) as stream:
        return stream.until(kind)


# --- it works ----------------------------------------------------------------------------------------------


def two_pools(made: Backend) -> Tables:
    """HTTP to one pool, WebSockets to another."""
    tables = settings([made.address], workers=2)
    tables["route"].insert(0, {"name": "ws", "path": "/ws", "pool": "ws"})
    tables["pool"]["ws"] = {"servers": [made.websocket_address]}
    return tables


def test_upgrades_under_load_lose_and_leak_nothing(balancer: StartBalancer, releases: Releases) -> None:
    with backend() as (background, made):
        lb = start(balancer, releases, two_pools(made))
        pid, descriptors = lb.pid, []
        http = HttpLoad(lb.port, connections=8, pause=0.002)
        tunnels = WebSocketLoad(f"ws://127.0.0.1:{lb.port}/ws", TUNNELS, pause=0.01)
        loads = (http, tunnels)
        running = [asyncio.run_coroutine_threadsafe(load.run(), background.loop) for load in loads]
        try:
            assert tunnels.all_open.wait(30)
            for number in range(UPGRADES):
                version = f"{number + 2}.0"
                releases.install(version)
                assert f"upgraded from {number + 1}.0 to {version}" in upgrade(lb)
                descriptors.append(wait_settled(lb))
                for load in loads:
                    eventually(partial(progressed, load, load.done), "the traffic goes on")
                report = lb.status()
                assert (report["version"], report["pid"], report["state"]) == (version, pid, "serving")
                assert [worker["slot"] for worker in report["workers"]] == ([2, 3], [0, 1])[number % 2]
                assert sum(worker["tunnels"] for worker in report["workers"]) == TUNNELS
        finally:
            for load in loads:
                background.loop.call_soon_threadsafe(load.stop)
            for future in running:
                future.result(30)
        assert http.failures == []
        assert tunnels.failures == []
        assert descriptors[0] == descriptors[-1], descriptors
        report = lb.status()
        assert report["upgrades"]["succeeded"] == UPGRADES
        assert report["restarts"] == {}
        lb.wait_control()
        requests = http.done + TUNNELS
        eventually(lambda: metric(lb, "lb_http_requests_total") == requests, "every request was counted")
        assert metric(lb, 'lb_upgrades_total{result="success"}') == UPGRADES
        assert metric(lb, "lb_websocket_tunnels{") == 0


def test_the_instance_stays_what_it_was(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases, socket_folder: str
) -> None:
    tables = settings([upstream().address])
    tables["listen"]["public"]["bind"].append(f"unix:{socket_folder}/edge.sock")
    lb = start(balancer, releases, tables)
    lb.wait_control()
    lb.reload()
    before = lb.status()
    arguments = Path(f"/proc/{lb.pid}/cmdline").read_bytes()
    releases.install("2.0")
    lb.send_signal(signal.SIGUSR2)
    eventually(lambda: lb.status()["version"] == "2.0", "the new release runs")
    wait_settled(lb)
    after = lb.status()
    assert after["uptime"] > before["uptime"]
    assert after["reloads"] == before["reloads"]
    assert after["generation"] > before["generation"]
    assert after["control_pid"] != before["control_pid"]
    assert Path(f"/proc/{lb.pid}/cmdline").read_bytes() == arguments
    assert fetch(f"{socket_folder}/edge.sock").status == 200
    # Another one still can't have its place.
    second = lb.command("run", "-c", str(lb.file))
    assert second.returncode == 3
    assert f"another lb (pid {lb.pid}) holds" in second.stderr
    # What happened before is not forgotten, and nothing of the upgrade is told to those who come after.
    lb.wait_control(before["control_pid"])
    assert event(lb, "reload")["fields"]["generation"] == before["generation"]
    assert event(lb, "upgrade")["fields"]["after"] == "2.0"
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes.children(lb.pid)}
    assert names == {"lb-worker-2", "lb-worker-3", "lb-keeper-2", "lb-keeper-3", "lb-control"}
    # The old socket files are taken away at the end, though another process has made them.
    lb.stop()
    assert list(Path(socket_folder).iterdir()) == []


def test_the_configuration_on_disk_comes_with_it_and_the_service_manager_is_told(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = start(balancer, releases, settings([upstream().address], workers=1))
    port = free_port()
    lb.tables["process"]["workers"] = 3
    lb.tables["listen"]["second"] = {"bind": [f"127.0.0.1:{port}"]}
    lb.write()
    environment = Path(f"/proc/{lb.pid}/environ").read_bytes().split(b"\0")
    path = next(line for line in environment if line.startswith(b"NOTIFY_SOCKET=")).partition(b"=")[2]
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        upgrade(lb)
        reloading, ready = manager.recv(4096).decode(), manager.recv(4096).decode()
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert ready.startswith(f"READY=1\nMAINPID={lb.pid}\nSTATUS=3 workers, listening on")
    wait_settled(lb)
    assert [worker["slot"] for worker in lb.status()["workers"]] == [1, 2, 3]
    assert fetch(("127.0.0.1", port)).status == 200
    assert fetch(lb.address).status == 200


def test_what_is_in_flight_ends_where_it_began(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    """Also when the next upgrade comes meanwhile."""
    arrived, answered = threading.Event(), threading.Event()

    def handler(connection: Connection) -> None:
        assert connection.read_request() is not None
        arrived.set()
        answered.wait(60)
        connection.send(reply(b"at last"))

    tables = settings([upstream(handler).address], drain={"hard_stop": "60s"})
    lb = start(balancer, releases, tables)
    with RawClient(lb.address) as client:
        client.send(request_bytes())
        assert arrived.wait(30)
        for _ in range(2):
            upgrade(lb)
        leaving = [worker for worker in lb.status()["workers"] if worker["state"] == "leaving"]
        assert [worker["connections"] for worker in leaving] == [1]
        answered.set()
        response = client.read_response()
    assert (response.text, response.header("connection")) == ("at last", "close")
    wait_settled(lb)


# --- what comes in between ---------------------------------------------------------------------------------

_SLOW = "import time; time.sleep(2)"


def slow_successor(releases: Releases) -> None:
    """Installs 2.0, whose master takes a while between its execution and its first look at its children."""
    module = releases.install("2.0") / "lb" / "master" / "upgrade_resume.py"
    text = "        self.state = state = unpack(packed)\n"
    patch(module, text, f"        {_SLOW}\n{text}")


def test_who_dies_in_between_is_noticed(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = start(balancer, releases, settings([upstream(websocket.serve_echo).address]))
    tunnels = open_tunnels(lb)
    try:
        assert_echo(tunnels, "before")
        eventually(lambda: sum(one["tunnels_held"] for one in lb.status()["workers"]) == TUNNELS, "all held")
        slow_successor(releases)
        victim = lb.worker_pids()[0]
        with begin(releases, lb) as asked:
            eventually(lambda: "executing the new release" in lb.stderr, "the master executes itself")
            os.kill(victim, signal.SIGKILL)
            os.kill(lb.pid, signal.SIGHUP)
            out, err = asked.communicate(timeout=60)
        assert asked.returncode == 0, out + err
        wait_settled(lb)
        assert lb.status()["restarts"] == {"SIGKILL": 1}
        assert_echo(tunnels, "after")
        eventually(lambda: lb.status()["reloads"]["succeeded"] == 1, "the SIGHUP was kept")
    finally:
        close(tunnels)


def begin(releases: Releases, lb: LoadBalancer) -> subprocess.Popen[str]:
    """`lb upgrade`, under way."""
    command = [releases.script, "upgrade", "-c", str(lb.file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_stop_in_between_is_obeyed(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = start(balancer, releases, settings([upstream().address]))
    slow_successor(releases)
    with begin(releases, lb) as asked:
        eventually(lambda: "executing the new release" in lb.stderr, "the master executes itself")
        lb.stop()
        out, err = asked.communicate(timeout=60)
    assert (asked.returncode, "lb is stopping" in err) == (1, True), out + err


def test_one_at_a_time(balancer: StartBalancer, upstream: StartUpstream, releases: Releases) -> None:
    lb = start(balancer, releases, settings([upstream().address]))
    module = releases.install("2.0") / "lb" / "master" / "upgrade_trial.py"
    patch(module, "    board = Scoreboard", f"    {_SLOW}\n    board = Scoreboard")
    with begin(releases, lb) as asked:
        eventually(lambda: lb.status()["state"] == "upgrading", "the upgrade goes on")
        assert "an upgrade goes on: try again when it is over" in upgrade(lb, 1)
        refused = lb.command("reload", "-c", str(lb.file))
        assert (refused.returncode, "an upgrade goes on" in refused.stderr) == (1, True)
        lb.send_signal(signal.SIGTTIN)
        eventually(lambda: 'reason="an upgrade goes on' in lb.stderr, "another worker is refused")
        out, err = asked.communicate(timeout=60)
    assert asked.returncode == 0, out + err
    lb.reload()


def test_a_stop_ends_it(balancer: StartBalancer, upstream: StartUpstream, releases: Releases) -> None:
    lb = start(balancer, releases, settings([upstream().address]))
    module = releases.install("2.0") / "lb" / "master" / "upgrade_trial.py"
    patch(module, "    board = Scoreboard", "    import time; time.sleep(15)\n    board = Scoreboard")
    with begin(releases, lb) as asked:
        eventually(lambda: len(processes.children(lb.pid)) == 6, "the trial runs")
        lb.stop()
        out, err = asked.communicate(timeout=60)
    assert (asked.returncode, "lb is stopping" in err) == (1, True), out + err


def test_the_old_workers_serve_until_new_ones_do(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    """A release that passes its trial and then can't keep its workers alive; the next one can."""
    lb = start(balancer, releases, settings([upstream(websocket.serve_echo).address]))
    tunnels = open_tunnels(lb, 4)
    try:
        old = lb.worker_pids()
        release = releases.install("2.0")
        patch(
            release / "lb" / "master" / "upgrade_resume.py", "DEADLINE: Final = 60.0", "DEADLINE: Final = 2.0"
        )
        patch(release / "workers" / "main.py", "    try:\n", "    if slot:\n        return 9\n    try:\n")
        told = upgrade(lb, 1)
        assert "2.0 has taken the place of 1.0, but the new workers did not get ready within 2s" in told
        assert "ended: exit-9" in told
        report = lb.status()
        assert (report["version"], report["state"]) == ("2.0", "serving")
        assert {worker["pid"] for worker in report["workers"] if worker["state"] == "serving"} == set(old)
        assert_echo(tunnels, "meanwhile")
        assert fetch(lb.address).status == 200
        releases.install("3.0")
        assert "upgraded from 2.0 to 3.0" in upgrade(lb)
        assert_echo(tunnels, "after")
        wait_settled(lb)
        assert not set(lb.worker_pids()) & set(old)
        assert_echo(tunnels, "settled")
    finally:
        close(tunnels)


# --- it does not work, and nothing has changed --------------------------------------------------------------


def no_syntax(release: Path, _lb: LoadBalancer) -> None:
    patch(release / "lb" / "cli" / "main.py", "def main(", "def main(:")


def no_module(release: Path, _lb: LoadBalancer) -> None:
    interpret(release)
    (release / "workers" / "core" / "heads.py").unlink()


def no_worker(release: Path, _lb: LoadBalancer) -> None:
    patch(
        release / "workers" / "main.py", "    try:\n", '    raise RuntimeError("no luck today")\n    try:\n'
    )


def no_loading(release: Path, _lb: LoadBalancer) -> None:
    module = release / "workers" / "io" / "worker.py"
    patch(module, "            prepared = Prepared(self,", "            prepared = Prepared(no_such_thing,")


def other_scoreboard(release: Path, _lb: LoadBalancer) -> None:
    module = release / "workers" / "contract" / "scoreboard.py"
    line = next(line for line in module.read_text().splitlines() if line.startswith("FORMAT"))
    patch(module, line + "\n", "FORMAT: Final = 999\n")


def other_state(release: Path, _lb: LoadBalancer) -> None:
    patch(release / "lb" / "master" / "upgrade_state.py", "FORMAT: Final = 1\n", "FORMAT: Final = 2\n")


def no_script(release: Path, _lb: LoadBalancer) -> None:
    (release / "bin" / "lb").unlink()


def no_interpreter(release: Path, _lb: LoadBalancer) -> None:
    (release / "bin" / "lb").write_text("#!/nowhere/python\n")


def wrong_file(_release: Path, lb: LoadBalancer) -> None:
    lb.file.write_text(lb.file.read_text() + "\n[surprise]\nkey = 1\n")


def only_by_restart(_release: Path, lb: LoadBalancer) -> None:
    lb.file.write_text(lb.file.read_text().replace("lb.pid", "other.pid"))


BROKEN: list[tuple[Break, str]] = [
    (no_syntax, "SyntaxError"),
    (no_module, "ModuleNotFoundError: No module named 'workers.core.heads'"),
    (no_worker, "a worker of the new release ends on its way up: RuntimeError: no luck today"),
    (no_loading, "a worker of the new release refuses the configuration: fault in the worker"),
    (other_scoreboard, "no scoreboard of format 999: upgrade by a restart"),
    (other_state, "has a state of format 1, this one reads 2: upgrade by a restart"),
    (no_script, "is not there any more"),
    (no_interpreter, "can't be executed: the interpreter that its first line names is not there"),
    (wrong_file, "surprise"),
    (only_by_restart, "process.pid_file"),
]


def test_broken_releases_change_nothing(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = start(balancer, releases, settings([upstream(websocket.serve_echo).address]))
    lb.faulty = True  # those of the trials
    lb.wait_control()
    tunnels = open_tunnels(lb, 4)
    try:
        wait_settled(lb)
        before, descriptors, text = lb.status(), lb.descriptors(lb.pid), lb.file.read_text()
        for number, (spoil, reason) in enumerate(BROKEN, 1):
            spoil(releases.install(f"broken-{number}"), lb)
            outcome = lb.ask("upgrade", timeout=60)["upgrade"]
            assert not outcome["ok"]
            assert not outcome["executed"]
            assert reason in outcome["error"], outcome["error"]
            lb.file.write_text(text)
            assert_echo(tunnels, f"after {number}")
            after = lb.status()
            assert after["upgrades"]["failed"] == number
            assert reason in after["upgrades"]["last"]["error"]
            for key in ("version", "generation", "state", "control_pid", "restarts"):
                assert after[key] == before[key], (spoil.__name__, key)
            pids = [worker["pid"] for worker in after["workers"]]
            assert pids == [worker["pid"] for worker in before["workers"]], spoil.__name__
            assert set(processes.children(lb.pid)) == known_children(after)
        assert lb.descriptors(lb.pid).keys() == descriptors.keys()
        assert metric(lb, 'lb_upgrades_total{result="failure"}') == len(BROKEN)
        assert "SyntaxError" in event(lb, "upgrade-failed")["fields"]["error"]
        wrong_file(Path(), lb)
        assert "upgrade failed, nothing has changed and 1.0 serves on" in upgrade(lb, 1)
    finally:
        close(tunnels)
