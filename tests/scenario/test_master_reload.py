"""Reload in place: all workers or none, and never at a connection's cost."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import pathlib
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.scenario.master_harness import Instance, answer, eventually, flag, free_port, queued

pytestmark = pytest.mark.scenario


@pytest.fixture
def instance(tmp_path: pathlib.Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    yield made
    made.clean_up()


def test_a_reload_replaces_no_worker_and_says_what_changed(instance: Instance) -> None:
    instance.start()
    before = instance.pids()
    instance.process_keys = {"shutdown_timeout": "5s"}
    instance.write()
    outcome = instance.reload()
    assert outcome.ok, outcome
    assert outcome.generation == 2
    assert len(outcome.changes) == 1
    assert "process.shutdown_timeout" in outcome.changes[0]
    assert instance.pids() == before
    assert {worker.generation for worker in instance.status().workers} == {2}


def test_a_broken_file_keeps_the_old_configuration(instance: Instance) -> None:
    instance.start()
    instance.config.write_text('[process]\npid_file = "lb.pid"\nworkers = "many"\n')
    outcome = instance.reload()
    assert not outcome.ok
    assert "process.workers" in outcome.error
    assert instance.ask()["generation"] == 1
    report = instance.status()
    assert (report.reloads.succeeded, report.reloads.failed) == (0, 1)
    assert report.state == "serving"


def test_a_broken_toml_still_finds_the_instance(instance: Instance) -> None:
    instance.start()
    instance.config.write_text('[process]\npid_file = "lb.pid"\nworkers = \n')
    assert "lb.toml:3" in instance.reload().error


def test_a_key_that_needs_a_restart_is_refused_by_name(instance: Instance) -> None:
    instance.start()
    instance.process_keys = {"user": "root"}
    instance.write()
    outcome = instance.reload()
    assert not outcome.ok
    assert "process.user" in outcome.error
    assert instance.ask()["generation"] == 1


def test_what_one_worker_refuses_nobody_serves(instance: Instance) -> None:
    instance.start()
    with flag(instance, "refuse"):
        outcome = instance.reload()
    assert not outcome.ok
    assert "told to refuse" in outcome.error
    assert {worker.generation for worker in instance.status().workers} == {1}
    assert instance.reload().ok


def test_a_worker_that_dies_preparing_aborts_the_reload(instance: Instance) -> None:
    instance.start()
    with flag(instance, "crash-prepare"):
        outcome = instance.reload()
    assert not outcome.ok
    assert "SIGSEGV while preparing" in outcome.error
    eventually(lambda: len(instance.pids()) == 2, "the successor under the old configuration")
    assert {worker.generation for worker in instance.status().workers} == {1}
    assert instance.reload().ok


def test_a_worker_that_stands_still_aborts_the_reload(instance: Instance) -> None:
    instance.process_keys = {"wedged_after": "60s"}
    instance.start()
    stopped = instance.pids()[1]
    added = free_port()
    instance.binds.append(f"127.0.0.1:{added}")
    instance.write()
    os.kill(stopped, signal.SIGSTOP)
    outcome = instance.reload()
    os.kill(stopped, signal.SIGCONT)
    assert not outcome.ok
    assert f"worker 1 (pid {stopped})" in outcome.error
    assert {worker.generation for worker in instance.status().workers} == {1}
    with pytest.raises(ConnectionRefusedError):
        instance.ask(added)
    # Its late answer belongs to the attempt that failed, not to this one.
    outcome = instance.reload()
    assert outcome.ok
    assert instance.ask(added)["generation"] == outcome.generation


def test_a_successor_comes_up_under_the_new_configuration(instance: Instance) -> None:
    instance.start()
    outcome = instance.reload()
    os.kill(instance.pids()[0], signal.SIGKILL)
    eventually(lambda: instance.status().restarts and len(instance.pids()) == 2, "a successor")
    assert {worker.generation for worker in instance.status().workers} == {outcome.generation}


def test_requests_during_a_reload_are_one_more(instance: Instance) -> None:
    instance.process_keys = {"wedged_after": "60s"}
    instance.start()
    with contextlib.ExitStack() as stack:
        stopped = instance.pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        first = stack.enter_context(asked(instance))
        eventually(lambda: instance.status().state == "reloading", "the reload")
        callers = [stack.enter_context(asked(instance)) for _ in range(5)]
        for _ in range(3):
            instance.signal(signal.SIGHUP)
            assert instance.status().state == "reloading"
        os.kill(stopped, signal.SIGCONT)
        outcomes = [answer(caller)["outcome"] for caller in (first, *callers)]
    assert all(outcome["ok"] for outcome in outcomes)
    assert [outcome["generation"] for outcome in outcomes] == [2, 3, 3, 3, 3, 3]
    assert instance.status().reloads.succeeded == 2


def asked(instance: Instance) -> socket.socket:
    """A connection to the command socket that has asked for a reload."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{instance.folder}/lb.command.sock")
    connection.sendall(b'{"command": "reload"}\n')
    return connection


