"""Clients of the Node.js world: ws, and Socket.IO, which needs stickiness to work at all."""

from __future__ import annotations

import pytest

from tests.conftest import StartBalancer
from tests.harness.settings import settings
from tests.interop.conftest import RunNode, StartServer

pytestmark = pytest.mark.interop


def test_ws(balancer: StartBalancer, python_server: StartServer, node: RunNode) -> None:
    lb = balancer(settings([f"127.0.0.1:{python_server('python_server.py')}"]))
    results = node("ws_client.mjs", f"ws://127.0.0.1:{lb.port}/echo")["results"]
    assert len(results) == 20
    for result in results:
        assert result["protocol"] == "chat"
        assert "permessage-deflate" in result["extensions"]
        assert (result["echoed"], result["pongs"], result["code"]) == (7, 1, 1000)  # aiohttp answers 1000
    assert len(lb.wait_access(20, event="websocket_close", close_code=3001)) == 20


@pytest.mark.parametrize("sticky", ["cookie", "header"])
def test_socket_io_upgrades_every_time(
    sticky: str, balancer: StartBalancer, python_server: StartServer, node: RunNode
) -> None:
    """Two servers that share nothing, four workers: each client's polling and WebSocket must meet again."""
    servers = [f"127.0.0.1:{python_server('socketio_server.py', name)}" for name in ("one", "two")]
    stickiness = {"cookie": "lb"} if sticky == "cookie" else {"header": "X-Session"}
    lb = balancer(settings(servers, workers=4, pool={"sticky": stickiness}))
    results = node("socketio_client.mjs", f"http://127.0.0.1:{lb.port}", "40", sticky)["results"]
    assert [result for result in results if not result["ok"]] == []
    assert {result["server"] for result in results} == {"one", "two"}
    assert not [line for line in lb.access_lines() if line.get("status", 0) >= 400]
