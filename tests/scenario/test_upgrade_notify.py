"""What a service manager is told of an upgrade."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually
from tests.harness.releases import Releases
from tests.harness.settings import settings
from tests.scenario.test_upgrade import start, wait_settled

pytestmark = pytest.mark.scenario


def manager(lb: LoadBalancer) -> socket.socket:
    """The socket that `lb` tells of itself."""
    environment = Path(f"/proc/{lb.pid}/environ").read_bytes().split(b"\0")
    path = next(line for line in environment if line.startswith(b"NOTIFY_SOCKET=")).partition(b"=")[2]
    os.unlink(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(path)
    bound.settimeout(20)
    return bound


def test_a_reload_that_ends_in_an_upgrade_does_not_end_it(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = start(balancer, releases, settings([upstream().address]))
    releases.install("2.0")
    slow = lb.worker_pids()[0]
    with manager(lb) as told:
        os.kill(slow, signal.SIGSTOP)
        lb.send_signal(signal.SIGHUP)
        said = [told.recv(4096).partition(b"\n")[0]]
        lb.send_signal(signal.SIGUSR2)
        said.append(told.recv(4096).partition(b"\n")[0])
        os.kill(slow, signal.SIGCONT)
        eventually(lambda: 'event="upgraded"' in lb.stderr, "the upgrade is over")
        said.append(told.recv(4096).partition(b"\n")[0])
        told.settimeout(0.3)
        with pytest.raises(TimeoutError):
            told.recv(4096)
    assert said == [b"RELOADING=1", b"RELOADING=1", b"READY=1"]
    report = lb.status()
    assert (report["version"], report["reloads"]["succeeded"]) == ("2.0", 1)
    wait_settled(lb)
