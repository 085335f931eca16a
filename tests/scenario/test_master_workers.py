"""Workers that die, hang, come and go: nothing that a client queued is lost."""

from __future__ import annotations

import functools
import os
import pathlib
import pwd
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from lb.master.reload import MAX_TRIES
from lb.master.signals import CONTROL
from tests.scenario.master_harness import Instance, alive, answer, eventually, flag, queued

pytestmark = pytest.mark.scenario


def is_after(instance: Instance, generation: int) -> bool:
    report = instance.status()
    return report.generation > generation and report.state == "serving"


@pytest.fixture
def instance(tmp_path: pathlib.Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    yield made
    made.clean_up()


def inodes(pid: int, slot_port: int) -> set[str]:
    """Inodes of the sockets of `pid` that listen on the port."""
    listening = set()
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{slot_port:04X}") and fields[3] == "0A":
            listening.add(f"socket:[{fields[9]}]")
    held = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
    return listening & held


def test_a_killed_worker_is_replaced_and_its_queue_is_served(instance: Instance) -> None:
    instance.start()
    before = instance.pids()
    sockets = inodes(before[1], instance.port)
    assert len(sockets) == 1
    with flag(instance, "slow"), queued(instance.port) as connections:
        os.kill(before[1], signal.SIGKILL)
        eventually(lambda: pids_differ(instance, before, 1), "a successor")
        (instance.folder / "slow").unlink()
        slots = {answer(connection)["slot"] for connection in connections}
    assert slots == {0, 1}
    after = instance.pids()
    assert after[0] == before[0]
    assert inodes(after[1], instance.port) == sockets
    assert instance.status().restarts == {"SIGKILL": 1}


def pids_differ(instance: Instance, before: dict[int, int], slot: int) -> bool:
    return instance.pids().get(slot, before[slot]) != before[slot]


def test_early_deaths_are_answered_slower_and_slower(instance: Instance) -> None:
    instance.start()
    with flag(instance, "crash"):
        os.kill(instance.pids()[0], signal.SIGKILL)
        eventually(lambda: "workers die early" in instance.errors, "the back-off")
    eventually(lambda: len(instance.pids()) == 2, "recovery")
    assert instance.status().restarts["exit-3"] >= 2


def test_one_worker_fewer_resets_no_queued_connection(instance: Instance) -> None:
    instance.workers = 3
    instance.start()
    before = instance.pids()
    # It stands still, so it can't serve its queue before it leaves: its sibling has to.
    os.kill(before[2], signal.SIGSTOP)
    with flag(instance, "slow"), queued(instance.port) as connections:
        instance.signal(signal.SIGTTOU)
        eventually(lambda: instance.status().workers_wanted == 2, "two workers")
        (instance.folder / "slow").unlink()
        slots = {answer(connection)["slot"] for connection in connections}
    assert slots == {0, 1}
    os.kill(before[2], signal.SIGCONT)
    eventually(lambda: not alive(before[2]), "the retired worker's end")
    assert instance.status().restarts == {}


def test_one_worker_more_takes_a_share(instance: Instance) -> None:
    instance.start()
    before = instance.pids()
    instance.signal(signal.SIGTTIN)
    eventually(lambda: len(instance.pids()) == 3, "three workers")
    assert instance.pids().items() > before.items()
    eventually(lambda: instance.ask()["slot"] == 2, "an answer of the new one")


def test_one_worker_more_comes_though_another_dies_over_it(instance: Instance) -> None:
    instance.start()
    with flag(instance, "crash-once"):
        instance.signal(signal.SIGTTIN)
        eventually(lambda: len(instance.pids()) == 3, "three workers")
    report = instance.status()
    assert report.restarts == {"SIGSEGV": 1}
    assert (report.reloads.succeeded, report.reloads.failed) == (1, 0)
    assert "a change of the workers is tried again" in instance.errors


def test_one_worker_more_is_given_up_after_a_few_tries(instance: Instance) -> None:
    instance.start({"PREPARE_DEADLINE": "0.3"})
    before = instance.pids()
    os.kill(before[0], signal.SIGSTOP)
    instance.signal(signal.SIGTTIN)
    eventually(lambda: instance.status().reloads.failed == 1, "the end of it")
    os.kill(before[0], signal.SIGCONT)
    assert instance.errors.count("is tried again") == MAX_TRIES - 1
    last = instance.status().reloads.last
    assert last is not None and f"tried {MAX_TRIES} times, given up" in last.error
    eventually(lambda: heard(instance, 0), "what it missed")
    instance.signal(signal.SIGTTIN)
    eventually(lambda: len(instance.pids()) == 3, "three workers")
    assert instance.pids().items() > before.items()


def heard(instance: Instance, slot: int) -> bool:
    """Whether the worker goes on."""
    return next(one for one in instance.status().workers if one.slot == slot).heartbeat_age < 0.1


def test_workers_that_come_back_get_the_retired_sockets(instance: Instance) -> None:
    instance.start()
    with flag(instance, "slow"), queued(instance.port) as connections:
        for number in (signal.SIGTTOU, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTIN):
            before = instance.status().generation
            instance.signal(number)
            eventually(functools.partial(is_after, instance, before), "the change")
        (instance.folder / "slow").unlink()
        assert len([answer(connection) for connection in connections]) == 40
    listening = {inode for pid in instance.pids().values() for inode in inodes(pid, instance.port)}
    assert len(listening) == 2


def test_the_last_worker_stays(instance: Instance) -> None:
    instance.workers = 1
    instance.start()
    instance.signal(signal.SIGTTOU)
    eventually(lambda: "the number of workers stays" in instance.errors, "the refusal")
    assert len(instance.pids()) == 1


def test_a_wedged_worker_is_killed_as_wedged(instance: Instance) -> None:
    instance.process_keys = {"wedged_after": "1s"}
    instance.start()
    before = instance.pids()
    os.kill(before[0], signal.SIGSTOP)
    eventually(lambda: pids_differ(instance, before, 0), "a successor")
    assert instance.status().restarts == {"wedged": 1}
    assert "worker is wedged" in instance.errors


def test_a_wedged_worker_dumps_its_stacks(instance: Instance) -> None:
    instance.workers = 1  # two that dump at the same time write into each other's lines
    instance.process_keys = {"wedged_after": "1s"}
    instance.start()
    before = instance.pids()
    with flag(instance, "hang"):
        eventually(lambda: instance.pids() != before or hang(instance), "a successor", 15)
    assert 'standin.py", line' in instance.errors


def hang(instance: Instance) -> bool:
    """Whoever accepts this connection hangs; the answer never comes."""
    with socket.create_connection(("127.0.0.1", instance.port), 5):
        return False


def test_children_hold_nothing_but_their_own(instance: Instance) -> None:
    instance.binds.append(f"unix:{instance.folder}/front.sock")
    instance.start()
    os.kill(instance.pids()[1], signal.SIGKILL)
    eventually(lambda: instance.status().restarts and len(instance.pids()) == 2, "a successor")
    for pid in instance.pids().values():
        held = sorted(os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))
        kinds = sorted(re.sub(r"\[\d+\]", "", target) for target in held)
        expected = [
            "/dev/null",  # stdin
            "/memfd:lb-ledger (deleted)",
            "/memfd:lb-scoreboard (deleted)",
            "anon_inode:[eventfd]",  # the workers' bell
            "anon_inode:[eventfd]",  # the control process's
            "anon_inode:[eventpoll]",
            str(instance.error_path),
            str(instance.output_path),
            str(instance.output_path),  # the access log
            "socket:",  # the channel
            "socket:",  # the way to the keeper
            "socket:",  # TCP, this slot's alone
            "socket:",  # Unix, shared
        ]
        assert kinds == sorted(expected)


