"""Dead peers: both sides are pinged when they are silent, and closed when they don't answer."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually
from tests.harness import websocket as ws
from tests.harness.certificates import Authority
from tests.harness.figures import Scrape
from tests.harness.gauges import Gauges
from tests.harness.pinged import Server, Side
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

EVERY = "2s"  # so long may an answer of ours take, too, on a machine that has other things to do


def start(
    balancer: StartBalancer,
    upstream: StartUpstream,
    server: Any,
    every: str = EVERY,
    idle: str = "1h",
    **options: Any,
) -> LoadBalancer:
    route = {"websocket": {"ping": every, "idle": idle}}
    return balancer(settings([upstream(server).address], workers=1, route=route, **options))


def test_both_sides_of_an_idle_tunnel_are_pinged_and_neither_sees_the_others(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = Server()
    lb = start(balancer, upstream, server)
    lb.wait_control()
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True)
        behind = server.sides.get(timeout=20)
        eventually(lambda: min(len(client.pings), len(behind.pings)) >= 2, "pings come")
        assert len(set(client.pings + behind.pings)) == len(client.pings) + len(behind.pings)
        assert client.frames.empty() and behind.frames.empty()
        client.send(b"still here")
        assert behind.next().payload == b"still here"
        behind.send(b"so am I")
        assert client.next().payload == b"so am I"
        scrape = Scrape(lb)
        assert scrape.total("lb_websocket_ping_duration_seconds_count") >= 2
        assert 0 < scrape.total("lb_websocket_ping_duration_seconds_sum") < 10
        client.send((1000).to_bytes(2, "big"), ws.CLOSE)
        assert behind.next().close_code == 1000
        assert client.next().close_code == 1000
    Gauges(lb).wait_all_zero()
    line = lb.wait_access(event="websocket_close")[0]
    assert (line["close_code"], line["closed_by"]) == (1000, "client")
    assert scrape.total("lb_websocket_ping_timeouts_total") == 0


def test_pings_of_the_ends_pass_while_ours_are_awaited(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = Server()
    lb = start(balancer, upstream, server)
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True, answers=False)
        behind = server.sides.get(timeout=20)
        for number in (1, 2):
            eventually(lambda n=number: len(client.pings) >= n, "it is pinged")  # type: ignore[misc]
            # Before the answer: a message, its own ping, pongs that nobody asked for; all in one piece.
            pieces = [
                ws.frame(b"text", ws.TEXT, masked=True),
                ws.frame(b"ping", ws.PING, masked=True),
                ws.frame(b"", ws.PONG, masked=True),
                ws.frame(bytes(8), ws.PONG, masked=True),
                ws.frame(bytes(70_000), masked=True),
                ws.frame(client.pings[-1], ws.PONG, masked=True),
                ws.frame(b"after", masked=True),
            ]
            raw.send(b"".join(pieces))
            seen = [behind.next() for _ in range(6)]
            assert [(frame.opcode, frame.payload) for frame in seen] == [
                (ws.TEXT, b"text"),
                (ws.PING, b"ping"),
                (ws.PONG, b""),
                (ws.PONG, bytes(8)),
                (ws.BINARY, bytes(70_000)),
                (ws.BINARY, b"after"),
            ]
        client.send((1000).to_bytes(2, "big"), ws.CLOSE)
        assert behind.next().close_code == 1000


def test_a_pong_in_pieces_is_taken_out_too(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = Server()
    lb = start(balancer, upstream, server)
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True, answers=False)
        behind = server.sides.get(timeout=20)
        eventually(lambda: client.pings, "it is pinged")
        pong = ws.frame(client.pings[0], ws.PONG, masked=True)
        raw.send(pong[:1])
        time.sleep(0.05)
        raw.send(pong[1:9])
        time.sleep(0.05)
        raw.send(pong[9:] + ws.frame(b"after", masked=True))
        assert behind.next().payload == b"after"
        # The beginning of one that never comes whole is passed on when the wait has been long enough.
        eventually(lambda: len(client.pings) >= 2, "it is pinged")
        pong = ws.frame(client.pings[1], ws.PONG, masked=True)
        raw.send(pong[:10])
        eventually(lambda: len(client.pings) >= 3 or not behind.frames.empty(), "it lives", within=10)
        raw.send(pong[10:])
        assert behind.next().payload == client.pings[1]


@pytest.mark.parametrize("dead", ["client", "server"])
def test_who_does_not_answer_is_cut_off_and_the_other_side_is_told(
    dead: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = Server(answers=dead != "server")
    lb = start(balancer, upstream, server)
    lb.wait_control()
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True, answers=dead != "client")
        behind = server.sides.get(timeout=20)
        silent, alive = (client, behind) if dead == "client" else (behind, client)
        close = alive.next()
        assert close.close_code == 1001
        assert close.payload[2:] == b"the other side does not answer"
        assert alive.over.wait(20)
        assert silent.over.wait(20)
        assert silent.frames.empty()
        assert len(silent.pings) == 1
    Gauges(lb).wait_all_zero()
    line = lb.wait_access(event="websocket_close")[0]
    assert (line["close_code"], line["closed_by"]) == (1001, "lb")
    assert f"side={dead}" in lb.stderr
    scrape = Scrape(lb)
    assert scrape.total("lb_websocket_ping_timeouts_total") == 1
    assert scrape.total("lb_websocket_closes_total", initiator="lb", code="1001") == 1


def test_any_bytes_are_a_sign_of_life(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = Server()
    lb = start(balancer, upstream, server)
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True, answers=False)
        behind = server.sides.get(timeout=20)
        for number in (1, 2):
            eventually(lambda n=number: len(client.pings) >= n, "it is pinged")  # type: ignore[misc]
            client.send(b"no pong from me")
            assert behind.next().payload == b"no pong from me"
        # An answer that comes too late to be of interest goes on: it was not asked for, and is allowed.
        client.send((1000).to_bytes(2, "big"), ws.CLOSE)
        while (frame := behind.next()).opcode == ws.PONG:
            pass
        assert frame.close_code == 1000


def test_a_ping_goes_between_the_fragments_of_a_message_never_into_a_frame(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = Server()
    lb = start(balancer, upstream, server)
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True)
        behind = server.sides.get(timeout=20)
        first = bytearray(ws.frame(b"one", ws.TEXT))
        first[0] &= 0x7F
        last = ws.frame(b"t" * 20, 0)
        behind.reader.send(bytes(first))
        eventually(lambda: client.pings, "a ping between the fragments")
        # In the middle of a frame there is none, however long it takes, and then it comes.
        behind.answers = False
        for at in range(len(last)):
            behind.reader.send(last[at : at + 1])
            time.sleep(4.5 / len(last))
        assert len(client.pings) <= 2
        assert [client.next().payload for _ in range(2)] == [b"one", b"t" * 20]
        # From then on it has its whole time to answer.
        client.answers = False
        eventually(lambda: len(client.pings) >= 2, "the ping that waited")
        time.sleep(0.7)
        client.answers = behind.answers = True
        client.send(client.pings[-1], ws.PONG)
        seen = len(client.pings)
        assert seen <= 3
        eventually(lambda: len(client.pings) > seen, "pings again")


def test_idle_is_over_though_pings_are_answered(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = Server()
    lb = start(balancer, upstream, server, idle="5s")
    with ws.connect(lb.address) as raw:
        client = Side(raw, masked=True)
        behind = server.sides.get(timeout=20)
        assert client.next().close_code is not None
        assert behind.next().close_code is not None
        assert 1 <= len(client.pings) <= 3
    Gauges(lb).wait_all_zero()


def test_a_slow_reader_is_not_blamed_and_neither_is_who_waits_for_it(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    message = ws.frame(bytes(100_000))
    number = 60
    sent = threading.Event()

    def pour(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        connection.send(message * number)
        sent.set()
        Side(connection, masked=False).over.wait(30)

    lb = start(balancer, upstream, pour, every="1s")
    with RawClient(lb.address, receive_buffer=4096, timeout=20) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ws.upgrade(raw)
        pings = 0
        got = 0
        while got < number:
            # It reads all the time, and far less than there is.
            frame = ws.read_frame(raw)
            if frame.opcode == ws.PING:
                pings += 1
                raw.send(ws.frame(frame.payload, ws.PONG, masked=True))
                continue
            assert frame.opcode == ws.BINARY, frame
            got += 1
            time.sleep(0.03)
        raw.send(ws.close_frame(1000, masked=True))
        while (frame := ws.read_frame(raw)).opcode != ws.CLOSE:
            pass
        assert frame.close_code == 1000


def test_compressed_messages_and_a_tls_listener(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pem = authority.issue("1.pem", "test.example")
    server = Server()
    lb = start(balancer, upstream, server, listen={"tls": {"certs": [str(pem)]}})
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(b"compressed " * 1000) + packer.flush(zlib.Z_SYNC_FLUSH)
    compressed = bytearray(ws.frame(packed[:-4], masked=True))
    compressed[0] |= 0x40
    with RawClient(lb.address, tls=authority.client_context(), server_name="test.example") as raw:
        ws.upgrade(raw)
        client = Side(raw, masked=True, answers=False)
        behind = server.sides.get(timeout=20)
        for number in (1, 2):
            eventually(lambda n=number: len(client.pings) >= n, "it is pinged")  # type: ignore[misc]
            pong = ws.frame(client.pings[-1], ws.PONG, masked=True)
            small = ws.frame(b"", masked=True)
            raw.send(small + bytes(compressed) + small + pong[:3])
            time.sleep(0.02)
            raw.send(pong[3:] + bytes(compressed) + small)
            seen = [behind.next().payload for _ in range(5)]
            assert seen == [b"", packed[:-4], b"", packed[:-4], b""]
        client.answers = True
        eventually(lambda: min(len(client.pings), len(behind.pings)) >= 3, "both are pinged")
        assert behind.frames.empty()
        client.send((1000).to_bytes(2, "big"), ws.CLOSE)
        assert behind.next().close_code == 1000
    Gauges(lb).wait_all_zero()


@pytest.mark.parametrize("how", ["plain", "tls"])
def test_a_close_while_a_pong_is_on_its_way_loses_nothing(
    how: str, balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    listen = {"tls": {"certs": [str(authority.issue("1.pem", "test.example"))]}} if how == "tls" else {}
    server = Server()
    lb = start(balancer, upstream, server, listen=listen)
    lb.wait_control()
    tls = {"tls": authority.client_context(), "server_name": "test.example"} if how == "tls" else {}
    with RawClient(lb.address, **tls) as raw:  # type: ignore[arg-type]
        ws.upgrade(raw)
        behind = server.sides.get(timeout=20)
        ping = ws.read_frame(raw)
        pong = ws.frame(ping.payload, ws.PONG, masked=True)
        raw.send(pong[:8])
        time.sleep(0.05)
        lb.admin("tunnels/close", method="POST", body={"all": True, "code": 4001})
        assert ws.read_frame(raw).close_code == 4001
        raw.send(pong[8:] + ws.close_frame(4001, masked=True))
        frames = [behind.next()]
        while frames[-1].opcode != ws.CLOSE:
            frames.append(behind.next())
        assert frames[-1].close_code == 4001
        # What was taken is held back no longer, and goes on; what was not taken comes too late.
        assert frames[:-1] == ([ws.Frame(ws.PONG, ping.payload)] if how == "tls" else [])
    Gauges(lb).wait_all_zero()
