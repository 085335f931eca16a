"""Starting and ending: one clear line when it can't start, nothing left behind when it ends."""

from __future__ import annotations

import os
import pathlib
import pty
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest

from lb.cli.client import Unreachable, ask
from lb.master.report import Outcome, Request
from tests.harness.gauges import scoreboard_of
from tests.scenario.master_harness import ROOT, Instance, alive, children, eventually, flag

pytestmark = pytest.mark.scenario
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")


@pytest.fixture
def instance(tmp_path: pathlib.Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    yield made
    made.clean_up()


def assert_one_line(instance: Instance, *words: str) -> None:
    lines = instance.errors.splitlines()
    assert len(lines) == 1, instance.errors
    assert lines[0].startswith("lb: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert not (instance.folder / "lb.pid").exists()


# --- what keeps it from starting -----------------------------------------------------------------------


def test_a_port_of_another_process(instance: Instance) -> None:
    with socket.create_server(("127.0.0.1", instance.port)):
        assert instance.fail() == 3
    assert_one_line(instance, f"127.0.0.1:{instance.port}", "in use")


def test_a_port_of_another_lb_of_the_same_user(instance: Instance, tmp_path: pathlib.Path) -> None:
    instance.start()
    folder = tmp_path / "second"
    folder.mkdir()
    second = Instance(folder)
    second.binds = [f":{instance.port}"]  # another address, the same port
    try:
        assert second.fail() == 3
        assert_one_line(second, "in use")
    finally:
        second.clean_up()


def test_an_address_that_is_not_here(instance: Instance) -> None:
    instance.binds = ["192.0.2.1:8080"]
    assert instance.fail() == 3
    assert_one_line(instance, "192.0.2.1", "no interface")


@needs_root
def test_a_privileged_port_without_permission() -> None:
    python = shutil.which("setpriv")
    assert python is not None
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.chown(folder, 65534, 65534)
        instance = Instance(folder, prefix=[python, "--reuid=65534", "--regid=65534", "--clear-groups"])
        instance.binds = ["127.0.0.1:81"]
        try:
            assert instance.fail() == 3
            assert_one_line(instance, "127.0.0.1:81", "no permission", "CAP_NET_BIND_SERVICE")
        finally:
            instance.clean_up()


def test_a_user_that_does_not_exist(instance: Instance) -> None:
    instance.process_keys = {"user": "nobody-of-that-name"}
    assert instance.fail() == 3
    assert_one_line(instance, "process.user", "nobody-of-that-name")


def test_a_wrong_file_prints_every_error(instance: Instance) -> None:
    instance.process_keys = {"wrokers": 3, "shutdown_timeout": "soon"}
    assert instance.fail() == 1
    assert "did you mean" in instance.errors
    assert "process.shutdown_timeout" in instance.errors


def test_an_access_log_in_a_missing_folder(instance: Instance) -> None:
    instance.extra = '[access_log]\npath = "/nonexistent/access.log"'
    assert instance.fail() == 3
    assert_one_line(instance, "access_log.path", "/nonexistent/access.log")


def test_workers_that_crash_at_the_first_start(instance: Instance) -> None:
    with flag(instance, "crash"):
        assert instance.fail() == 4
    assert "lb: the workers can't start: " in instance.errors
    assert "exit-3" in instance.errors


def test_workers_that_refuse_the_first_configuration(instance: Instance) -> None:
    with flag(instance, "refuse"):
        assert instance.fail() == 4
    assert "told to refuse" in instance.errors


# --- pid file and sockets ------------------------------------------------------------------------------


def test_a_locked_pid_file_names_its_holder(instance: Instance, tmp_path: pathlib.Path) -> None:
    instance.start()
    folder = tmp_path / "second"
    folder.mkdir()
    second = Instance(folder)
    second.process_keys = {"pid_file": str(tmp_path / "lb.pid")}
    try:
        assert second.fail() == 3
        assert f"another lb (pid {instance.pid})" in second.errors
    finally:
        second.clean_up()
    assert (tmp_path / "lb.pid").read_text() == f"{instance.pid}\n"


def test_what_a_killed_master_left_is_taken_over(instance: Instance) -> None:
    instance.binds.append(f"unix:{instance.folder}/front.sock")
    instance.start()
    workers = instance.pids().values()
    instance.signal(signal.SIGKILL)
    instance.wait()
    eventually(lambda: not any(map(alive, workers)), "the orphans' end")
    assert (instance.folder / "lb.pid").exists()
    instance.start()
    assert (instance.folder / "lb.pid").read_text() == f"{instance.pid}\n"


def test_a_served_unix_socket_is_not_taken(instance: Instance) -> None:
    path = str(instance.folder / "front.sock")
    instance.binds = [f"unix:{path}"]
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        foreign.listen()
        assert instance.fail() == 3
        assert_one_line(instance, path, "another process listens there")
        assert os.path.exists(path)


def test_a_plain_file_is_not_replaced_by_a_socket(instance: Instance) -> None:
    path = instance.folder / "front.sock"
    path.write_text("precious")
    instance.binds = [f"unix:{path}"]
    assert instance.fail() == 3
    assert_one_line(instance, "no socket")
    assert path.read_text() == "precious"


# --- the end -------------------------------------------------------------------------------------------


def test_a_graceful_stop_leaves_nothing(instance: Instance) -> None:
    instance.binds.append(f"unix:{instance.folder}/front.sock")
    instance.start()
    workers = instance.pids().values()
    instance.signal(signal.SIGTERM)
    assert instance.wait() == 0
    assert not any(map(alive, workers))
    left = {entry.name for entry in instance.folder.iterdir()}
    assert left == {"lb.toml", "stderr", "stdout"}


def test_the_stop_command_waits_for_the_end(instance: Instance) -> None:
    instance.start()
    assert ask(Request(command="stop"), instance.config, None).pid == instance.pid
    assert instance.wait() == 0
    with pytest.raises(Unreachable):
        ask(Request(command="status"), instance.config, None)


def test_a_second_signal_stops_at_once(instance: Instance) -> None:
    instance.process_keys = {"wedged_after": "1h", "shutdown_timeout": "1h"}
    instance.start()
    stuck = instance.pids()[0]
    os.kill(stuck, signal.SIGSTOP)
    instance.signal(signal.SIGTERM)
    eventually(lambda: "worker left" in instance.errors, "the other worker's end")
    assert not instance.exited
    instance.signal(signal.SIGTERM)
    assert instance.wait() == 0
    assert not alive(stuck)


def test_stragglers_are_killed_after_the_shutdown_timeout(instance: Instance) -> None:
    instance.process_keys = {"wedged_after": "1h", "shutdown_timeout": "100ms"}
    instance.start()
    os.kill(instance.pids()[0], signal.SIGSTOP)
    instance.signal(signal.SIGTERM)
    assert instance.wait() == 0
    assert "cause=late" in instance.errors


def test_a_reload_during_the_first_start_waits_for_it(instance: Instance) -> None:
    with flag(instance, "late"):
        instance.write()
        instance.launch()
        eventually(lambda: (instance.folder / "lb.command.sock").exists(), "the command socket")
        assert instance.status().state == "starting"
        eventually(lambda: len(children(instance.pid)) == 5, "workers, keepers and control")
        instance.signal(signal.SIGHUP)
    eventually(lambda: instance.status().reloads.succeeded == 1, "the reload")
    assert instance.status().restarts == {}


def test_workers_that_do_not_run_yet_are_counted(instance: Instance) -> None:
    """Or the first that serves would take the part of all of what is shared."""
    with flag(instance, "late"):
        instance.write()
        instance.launch()
        eventually(lambda: (instance.folder / "lb.command.sock").exists(), "the command socket")
        eventually(lambda: len(children(instance.pid)) == 5, "workers, keepers and control")
        assert [slab.used for slab in scoreboard_of(instance.pid).slabs()[:3]] == [True, True, False]


def test_a_stop_during_the_first_start_ends_it(instance: Instance) -> None:
    with flag(instance, "late"):
        instance.write()
        instance.launch()
        eventually(lambda: (instance.folder / "lb.command.sock").exists(), "the command socket")
        eventually(lambda: len(children(instance.pid)) == 5, "workers, keepers and control")
        instance.signal(signal.SIGTERM)
        instance.signal(signal.SIGINT)
        assert instance.wait() == 0
    assert not (instance.folder / "lb.pid").exists()


def test_a_stop_ends_a_reload_and_tells_its_caller(instance: Instance) -> None:
    instance.process_keys = {"wedged_after": "1h", "shutdown_timeout": "0s"}
    instance.start()
    os.kill(instance.pids()[0], signal.SIGSTOP)
    outcomes: list[Outcome] = []
    caller = threading.Thread(target=lambda: outcomes.append(instance.reload()))
    caller.start()
    eventually(lambda: instance.status().state == "reloading", "the reload")
    instance.signal(signal.SIGTERM)
    caller.join()
    assert instance.wait() == 0
    assert (outcomes[0].ok, outcomes[0].error) == (False, "lb is stopping")


def test_control_c_in_a_terminal_ends_everything_in_order(instance: Instance) -> None:
    instance.write()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "tests.scenario.standin", str(instance.config)])
    shown = b""
    try:
        while b"ready: " not in shown or b"control process started" not in shown:
            shown += os.read(terminal, 4096)
        started = children(pid)
        assert len(started) == 5  # workers, keepers and control
        os.write(terminal, b"\x03")
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:
            pass  # EIO: everybody has closed the terminal
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not any(map(alive, started))
    assert shown.count(b"cause=exit-0") == 5
    assert b"Traceback" not in shown


# --- systemd -------------------------------------------------------------------------------------------


def test_systemd_is_told(instance: Instance) -> None:
    path = str(instance.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        instance.start({"NOTIFY_SOCKET": path})
        assert manager.recv(4096).startswith(b"READY=1\nMAINPID=%d\n" % instance.pid)
        assert instance.reload().ok
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(4096).startswith(b"READY=1\n")
        instance.signal(signal.SIGTERM)
        assert manager.recv(4096) == b"STOPPING=1"
    assert instance.wait() == 0
