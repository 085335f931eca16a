"""lb status and lb reload, with the admin API and without."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lb.admin.views import AdmissionView, UpgradeView
from lb.cli import main
from lb.cli.show import report_of, status_text
from lb.master.report import Outcome, Reply, StatusReport
from tests.unit.admin_server import (
    AdminServer,
    pool_view,
    reload_view,
    server_view,
    status_view,
    worker_view,
)

Capture = pytest.CaptureFixture[str]


class CommandSocket:
    """A master's command socket that gives one reply to everybody."""

    def __init__(self, path: Path, reply: Reply) -> None:
        self.asked: list[dict[str, object]] = []
        self._reply = msgspec.json.encode(reply) + b"\n"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                line = connection.makefile("rb").readline()
                if not line:
                    return
                self.asked.append(json.loads(line))
                connection.sendall(self._reply)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._listener.getsockname())
        self._thread.join()
        self._listener.close()


def report(**changed: object) -> StatusReport:
    return msgspec.structs.replace(report_of(status_view(config="/nonexistent.toml")), **changed)


@pytest.fixture
def instance(socket_folder: str) -> Iterator[tuple[Path, CommandSocket, AdminServer]]:
    """The configuration, the command socket and the admin API of one instance, all in one folder."""
    folder = Path(socket_folder)
    config = folder / "lb.toml"
    config.write_text('process.pid_file = "lb.pid"\n')
    outcome = Outcome(ok=True, generation=9)
    command = CommandSocket(folder / "lb.command.sock", Reply(status=report(), outcome=outcome, pid=99))
    with AdminServer(folder / "lb.admin.sock") as server:
        server.says("GET status", status_view())
        yield config, command, server
    command.close()


Instance = tuple[Path, CommandSocket, AdminServer]


