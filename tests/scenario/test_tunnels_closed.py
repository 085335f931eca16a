"""Tunnels that the operator closes: a Close frame to both ends, between two frames, and then the end."""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, fetch, open_clients, reply
from tests.harness import websocket as ws
from tests.harness.admin import UnixConnection
from tests.harness.certificates import Authority
from tests.harness.ports import free_port
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


class Thinker:
    """A server that answers our Close when it is told to, and notes how its connection ends then. What is no
    WebSocket is answered at once."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.closes: queue.Queue[ws.Frame] = queue.Queue()
        self.ends: queue.Queue[bytes | OSError] = queue.Queue()

    def __call__(self, connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        if not head.get("upgrade"):
            connection.send(reply())
            return
        ws.accept(connection, head)
        try:
            self.closes.put(frame := ws.read_frame(connection))
            self.go_on.wait(20)
            connection.send(ws.frame(frame.payload, ws.CLOSE))
            self.ends.put(connection.receive())
        except OSError as error:
            self.ends.put(error)


@pytest.mark.parametrize("how", ["TLS without close_notify", "reset"])
def test_how_a_client_goes_after_its_close_is_nothing_to_the_server(
    how: str, balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pem = authority.issue("1.pem", "test.example")
    server = Thinker()
    plain = {"bind": [f"127.0.0.1:{free_port()}"]}
    secure = {**plain, "bind": [f"127.0.0.1:{free_port()}"], "tls": {"certs": [str(pem)]}}
    tables = settings([upstream(server).address], workers=1)
    tables["listen"] = {"public": plain, "secure": secure}
    lb = balancer(tables)
    lb.wait_control()
    if how == "reset":
        client = ws.connect(lb.address)
    else:
        client = RawClient(
            lb.address_of("secure"), tls=authority.client_context(), server_name="test.example"
        )
        ws.upgrade(client)
    with client:
        assert close_all(lb, code=1012) == 1
        assert ws.read_frame(client).close_code == 1012
        assert server.closes.get(timeout=20).close_code == 1012
        client.send(ws.close_frame(1012, masked=True))
        if how == "reset":
            client.reset()
        else:
            os.close(client.socket.detach())
    # The worker has seen how the client went, since it came before this.
    assert fetch(lb.address).status == 200
    server.go_on.set()
    assert server.ends.get(timeout=20) == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is gone")


@pytest.mark.parametrize("who", ["client", "server"])
def test_who_resets_instead_of_an_answer_does_not_spoil_it_for_the_other(
    who: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    ends: queue.Queue[bytes | OSError] = queue.Queue()
    go_on = threading.Event()

    def told(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        if not head.get("upgrade"):
            connection.send(reply())
            return
        ws.accept(connection, head)
        assert ws.read_frame(connection).close_code == 1012
        if who == "server":
            connection.reset()
            go_on.set()
            return
        go_on.wait(20)
        try:
            connection.send(ws.close_frame(1012))
            ends.put(connection.receive())
        except OSError as error:
            ends.put(error)

    lb = balancer(settings([upstream(told).address], workers=1))
    lb.wait_control()
    with ws.connect(lb.address) as client:
        close_all(lb, code=1012)
        assert ws.read_frame(client).close_code == 1012
        if who == "client":
            client.reset()
            assert fetch(lb.address).status == 200  # the worker has seen it
            go_on.set()
            assert ends.get(timeout=20) == b""
        else:
            assert go_on.wait(20)
            assert fetch(lb.address).status == 200  # the worker has seen it
            client.send(ws.close_frame(1012, masked=True))
            assert client.read_to_end() == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is gone")


@pytest.mark.parametrize("before", [b"", ws.frame(bytes(50), masked=True)], ids=["alone", "behind data"])
def test_a_close_under_way_is_passed_on_whole(
    before: bytes, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb, server = started(balancer, upstream)
    payload = (1000).to_bytes(2, "big") + b"goodbye, with a long reason"
    whole = before + ws.frame(payload, ws.CLOSE, masked=True)
    with ws.connect(lb.address) as client:
        # The code is there already where there is nothing before it.
        client.send(whole[:10])
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["client_bytes"] == 10, "it passed")
        assert close_all(lb, code=1012) == 1
        assert ws.read_frame(client).close_code == 1012
        client.send(whole[10:])
        frame = server.frames.get(timeout=10)
        if before:
            assert frame.payload == bytes(50)
            frame = server.frames.get(timeout=10)
            assert frame.close_code == 1012  # ours goes between the two
        else:
            assert frame.payload == payload
        assert client.read_to_end() == b""
    eventually(lambda: tunnels(lb) == 0, "the tunnel is gone")


def test_a_close_in_pieces_goes_to_a_server_that_has_said_its_own(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    go_on = threading.Event()
    closes: queue.Queue[ws.Frame] = queue.Queue()

    def close_first(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        go_on.wait(20)
        connection.send(ws.close_frame(1001))
        closes.put(ws.read_frame(connection))

    lb = balancer(settings([upstream(close_first).address], workers=1))
    lb.wait_control()
    payload = (1000).to_bytes(2, "big") + b"goodbye, with a long reason"
    whole = ws.frame(payload, ws.CLOSE, masked=True)
    with ws.connect(lb.address) as client:
        client.send(whole[:7])  # without its code
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["client_bytes"] == 7, "it passed")
        assert close_all(lb) == 1
        go_on.set()
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["server_bytes"] == 4, "it closes, too")
        client.send(whole[7:10])
        eventually(lambda: ask(lb, "GET", "tunnels")["tunnels"][0]["client_bytes"] == 10, "it passed")
        client.send(whole[10:])
        assert closes.get(timeout=10).payload == payload


def test_a_page_holds_what_fits_whatever_the_names(balancer: StartBalancer, upstream: StartUpstream) -> None:
    name = "n" * 64
    server = {"name": "s" * 130, "address": upstream(ws.serve_echo).address}
    tables = settings([server], workers=1)
    tables["pool"] = {name: tables["pool"]["main"]}
    tables["route"] = [{"name": "r" * 64, "pool": name}]
    lb = balancer(tables)
    lb.wait_control()
    with open_clients(lb.address, 110) as clients:
        for client in clients:
            client.send(ws.handshake_bytes("/" + "p" * 119, host=f"{'h' * 60}.{'h' * 58}")[0])
        for client in clients:
            assert client.read_response().status == 101
        ids: list[str] = []
        cursor = ""
        while not ids or cursor:
            page = ask(lb, "GET", f"tunnels?limit=100&cursor={cursor}")
            assert (page["total"], page["missing"]) == (110, [])
            ids += [tunnel["id"] for tunnel in page["tunnels"]]
            cursor = page["cursor"]
        assert len(ids) == len(set(ids)) == 110
