"""Upgrade in place, and a configuration that the successor can't serve."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, RawClient, eventually, fetch, processes
from tests.harness.certificates import Authority
from tests.harness.ports import free_port
from tests.harness.releases import Releases
from tests.harness.settings import settings
from tests.scenario.test_upgrade import (
    begin,
    event,
    known_children,
    slow_successor,
    start,
    upgrade,
    wait_settled,
)

pytestmark = pytest.mark.scenario


def https(lb: LoadBalancer, authority: Authority) -> int:
    """The status of a request of the TLS listener."""
    with RawClient(lb.address, tls=authority.client_context(), server_name="a.example") as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n")
        return client.read_response().status


def test_what_becomes_wrong_after_the_trial_ends_nothing(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases, tmp_path: Path
) -> None:
    """File and certificate: what was served before still is, by new workers, with the master at its work."""
    authority = Authority(tmp_path)
    pem = authority.issue("1.pem", "a.example")
    lb = start(balancer, releases, settings([upstream().address], listen={"tls": {"certs": [str(pem)]}}))
    lb.wait_control()
    text, certificate, control = lb.file.read_text(), pem.read_bytes(), lb.status()["control_pid"]
    old = lb.worker_pids()
    slow_successor(releases)
    with begin(releases, lb) as asked:
        eventually(lambda: "executing the new release" in lb.stderr, "the master executes itself")
        lb.file.write_text("what?")
        pem.write_bytes(b"")
        os.kill(old[0], signal.SIGKILL)
        out, err = asked.communicate(timeout=60)
    assert asked.returncode == 1, out + err
    assert "2.0 has taken the place of 1.0, but it serves what was served before" in err
    assert str(lb.file) in err
    assert "the configuration can't be served, what was served before still is" in lb.stderr
    eventually(lambda: lb.status()["reloads"]["failed"] == 1, "it was tried again")
    wait_settled(lb)
    report = lb.status()
    assert (report["version"], report["state"], len(report["workers"])) == ("2.0", "serving", 2)
    assert not set(lb.worker_pids()) & set(old)
    assert https(lb, authority) == 200
    lb.wait_control(control)
    assert "serves what was served before" in event(lb, "upgrade-failed")["fields"]["error"]
    lb.file.write_text(text)
    pem.write_bytes(certificate)
    lb.reload()
    assert https(lb, authority) == 200
    # A worker that dies is replaced as ever.
    victim = lb.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in lb.worker_pids() and len(lb.worker_pids()) == 2, "it is replaced")
    wait_settled(lb)
    assert https(lb, authority) == 200


def test_a_listener_that_becomes_impossible_after_the_trial_ends_nothing(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases, socket_folder: str
) -> None:
    """It is there as soon as a reload can have it."""
    folder = Path(socket_folder, "deeper")
    folder.mkdir()
    lb = start(balancer, releases, settings([upstream().address]))
    lb.tables["listen"]["edge"] = {"bind": [f"unix:{folder}/edge.sock", f"127.0.0.1:{free_port()}"]}
    lb.write()
    slow_successor(releases)
    with begin(releases, lb) as asked:
        eventually(lambda: "executing the new release" in lb.stderr, "the master executes itself")
        folder.rmdir()
        out, err = asked.communicate(timeout=60)
    assert (asked.returncode, "can't listen on unix:" in err) == (1, True), out + err
    wait_settled(lb)
    assert fetch(lb.address).status == 200
    assert set(processes.children(lb.pid)) == known_children(lb.status())
    folder.mkdir()
    lb.reload()
    assert fetch(f"{folder}/edge.sock").status == 200


def test_addresses_that_can_not_be_had_are_found_by_the_trial(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    """Also one on a port that is listened on already: nobody of this machine has TEST-NET-1."""
    lb = start(balancer, releases, settings([upstream().address]))
    pids = lb.worker_pids()
    for address, why in (
        ("unix:/nonexistent/folder/x.sock", "no such file or directory"),
        (f"192.0.2.77:{lb.port}", "no interface of this machine has the address 192.0.2.77"),
    ):
        lb.tables["listen"]["edge"] = {"bind": [address]}
        lb.write()
        told = upgrade(lb, 1)
        assert "upgrade failed, nothing has changed" in told
        assert why in told
        assert lb.worker_pids() == pids
    assert fetch(lb.address).status == 200


def test_too_few_open_files_for_old_and_new_workers_are_found_by_the_trial(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = balancer(settings([upstream().address], workers=8), program=(releases.script,), file_limit=72)
    told = upgrade(lb, 1)
    assert "open files while old and new workers are there, and may have 72" in told
    lb.tables["process"]["workers"] = 1
    lb.write()
    assert "upgraded from 1.0 to 1.0" in upgrade(lb)
    wait_settled(lb)