def test_workers_notice_that_the_master_died(instance: Instance) -> None:
    instance.start()
    workers = instance.pids().values()
    os.kill(instance.pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, workers)), "the orphans' end")


def test_signals_to_the_group_are_the_masters_alone(instance: Instance) -> None:
    instance.start()
    before = instance.pids()
    for pid in before.values():
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        ignored, caught = (
            int(re.findall(rf"{name}:\s+(\w+)", status)[0], 16) for name in ("SigIgn", "SigCgt")
        )
        assert all(ignored >> number - 1 & 1 for number in CONTROL)
        assert not caught >> signal.SIGCHLD - 1 & 1
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            os.kill(pid, number)
    assert instance.reload().ok
    assert instance.pids() == before


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")


@needs_root
def test_privileges_are_dropped_and_root_only_keys_still_work() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o711)  # for the stand-in, which looks for its flags there
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
            f" -addext subjectAltName=DNS:localhost -keyout {folder}/a.key -out {folder}/a.pem"
        )
        subprocess.run(command.split(), check=True, capture_output=True)
        (folder / "a.key").chmod(0o600)
        instance = Instance(folder)
        instance.process_keys = {"user": "nobody"}
        instance.extra = f'tls = {{ certs = ["a.pem"] }}\n[access_log]\npath = "{folder}/access.log"'
        try:
            instance.start()
            said = instance.ask()
            nobody = pwd.getpwnam("nobody")
            assert said["uid"] == nobody.pw_uid
            assert next(iter(said["certificates"].values())) > 500
            status = pathlib.Path(f"/proc/{said['pid']}/status").read_text()
            assert re.search(rf"^Gid:\s+{nobody.pw_gid}\s+{nobody.pw_gid}\s", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
            log = (folder / "access.log").stat()
            assert (log.st_uid, log.st_mode & 0o777) == (nobody.pw_uid, 0o640)
            eventually(lambda: (folder / "access.log").read_text() == "answered\n", "the log line")
        finally:
            instance.clean_up()
