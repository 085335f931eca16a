"""Who is told of an upgrade, and who asks meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually
from tests.harness.releases import Releases, patch
from tests.harness.settings import settings
from tests.scenario.test_upgrade import start, upgrade, wait_settled

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


def test_who_asks_all_the_time_does_not_hold_it_up(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    """As a monitor that is out of its mind."""
    module = Path(releases.script).parents[1] / "lb" / "master" / "upgrade.py"
    patch(module, "REST_DEADLINE: Final = 15.0", "REST_DEADLINE: Final = 3.0")
    lb = start(balancer, releases, settings([upstream().address]))
    releases.install("2.0")
    over = threading.Event()

    def ask() -> int:
        count = 0
        while not over.is_set():
            assert lb.ask("status")["status"]["pid"] == lb.pid
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            told = upgrade(lb)
        finally:
            over.set()
        assert all(one.result(30) > 10 for one in asking)
    assert "upgraded from 1.0 to 2.0" in told
    wait_settled(lb)