def test_both_sources_make_one_status(instance: Instance, capsys: Capture) -> None:
    config, _, _ = instance
    assert main(["status", "-c", str(config)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("OK: 2 of 2 workers serving")
    assert "web/10.0.0.2:80" in shown
    assert main(["status", "-c", str(config), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    first = status["workers"][0]
    assert (first["slot"], first["pid"], first["memory_bytes"], first["heartbeat_age"]) == (
        0,
        100,
        40 << 20,
        0.001,
    )
    assert (status["ready"], status["problems"], status["control_pid"]) == (True, [], 98)
    assert status["pools"][0]["servers"][0]["name"] == "10.0.0.1:80"
    assert "rejected_by_reason" in status["listeners"][0]
    assert status["reloads"]["succeeded"] == 0


def test_a_worker_that_was_replaced_between_the_looks_gets_no_foreign_figures(
    instance: Instance, capsys: Capture
) -> None:
    config, _, server = instance
    server.says("GET status", status_view(workers=(worker_view(0, pid=555), worker_view(1))))
    assert main(["status", "-c", str(config), "--json"]) == 0
    workers = json.loads(capsys.readouterr().out)["workers"]
    assert ["memory_bytes" in worker for worker in workers] == [False, True]


def test_without_the_control_process_the_rest_is_shown(instance: Instance, capsys: Capture) -> None:
    config, _, server = instance
    server.says("GET status", {"title": "Restarting", "status": 503}, 503)
    assert main(["status", "-c", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "! no figures of pools: Restarting (traffic is served without" in shown
    assert "0       100  serving" in shown
    assert main(["status", "-c", str(config), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["pools"], status["ready"]) == (None, None)
    assert "Restarting" in status["problems"][0]


def test_an_api_that_is_off_is_no_failure(instance: Instance, capsys: Capture) -> None:
    config, _, server = instance
    config.write_text('process.pid_file = "lb.pid"\nadmin.listen = "off"\n')
    assert main(["status", "-c", str(config)]) == 0
    assert "! no figures of pools: the admin API is switched off" in capsys.readouterr().out
    assert server.asked == []


def test_the_api_alone_is_enough(instance: Instance, capsys: Capture) -> None:
    _, command, server = instance
    assert main(["status", "--admin", server.address]) == 0
    assert capsys.readouterr().out.startswith("OK: 2 of 2")
    assert main(["status", "--admin", server.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"][1]["pid"] == 101
    assert command.asked == []


def test_what_is_wrong_comes_first() -> None:
    sick = status_view(problems=("pool web has no usable server\x1b[2J",))
    lines = status_text(report_of(sick), sick).splitlines()
    assert lines[0].startswith("DEGRADED: ")
    assert lines[2] == "! pool web has no usable server?[2J"
    unready = status_view(ready=False)
    assert status_text(report_of(unready), unready).startswith("NOT READY: ")


def test_a_failed_reload_is_told_once() -> None:
    last = reload_view(ok=False, error="lb.toml:7: unknown key")
    failed = status_view(problems=("the last reload failed: lb.toml:7: unknown key",), last_reload=last)
    assert status_text(report_of(failed), failed).count("unknown key") == 1
    last = reload_view(ok=False, error="lb.toml:7: unknown key\nlb.toml:9: another")
    failed = status_view(problems=("the last reload failed: lb.toml:7: unknown key",), last_reload=last)
    assert "lb.toml:9: another" in status_text(report_of(failed), failed)


def test_reload_takes_the_command_socket(instance: Instance, capsys: Capture) -> None:
    config, command, server = instance
    assert main(["reload", "-c", str(config)]) == 0
    assert "generation 9" in capsys.readouterr().out
    assert [asked["command"] for asked in command.asked] == ["reload"]
    assert server.asked == []


def test_reload_takes_the_api_when_it_is_named(instance: Instance, capsys: Capture) -> None:
    _, command, server = instance
    server.says("POST reload", reload_view(generation=4))
    assert main(["reload", "--admin", server.address]) == 0
    assert "generation 4 is served" in capsys.readouterr().out
    server.says("POST reload", reload_view(ok=False, error="why"))
    assert main(["reload", "--admin", server.address]) == 1
    assert capsys.readouterr().err.endswith("why\n")
    assert command.asked == []


# --- tunnels that moved ----------------------------------------------------------------------------------


def test_what_became_of_tunnels_is_told_once_there_is_something(instance: Instance, capsys: Capture) -> None:
    quiet = status_text(report(), status_view())
    assert "tunnels moved" not in quiet and "upgrades" not in quiet and "wait" not in quiet
    upgrade = UpgradeView(ok=True, before="0.9", after="1.0", error="", seconds=1.0, at=1000.0)
    admission = AdmissionView(rate=500.0, burst=1000, queue=5000, waiting=30, admitted=70, refused=1)
    pool = msgspec.structs.replace(pool_view(server_view()), admission=admission)
    moved = {"crash": {"ok": 40, "unproved": 1}, "rebalance": {"ok": 2}, "upgrade": {"ok": 0}}
    view = status_view(
        migrations=moved, upgrades_succeeded=3, upgrades_failed=2, last_upgrade=upgrade, pools=(pool,),
        keeper_restarts={"SIGKILL": 4}, workers=(worker_view(0, closing=5, keeper_pid=0), worker_view(1)),
    )  # fmt: skip
    _, _, server = instance
    server.says("GET status", view)
    assert main(["status", "--admin", server.address]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "tunnels moved: 42 (crash 40, rebalance 2), 1 lost" in shown
    assert "tunnels being closed: 5 wait for their turn" in shown
    assert "pool web: 30 WebSocket handshakes wait, 500 a second pass" in shown
    assert "keeper restarts: 4 SIGKILL" in shown
    assert any(line.startswith("upgrades: 3 done, 2 failed; last at ") for line in shown)
    start = next(index for index, line in enumerate(shown) if line.startswith("worker "))
    workers = [line.split() for line in shown[start : start + 3]]
    assert [(line[-4], line[-1]) for line in workers] == [("safe", "keeper"), ("1", "-"), ("1", "201")]


def test_json_has_the_migrations(instance: Instance, capsys: Capture) -> None:
    config, _, server = instance
    server.says("GET status", status_view(migrations={"crash": {"ok": 40}}))
    assert main(["status", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["migrations"] == {"crash": {"ok": 40}}
