"""The access log: complete, valid lines whatever comes, and traffic that never waits for them."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, RawClient, eventually, fetch
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


def test_a_request_line_tells_all(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address]))
    headers = {"User-Agent": 'agent "1"', "Referer": "https://ref.example/"}
    response = fetch(lb.address, "/path?q=1", method="POST", body=b"12345", headers=headers)
    (line,) = lb.wait_access()
    head = server.requests[0].head
    assert datetime.datetime.fromisoformat(line["time"]).tzinfo is not None
    assert line["event"] == "request"
    assert line["client"] == "127.0.0.1"
    assert (line["method"], line["target"], line["host"]) == ("POST", "/path?q=1", "test.example")
    assert line["protocol"] == "HTTP/1.1"
    assert line["status"] == response.status == 200
    assert line["bytes_sent"] == len(response.head.raw) + len(response.body)
    assert line["bytes_received"] == len(
        request_bytes("/path?q=1", method="POST", body=b"12345", headers=headers)
    )
    assert 0 < line["upstream_time"] <= line["duration"] < 5
    assert (line["route"], line["pool"], line["server"]) == ("all", "main", server.address)
    assert (line["attempts"], line["reason"]) == (1, "")
    assert line["request_id"] == head.get("x-request-id")
    assert (line["user_agent"], line["referer"]) == ('agent "1"', "https://ref.example/")


def test_a_websocket_has_a_line_when_it_opens_and_one_when_it_closes(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream(ws.serve_echo)
    lb = balancer(settings([server.address]))
    with ws.connect(lb.address, "/chat?room=1") as client:
        (opened,) = lb.wait_access(event="websocket_open")
        for size in (10, 200, 70_000):
            client.send(ws.frame(b"x" * size, masked=True))
            assert len(ws.read_frame(client).payload) == size
        client.send(ws.close_frame(4001, masked=True))
        assert ws.read_frame(client).close_code == 4001
        client.read_to_end()
    (closed,) = lb.wait_access(event="websocket_close")
    assert (opened["status"], opened["method"]) == (101, "GET")
    for line in (opened, closed):
        assert (line["target"], line["host"], line["client"]) == ("/chat?room=1", "test.example", "127.0.0.1")
        assert (line["route"], line["pool"], line["server"]) == ("all", "main", server.address)
    assert opened["request_id"] == closed["request_id"]
    assert (closed["close_code"], closed["closed_by"]) == (4001, "client")
    assert (closed["messages_sent"], closed["messages_received"]) == (3, 3)
    payload = 10 + 200 + 70_000
    assert closed["bytes_sent"] == payload + 2 + 4 + 10 + 4
    assert closed["bytes_received"] == payload + 6 + 8 + 14 + 8
    assert 0 < closed["duration"] < 10
    assert not [line for line in lb.access_lines() if line["event"] == "request"]


@pytest.mark.parametrize("who", ["server", "none"])
def test_the_closing_line_says_who_closed(who: str, balancer: StartBalancer, upstream: StartUpstream) -> None:
    leave = threading.Event()

    def handler(connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        leave.wait(10)
        if who == "server":
            connection.send(ws.close_frame(1011))
            connection.wait_closed()
        else:
            connection.reset()

    lb = balancer(settings([upstream(handler).address]))
    with ws.connect(lb.address) as client:
        leave.set()
        if who == "server":
            assert ws.read_frame(client).close_code == 1011
            client.send(ws.close_frame(1011, masked=True))
        client.close()
    (closed,) = lb.wait_access(event="websocket_close")
    assert closed["close_code"] == (1011 if who == "server" else None)
    assert closed["closed_by"] in (("server",) if who == "server" else ("none", "server", "client"))


def test_hostile_values_break_no_line(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=1))
    agents = [
        b'"},{"x":"',
        b"\xff\xfe\x80",
        b"tab\there",
        b"\\n\\u0000",
        "\u2028\u2029".encode(),
        b"a" * 20_000,
    ]
    for agent in agents:
        with RawClient(lb.address) as client:
            client.send(b"GET /?q=\"'\\ HTTP/1.1\r\nHost: test.example\r\nUser-Agent: " + agent + b"\r\n\r\n")
            assert client.read_response().status == 200
    with RawClient(lb.address) as client:
        client.send(b"\x00\x01\x02\r\n\r\n")
        client.read_until_closed()
    lines = lb.wait_access(len(agents), status=200)
    assert all(line["target"] == "/?q=\"'\\" for line in lines)
    raw = lb.access_file.read_bytes()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", raw)
    assert max(map(len, raw.split(b"\n"))) <= 4096


def test_the_combined_format(balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path) -> None:
    file = tmp_path / "combined.log"
    lb = balancer(settings([upstream().address], access_log={"path": str(file), "format": "combined"}))
    fetch(lb.address, "/x", headers={"User-Agent": 'a"b', "Referer": "r"})
    eventually(lambda: file.exists() and file.read_text().endswith("\n"), "a line is written")
    pattern = r'127\.0\.0\.1 - - \[[^\]]+ [+-]\d{4}\] "GET /x HTTP/1\.1" 200 \d+ "r" "a\\x22b"\n'
    assert re.fullmatch(pattern, file.read_text())


def test_lines_of_several_workers_are_never_torn(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=4))
    agent = {"User-Agent": "a" * 1500}

    def load() -> None:
        with RawClient(lb.address) as client:
            for _ in range(50):
                client.request("/", headers=agent)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lb.wait_access(400, status=200)) == 400


def test_usr1_reopens_the_file(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address]))
    fetch(lb.address, "/before")
    lb.wait_access(target="/before")
    rotated = lb.access_file.with_suffix(".1")
    lb.access_file.rename(rotated)
    lb.send_signal(signal.SIGUSR1)
    eventually(lb.access_file.exists, "the file is opened anew")

    def written() -> bool:
        fetch(lb.address, "/after")
        return bool(lb.access_lines())

    eventually(written, "lines go to the new file")
    assert json.loads(rotated.read_text().splitlines()[0])["target"] == "/before"


def test_a_blocked_pipe_costs_lines_and_no_traffic(
    balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # never reads
    try:
        lb = balancer(settings([upstream().address], workers=1, access_log={"path": str(pipe)}))
        with RawClient(lb.address) as client:
            headers = {"User-Agent": "a" * 3000}
            for _ in range(300):
                assert client.request("/", headers=headers).status == 200
        lb.stop()
    finally:
        os.close(reader)


def test_a_full_disk_costs_lines_and_no_traffic(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], workers=1, access_log={"path": "/dev/full"}))
    with RawClient(lb.address) as client:
        for _ in range(300):
            assert client.request("/").status == 200
    lb.stop()


def test_off_writes_nothing(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], access_log={"path": "off"}))
    assert fetch(lb.address).status == 200
    lb.stop()
    assert (lb.folder / "stdout.log").read_bytes() == b""


def test_a_dash_is_stdout(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], access_log={"path": "-"}))
    assert fetch(lb.address, "/out").status == 200
    file = lb.folder / "stdout.log"
    eventually(lambda: file.read_bytes().endswith(b"\n"), "a line on stdout")
    assert json.loads(file.read_text())["target"] == "/out"
