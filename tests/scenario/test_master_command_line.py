"""The installed command over the real workers: run, status, reload and stop, as a person types them."""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.scenario.master_harness import ROOT, Instance, children, eventually, free_port

pytestmark = pytest.mark.scenario

SERVES = 'event="control process serves"'


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers every GET."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made.server_port
        made.shutdown()
        thread.join()


@pytest.fixture
def instance(tmp_path: pathlib.Path, server: int) -> Iterator[Instance]:
    made = Instance(tmp_path)
    made.server = f"127.0.0.1:{server}"
    made.arguments = ("-X", "importtime", "-m", "lb", "run", "-c")
    yield made
    made.clean_up()


def lb(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lb", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


def get(instance: Instance) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{instance.port}/", timeout=10) as response:
        body: bytes = response.read()
        return body


def test_run_status_reload_and_stop(instance: Instance) -> None:
    instance.start()
    config = str(instance.config)
    assert get(instance) == b"hello"
    eventually(lambda: SERVES in instance.errors, "the control process, which comes last")
    report = eventually(lambda: _requests(config), "the request on the scoreboard")
    workers = {worker["pid"] for worker in report["workers"]}
    keepers = {worker["keeper_pid"] for worker in report["workers"]}
    assert {*workers, *keepers, report["control_pid"]} == children(instance.pid)
    assert lb("status", "-c", config).stdout.startswith("OK: 2 of 2 workers serving")

    instance.process_keys = {"shutdown_timeout": "5s"}
    instance.write()
    done = lb("reload", "-c", config)
    assert done.returncode == 0, done.stderr
    assert "process.shutdown_timeout" in done.stdout
    instance.config.write_text('[process]\npid_file = "lb.pid"\n[nonsense]\n')
    refused = lb("reload", "--admin", f"unix:{instance.folder}/lb.command.sock")
    assert refused.returncode == 1
    assert "nonsense" in refused.stderr
    assert json.loads(lb("reload", "--json", "-c", config).stdout)["ok"] is False
    assert get(instance) == b"hello"

    stopped = lb("stop", "-c", config)
    assert stopped.stdout == f"lb (pid {instance.pid}) has stopped\n"
    assert instance.wait() == 0


def _requests(config: str) -> dict[str, Any] | None:
    report: dict[str, Any] = json.loads(lb("status", "--json", "-c", config).stdout)
    return report if sum(worker["requests"] for worker in report["workers"]) == 1 else None


def test_another_configuration_is_not_mistaken_for_it(instance: Instance) -> None:
    instance.start()
    other = instance.folder / "other.toml"
    other.write_text(instance.config.read_text())
    refused = lb("reload", "-c", str(other))
    assert refused.returncode == 1
    assert f"runs on {instance.config}" in refused.stderr


def test_children_hold_nothing_but_their_own(instance: Instance) -> None:
    instance.binds.append(f"unix:{instance.folder}/front.sock")
    instance.extra = f'[metrics]\nlisten = "127.0.0.1:{free_port()}"\n'
    instance.start()
    eventually(lambda: "control process serves" in instance.errors, "the control process")
    status = instance.status()
    keepers = {worker.keeper_pid for worker in status.workers}
    for pid in children(instance.pid):
        held = Counter(re.sub(r"\[\d+\]", "", target) for target in _targets(pid))
        assert held.pop("/dev/null") == 1  # stdin
        assert held.pop(str(instance.error_path)) == 1
        # mmap keeps a duplicate per mapping: an area has three.
        assert held.pop("/memfd:lb-ledger (deleted)", 0) == (4 if pid != status.control_pid else 0)
        assert held.pop("/memfd:lb-scoreboard (deleted)", 0) == (pid not in keepers)
        assert held.pop("anon_inode:[eventpoll]", 0) == (pid not in keepers)
        if pid in keepers:
            assert held.pop(str(instance.output_path)) == 1
            assert held.pop("socket:") == 2  # channel and worker
        elif pid == status.control_pid:
            assert held.pop(str(instance.output_path)) == 1
            assert held.pop("anon_inode:[eventfd]") == 2  # both bells
            # Channel, metrics, admin, and the pair that wakes the event loop.
            assert held.pop("socket:") == 5
        else:
            assert held.pop(str(instance.output_path)) == 2  # stdout, the access log
            assert held.pop("anon_inode:[eventfd]") == 3  # both bells, and what wakes the event loop
            # Channel, keeper, this slot's TCP listener and the shared Unix one.
            assert held.pop("socket:") == 4
        assert not held


def _targets(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]


def test_nothing_is_imported_after_the_start(instance: Instance) -> None:
    """A new version on disk must not find its way into a running load balancer piece by piece."""
    instance.start()
    eventually(lambda: SERVES in instance.errors, "the control process, which comes last")
    assert get(instance) == b"hello"
    assert instance.reload().ok
    instance.config.write_text('[process]\npid_file = "lb.pid"\nworkrs = 3\n')
    assert not instance.reload().ok
    assert get(instance) == b"hello"
    before, _, after = instance.errors.partition(SERVES)
    assert "import time:" in before
    assert "import time:" not in after
