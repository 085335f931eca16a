"""Tunnels that the operator closes: a Close frame to both ends, between two frames, and then the end."""

from __future__ import annotations

import json
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually
from tests.harness import websocket as ws
from tests.harness.admin import UnixConnection
from tests.harness.certificates import Authority
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


def ask(lb: LoadBalancer, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer of the admin API."""
    connection = UnixConnection(lb.admin_path)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(
            method, f"/api/v1/{path}", data, {"Content-Type": "application/json"} if data else {}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 200, answer
    return answer


def close_all(lb: LoadBalancer, **how: Any) -> int:
    return int(ask(lb, "POST", "tunnels/close", {"all": True, **how})["count"])


def tunnels(lb: LoadBalancer) -> int:
    return sum(worker["tunnels"] for worker in lb.status()["workers"])


class Recorder:
    """A server whose tunnels put every frame that they read into `frames`; a Close is answered in kind."""

    def __init__(self) -> None:
        self.frames: queue.Queue[ws.Frame] = queue.Queue()
        self.masked: list[bool] = []

    def __call__(self, connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        while True:
            frame = ws.read_frame(connection)
            self.frames.put(frame)
            if frame.opcode == ws.CLOSE:
                connection.send(ws.frame(frame.payload, ws.CLOSE))
                connection.wait_closed()
                return


def started(
    balancer: StartBalancer, upstream: StartUpstream, **options: Any
) -> tuple[LoadBalancer, Recorder]:
    recorder = Recorder()
    lb = balancer(settings([upstream(recorder).address], workers=1, **options))
    lb.wait_control()
    return lb, recorder


def test_both_ends_are_told_the_code_and_the_reason(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb, server = started(balancer, upstream)
    with ws.connect(lb.address) as client:
        assert close_all(lb, code=1012, reason="restart") == 1
        told = ws.read_frame(client)
        assert (told.opcode, told.close_code, told.payload[2:]) == (ws.CLOSE, 1012, b"restart")
        assert server.frames.get(timeout=20).payload == told.payload
        client.send(ws.close_frame(1012, masked=True))
        assert client.read_to_end() == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is gone")
    lines = eventually(
        lambda: [json.loads(one) for one in lb.access_file.read_text().splitlines()][1:], "a line"
    )
    last = lines[-1]
    assert (last["close_code"], last["closed_by"]) == (1012, "lb")


def test_a_frame_under_way_is_completed_first(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb, server = started(balancer, upstream)
    payload = bytes(300_000)
    whole = ws.frame(payload, masked=True)
    with ws.connect(lb.address) as client:
        client.send(whole[:100_001])
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["client_bytes"] == 100_001, "it passed")
        assert close_all(lb) == 1
        assert ws.read_frame(client).close_code == 1001
        # The rest of the frame, and one that comes too late.
        client.send(whole[100_001:] + ws.frame(b"late", masked=True) + ws.close_frame(1001, masked=True))
        assert server.frames.get(timeout=20).payload == payload
        assert server.frames.get(timeout=20).close_code == 1001
        assert client.read_to_end() == b""
    assert server.frames.empty()


def test_under_traffic_both_ends_see_whole_frames_and_then_the_close(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    sent = threading.Event()

    def chatter(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        reader = threading.Thread(target=read_to_close, args=(connection, got))
        reader.start()
        talk(connection.send, masked=False, over=over)
        reader.join()
        sent.set()

    got: list[int | None] = []
    over = threading.Event()
    lb = balancer(settings([upstream(chatter).address], workers=1))
    lb.wait_control()
    with ws.connect(lb.address) as client:
        seen: list[int | None] = []
        reader = threading.Thread(target=read_to_close, args=(client, seen))
        reader.start()
        talker = threading.Thread(target=talk, args=(client.send,), kwargs={"masked": True, "over": over})
        talker.start()
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["client_messages"] > 50, "messages pass")
        assert close_all(lb, code=4000) == 1
        reader.join(20)
        over.set()
        talker.join(20)
        assert sent.wait(20)
    assert seen == [4000]
    assert got == [4000]


def talk(send: Any, *, masked: bool, over: threading.Event) -> None:
    """Sends messages until `over`, or until nobody takes them any more."""
    message = ws.frame(bytes(3000), masked=masked)
    while not over.is_set():
        try:
            send(message)
        except OSError:
            return


def read_to_close(reader: ws.Reader, codes: list[int | None]) -> None:
    """Reads whole frames; notes the code of the Close that must be the last."""
    while True:
        frame = ws.read_frame(reader)
        if frame.opcode == ws.CLOSE:
            codes.append(frame.close_code)
            return
        assert frame.payload == bytes(3000)


def test_who_never_answers_is_closed_all_the_same(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb, _ = started(balancer, upstream)
    with ws.connect(lb.address) as client:
        close_all(lb)
        assert ws.read_frame(client).close_code == 1001
        assert client.read_to_end() == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is gone")


def test_without_inspection_it_just_ends(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb, _ = started(balancer, upstream, route={"websocket": {"inspect": False}})
    with ws.connect(lb.address) as client:
        assert ask(lb, "GET", "tunnels")["tunnels"][0]["client_messages"] == -1
        close_all(lb)
        assert client.read_to_end() == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is gone")


def test_a_tls_tunnel_is_told_too(balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pem = authority.issue("1.pem", "test.example")
    lb, server = started(balancer, upstream, listen={"tls": {"certs": [str(pem)]}})
    payload = bytes(100_000)
    whole = ws.frame(payload, masked=True)
    with RawClient(lb.address, tls=authority.client_context(), server_name="test.example") as client:
        ws.upgrade(client)
        client.send(whole[:30_000])
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["client_bytes"] == 30_000, "it passed")
        close_all(lb, code=1012)
        assert ws.read_frame(client).close_code == 1012
        client.send(whole[30_000:] + ws.close_frame(1012, masked=True))
        assert server.frames.get(timeout=20).payload == payload
        assert server.frames.get(timeout=20).close_code == 1012
        assert client.read_to_end() == b""


def test_only_those_that_match_are_closed(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb, _ = started(balancer, upstream)
    with ws.connect(lb.address, "/one") as one, ws.connect(lb.address, "/two") as two:
        listed = {tunnel["path"]: tunnel for tunnel in ask(lb, "GET", "tunnels")["tunnels"]}
        assert set(listed) == {"/one", "/two"}
        answer = ask(lb, "POST", "tunnels/close", {"ids": [listed["/one"]["id"]], "code": 3001})
        assert answer["count"] == 1
        assert ws.read_frame(one).close_code == 3001
        one.send(ws.close_frame(3001, masked=True))
        assert one.read_to_end() == b""
        left = ask(lb, "GET", "tunnels")
        assert [tunnel["path"] for tunnel in left["tunnels"]] == ["/two"]
        two.send(ws.frame(b"still here", masked=True))
        two.send(ws.close_frame(1000, masked=True))
        assert ws.read_frame(two).close_code == 1000
