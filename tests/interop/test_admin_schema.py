"""The admin API against its own OpenAPI description, by schemathesis: what the description allows is served,
what it does not is refused, and every answer is one that it names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lb.admin.operations import OPERATIONS, PREFIX
from lb.master.report import Outcome, WorkerReport
from tests.harness.admin import AdminServer
from tests.harness.control import StandInControl
from workers.contract.messages import Tunnels, TunnelsClosed
from workers.contract.snapshot import PoolSpec, RouteSpec, ServerSpec, Snapshot

pytestmark = pytest.mark.interop

TOKEN = "secret"
SNAPSHOT = Snapshot(
    generation=1,
    routes=(RouteSpec(slot=0, owner=1, name="chat", pool="chat"),),
    pools=(
        PoolSpec(
            owner=1,
            name="chat",
            servers=(ServerSpec(slot=0, owner=1, name="10.0.0.11:9000", host="10.0.0.11", port=9000),),
        ),
    ),
)
EXAMPLES = 15  # for each operation and phase
# 422 for what is allowed by the schema, because a schema can't say it: that a reason has at most 123 *bytes*,
# and that at least one condition must say something.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "422"]
"""


@pytest.fixture
def admin(socket_folder: str) -> Iterator[AdminServer]:
    with StandInControl(SNAPSHOT) as control:
        worker = WorkerReport(
            slot=0, pid=1, state="serving", uptime=1.0, generation=1, connections=0, tunnels=0, accepted=0,
            requests=0, heartbeat_age=0.0, listening_sockets=1,
        )  # fmt: skip
        control.status = msgspec.structs.replace(control.status, workers=(worker,), workers_wanted=1)
        control.spec = msgspec.structs.replace(control.spec, admin_token=TOKEN)
        control.outcome = Outcome(ok=True, generation=1)
        control.tunnels[0] = Tunnels(request=0, tunnels=(), total=0, more=False)
        control.closed[0] = TunnelsClosed(request=0, count=0)
        with AdminServer(control, socket_folder) as server:
            yield server


def test_the_api_is_what_its_description_says(admin: AdminServer, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        f"--config-file={tmp_path / 'schemathesis.toml'}", "run",
        f"http://127.0.0.1:{admin.port}{PREFIX}/openapi.json",
        "--header", f"Authorization: Bearer {TOKEN}",
        "--exclude-operation-id=events",  # it never ends; test_admin_events has it
        f"--max-examples={EXAMPLES}", "--generation-deterministic",
        "--mode=all", "--phases=examples,coverage,fuzzing", "--no-color", "--request-timeout=10",
    ]  # fmt: skip
    assert shutil.which(command[0]), "pip install -e .[test]"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # All but the event stream, and the description itself, which schemathesis has read.
    assert f"{len(OPERATIONS) - 2} selected" in done.stdout, done.stdout
