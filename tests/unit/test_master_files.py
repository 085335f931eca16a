"""Pid file, sealed memfds, and the descriptors that a deployment hands on."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from lb.master import plan as plans
from lb.master.deployment import DeployError, Deployment, sealed
from lb.master.failures import StartError
from lb.master.listeners import Served
from lb.master.notify import Notifier
from lb.master.pidfile import PidFile
from lb.master.plan import Plan
from workers.contract.messages import (
    MAX_FDS,
    AccessLogFd,
    Attach,
    CertificateFd,
    FdRole,
    ListenerFd,
    Prepare,
    SnapshotFd,
)

CONFIG = """
[process]
workers = 2
[listen.public]
bind = ["127.0.0.1:8080"]
[access_log]
path = "{log}"
[[route]]
name = "all"
pool = "web"
[pool.web]
servers = ["127.0.0.1:9"]
"""


def test_a_pid_file_is_locked_and_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run" / "lb.pid"
    held = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(StartError, match=rf"another lb \(pid {os.getpid()}\)"):
        PidFile(path)
    held.close()
    assert not path.exists()


def test_a_stale_pid_file_is_taken_over(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lb.pid"
    path.write_text("1234567890123\n")
    held = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    held.close()


def test_a_pid_file_that_was_replaced_is_left_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lb.pid"
    held = PidFile(path)
    path.unlink()
    path.write_text("1\n")
    held.close()
    assert path.read_text() == "1\n"


def test_a_pid_file_that_cant_be_written_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="can't be written"):
        PidFile(tmp_path / "file" / "lb.pid")


def test_what_is_sealed_cant_be_changed() -> None:
    fd = sealed("test", b"content" * 1000)
    try:
        assert os.pread(fd, 7, 0) == b"content"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def make_plan(folder: pathlib.Path, log: str = "off") -> Plan:
    path = folder / "lb.toml"
    path.write_text(CONFIG.format(log=log))
    return plans.first(path)


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_descriptors_than_a_message_takes_travel_in_parts(
    tmp_path: pathlib.Path, descriptors: None
) -> None:
    plan = make_plan(tmp_path, str(tmp_path / "access.log"))
    many = {("public", f"certificate-{number}"): b"PEM" for number in range(300)}
    plan = dataclasses.replace(plan, certificates=many)
    deployment = Deployment(plan)
    with socket.socket() as listening:
        envelopes = list(deployment.envelopes([Served("127.0.0.1:8080", 1, listening)]))
    deployment.close()
    assert [type(envelope.message) for envelope in envelopes] == [Attach, Attach, Attach, Prepare]
    roles: list[FdRole] = []
    for message, fds in envelopes:
        assert isinstance(message, Attach | Prepare)
        assert len(message.roles) == len(fds) <= MAX_FDS
        roles += message.roles
    assert roles[0] == SnapshotFd()
    assert roles[-2:] == [ListenerFd(listener="public", address="127.0.0.1:8080", home=1), AccessLogFd()]
    assert sum(isinstance(role, CertificateFd) for role in roles) == 300
    assert (tmp_path / "access.log").stat().st_mode & 0o777 == 0o640


def test_a_log_that_cant_be_opened_leaves_nothing_open(tmp_path: pathlib.Path, descriptors: None) -> None:
    with pytest.raises(DeployError, match=r"access_log\.path: /nonexistent/access\.log"):
        Deployment(make_plan(tmp_path, "/nonexistent/access.log"))


def test_a_pipe_that_nobody_reads_does_not_stop_the_master(tmp_path: pathlib.Path, descriptors: None) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeployError, match="can't be opened"):
        Deployment(make_plan(tmp_path, str(tmp_path / "pipe")))


def test_an_unreachable_systemd_is_reported(tmp_path: pathlib.Path) -> None:
    errors: list[OSError] = []
    Notifier(str(tmp_path / "nobody"), errors.append).ready("text")
    assert len(errors) == 1


def test_an_abstract_systemd_socket_is_found() -> None:
    name = f"lb-test-{os.getpid()}"
    errors: list[OSError] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        Notifier(f"@{name}", errors.append).stopping()
        assert manager.recv(64) == b"STOPPING=1"
    assert errors == []