def test_listeners_come_and_go(instance: Instance) -> None:
    instance.start()
    added = free_port()
    removed = instance.port
    instance.binds = [f"127.0.0.1:{added}", f"unix:{instance.folder}/front.sock"]
    instance.write()
    # What waits on the removed address is served, not reset.
    with flag(instance, "slow"), queued(removed, 10) as connections:
        assert instance.reload().ok
        (instance.folder / "slow").unlink()
        assert all(connection.recv(1) for connection in connections)
    with pytest.raises(ConnectionRefusedError):
        instance.ask(removed)
    assert instance.ask(added)["generation"] == 2
    with socket.socket(socket.AF_UNIX) as front:
        front.connect(f"{instance.folder}/front.sock")
    instance.binds = [f"127.0.0.1:{added}"]
    instance.write()
    assert instance.reload().ok
    assert not (instance.folder / "front.sock").exists()


def test_an_address_in_use_aborts_the_reload(instance: Instance) -> None:
    instance.start()
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        other = free_port()
        instance.binds += [f"127.0.0.1:{other}", f"127.0.0.1:{foreign.getsockname()[1]}"]
        instance.write()
        outcome = instance.reload()
    assert not outcome.ok
    assert "in use" in outcome.error
    with pytest.raises(ConnectionRefusedError):
        instance.ask(other)
    assert instance.reload().ok


def test_any_address_replaces_a_specific_one_on_the_same_port(instance: Instance) -> None:
    instance.start()
    instance.binds = [f":{instance.port}"]
    instance.write()
    outcome = instance.reload()
    assert outcome.ok, outcome
    with socket.create_connection(("::1", instance.port), 5) as connection:
        assert connection.recv(1)
    assert instance.ask()["generation"] == 2


def has_workers(instance: Instance, count: int) -> bool:
    return len(instance.status().workers) == count


def test_the_number_of_workers_changes_without_a_reset(instance: Instance) -> None:
    instance.start()
    for count in (4, 1, 3):
        instance.workers = count
        instance.write()
        with flag(instance, "slow"), queued(instance.port) as connections:
            outcome = instance.reload()
            assert outcome.ok, outcome
            (instance.folder / "slow").unlink()
            assert all(connection.recv(1) for connection in connections)
        eventually(functools.partial(has_workers, instance, count), "the others' end")
    assert instance.status().restarts == {}


def test_a_hundred_reloads_leak_nothing(instance: Instance) -> None:
    instance.start()
    assert instance.reload().ok
    watched = [instance.pid, *instance.pids().values()]

    def held() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in watched]

    before = held()
    for index in range(100):
        instance.binds = instance.binds[:1] if index % 2 else [*instance.binds, f"127.0.0.1:{free_port()}"]
        instance.write()
        outcome = instance.reload()
        assert outcome.ok, outcome
    # Before may count the connection of the command just served.
    eventually(lambda: all(map(operator.le, held(), before)), f"descriptors as {before}: {held()}")
    assert [instance.pid, *instance.pids().values()] == watched


def test_logs_are_reopened(instance: Instance) -> None:
    log = instance.folder / "access.log"
    instance.extra = f'[access_log]\npath = "{log}"'
    instance.start()
    instance.ask()
    eventually(lambda: log.read_text() == "answered\n", "a line")
    log.rename(instance.folder / "access.log.1")
    instance.signal(signal.SIGUSR1)
    eventually(lambda: "logs reopened" in instance.errors and log.exists(), "the new file")
    for _ in range(8):
        instance.ask()
    eventually(lambda: log.read_text() == "answered\n" * 8, "lines in the new file")
    assert (instance.folder / "access.log.1").read_text() == "answered\n"


def test_a_log_that_cant_be_reopened_is_kept(instance: Instance) -> None:
    folder = instance.folder / "logs"
    folder.mkdir()
    instance.extra = f'[access_log]\npath = "{folder}/access.log"'
    instance.start()
    folder.rename(instance.folder / "moved")
    instance.signal(signal.SIGUSR1)
    eventually(lambda: "access log can't be reopened" in instance.errors, "the error")
    instance.ask()
    eventually(lambda: (instance.folder / "moved/access.log").read_text() == "answered\n", "the old file")
