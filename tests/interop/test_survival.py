"""The npm package ws at one end and the library websockets at the other notice nothing of killed workers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartBalancer
from tests.harness.chaos import Ordeal
from tests.harness.load import Backend, Background
from tests.harness.settings import settings
from tests.interop.conftest import HERE, program

pytestmark = pytest.mark.interop

TUNNELS = 12


def test_ws_notices_nothing_of_killed_workers(balancer: StartBalancer, tmp_path: Path) -> None:
    if not (HERE / "node_modules").is_dir():
        pytest.skip("tests/interop/node_modules is absent; run npm install there, as .ci/run does")
    with Background() as background:
        made = Backend()
        serving = made.serving()
        background.run(serving.__aenter__())
        try:
            lb = balancer(settings([made.websocket_address], workers=2))
            seen = steady(Ordeal(lb), f"ws://127.0.0.1:{lb.port}/")
        finally:
            background.run(serving.__aexit__(None, None, None))
    assert len(seen) == TUNNELS
    for one in seen:
        assert (one["wrong"], one["code"]) == (0, 1000)
        assert one["sent"] == one["echoed"] > 5


def steady(ordeal: Ordeal, url: str) -> list[dict[str, int]]:
    """What the clients saw while workers were killed."""
    command = [program("node"), str(HERE / "ws_steady.mjs"), url, str(TUNNELS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdout is not None
        assert clients.stdout.readline() == "open\n"
        for _ in range(3):
            ordeal.wait_held(TUNNELS)
            ordeal.kill()
        ordeal.wait_held(TUNNELS)
        said, _ = clients.communicate(timeout=30)
    results: list[dict[str, int]] = json.loads(said)["results"]
    return results
