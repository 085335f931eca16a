"""What does not survive a worker, and that it ends as the documentation says, with nothing left of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, RawClient, eventually
from tests.harness import websocket as ws
from tests.harness.certificates import Authority
from tests.harness.chaos import Ordeal
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

GOING_AWAY = 1012


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has issued a certificate."""
    made = Authority(tmp_path)
    made.issue("10-a.pem", "a.example")
    return made


def held(lb: LoadBalancer) -> list[int]:
    """Tunnels, and those of them that would outlive their worker."""
    workers = lb.status()["workers"]
    return [sum(int(worker[name]) for worker in workers) for name in ("tunnels", "tunnels_held")]


def open_tls(lb: LoadBalancer, authority: Authority) -> RawClient:
    """A WebSocket over TLS."""
    client = RawClient(lb.address, tls=authority.client_context(), server_name="a.example")
    ws.upgrade(client)
    return client


def test_tls_ends_with_its_worker_and_moves_politely_before_scaling(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    listen = {"tls": {"certs": [f"{tmp_path}/10-a.pem"]}}
    drain = {"spread": "0s", "close_code": GOING_AWAY, "hard_stop": "5s"}
    lb = balancer(settings([upstream(ws.serve_echo).address], workers=2, listen=listen, drain=drain))
    ordeal = Ordeal(lb)
    clients = [open_tls(lb, authority) for _ in range(12)]
    eventually(lambda: held(lb)[0] == 12, "all are counted")
    victims = {worker["slot"]: worker["tunnels"] for worker in ordeal.serving()}
    os.kill(int(ordeal.serving()[0]["pid"]), signal.SIGKILL)
    ordeal.wait_serving(2)
    eventually(lambda: held(lb) == [victims[1], 0], "those of the dead worker are gone, the others are not")
    lb.tables["process"]["workers"] = 1
    lb.reload()
    codes = [close_code(client) for client in clients]
    assert codes.count(GOING_AWAY) == victims[1]
    assert codes.count(None) == victims[0]
    for client in clients:
        client.close()
    lb.tables["process"]["workers"] = 2
    ordeal.assert_nothing_is_left()


def close_code(client: RawClient) -> int | None:
    """The code of the Close that waits for `client`; `None` where its connection broke."""
    try:
        frame = ws.read_frame(client)
    except (AssertionError, OSError):
        return None
    client.send(ws.close_frame(frame.close_code or 0, masked=True))
    return frame.close_code


def test_a_unix_socket_leg_ends_with_a_killed_worker_and_is_handed_over_by_one_that_leaves(
    balancer: StartBalancer, upstream: StartUpstream, socket_folder: str
) -> None:
    server = upstream(ws.serve_echo, path=f"{socket_folder}/up.sock")
    lb = balancer(settings([server.address], workers=2))
    ordeal = Ordeal(lb)
    clients = [ws.connect(lb.address) for _ in range(12)]
    eventually(lambda: held(lb)[0] == 12, "all are counted")
    ordeal.scale(1)
    for client in clients:
        client.send(ws.frame(b"moved", masked=True))
        assert ws.read_frame(client).payload == b"moved"
    assert held(lb) == [12, 0]
    ordeal.kill()
    assert [close_code(client) for client in clients] == [None] * 12
    for client in clients:
        client.close()
    ordeal.assert_nothing_is_left()
