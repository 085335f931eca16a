"""The demo: its servers, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lb.config import load
from lb.config.controlspec import admin_token
from lb.demo import run, runner
from lb.master import places
from tests.harness.ports import free_port
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """One demo server; its address."""
    address = f"127.0.0.1:{free_port()}"
    with runner.servers([address], Path("lb.toml")):
        yield address


async def get(address: str, path: str, **options: Any) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(options.pop("method", "GET"), f"http://{address}{path}", **options) as response,
    ):
        return response.status, await response.text()


def test_the_packaged_configuration_is_the_default_one() -> None:
    assert (ROOT / "lb/demo/lb.toml").read_bytes() == (ROOT / "config/lb.toml").read_bytes()


def test_the_default_configuration_suits_the_demo() -> None:
    path = ROOT / "lb/demo/lb.toml"
    addresses = runner.demo_addresses(load(path), path)
    assert addresses == ["127.0.0.1:9001", "127.0.0.1:9002"]
    runner.require_loopback(load(path), path)
    invitation = runner.invitation(load(path), addresses, "a+b")
    assert "curl -i http://127.0.0.1:8080/api/hello" in invitation
    assert "-m websockets ws://127.0.0.1:8080/ws/echo" in invitation
    assert "\n  dashboard  http://127.0.0.1:9181/#token=a%2Bb\n" in invitation
    assert f" top -c {path}\n         curl http://127.0.0.1:9180/metrics\n" in invitation


def test_pages_and_json_echo_say_who_answers() -> None:
    async def check() -> None:
        for path in ("/", "/chat"):
            status, text = await get(address, path)
            assert status == 200
            assert "server one" in text
            assert "{{" not in text
        status, text = await get(
            address, "/api/things?x=1", method="POST", data=b"y" * 5000, headers={"X-Test": "a"}
        )
        seen = json.loads(text)
        assert (status, seen["server"], seen["method"], seen["target"]) == (
            200,
            "one",
            "POST",
            "/api/things?x=1",
        )
        assert (seen["body_bytes"], seen["body"]) == (5000, "y" * 1000)
        assert "X-Test: a" in seen["headers"]
        assert (await get(address, "/api"))[0] == 200
        assert (await get(address, "/nothing"))[0] == 404

    with served() as address:
        asyncio.run(check())


def test_websocket_echo_and_chat() -> None:
    async def check() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"http://{address}/ws/echo") as echo:
                await echo.send_str("hello")
                await echo.send_bytes(b"\x00\x01")
                assert await echo.receive_str() == "hello"
                assert await echo.receive_bytes() == b"\x00\x01"
            async with (
                session.ws_connect(f"http://{address}/ws/chat?name=ann") as ann,
                session.ws_connect(f"http://{address}/ws/chat") as bob,
            ):
                assert (await ann.receive_json())["text"] == "ann joined; 1 here"
                assert (await ann.receive_json())["text"] == "guest 2 joined; 2 here"
                assert (await bob.receive_json())["text"] == "guest 2 joined; 2 here"
                await ann.send_str("<b>hi</b>")
                assert await bob.receive_json() == {"server": "one", "from": "ann", "text": "<b>hi</b>"}
                await bob.close()
                assert (await ann.receive_json())["text"] == "<b>hi</b>"
                assert (await ann.receive_json())["text"] == "guest 2 left; 1 here"

    with served() as address:
        asyncio.run(check())


def test_the_servers_end_with_the_demo_and_close_their_websockets() -> None:
    async def check() -> object:
        async with aiohttp.ClientSession() as session:
            socket_ = await session.ws_connect(f"http://{address}/ws/echo")
            closing = asyncio.get_running_loop().run_in_executor(None, stack.close)
            message = await socket_.receive()
            await closing
            return message.data

    stack = contextlib.ExitStack()
    with stack:
        address = stack.enter_context(served())
        assert asyncio.run(check()) == 1001
    host, _, port = address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 1)


def test_the_servers_end_when_the_demo_is_killed(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    code = (
        "import sys, time, pathlib; from lb.demo import runner\n"
        "with runner.servers([sys.argv[1]], pathlib.Path('x')):\n"
        "    print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    host, _, port = address.rpartition(":")

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) != 0

    eventually(refused, "the demo server ended")


CONFIG = """
{more}
[listen.public]
bind = ["{bind}"]
[[route]]
pool = "{pool}"
[pool.{pool}]
servers = ["{server}"]
"""


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        ({"pool": "other"}, 1, "has no pool 'demo' for the demo servers; use lb run"),
        ({"bind": ":8080"}, 1, "listen.public binds [::]:8080, which others can reach"),
        ({"more": 'metrics.listen = ":9180"'}, 1, "metrics binds [::]:9180, which others can reach"),
        (
            {"more": 'admin = { listen = ":9181", token_file = "a" }'},
            1,
            "admin binds [::]:9181, which others can reach",
        ),
        ({"server": "192.0.2.1:9000"}, 1, "pool.demo names 192.0.2.1:9000; demo servers listen on 127.0.0.1"),
        ({"server": "unix:/tmp/x.sock"}, 1, "pool.demo names unix:/tmp/x.sock"),
    ],
)
def test_what_is_not_for_a_demo_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], values: dict[str, str], code: int, message: str
) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(
        CONFIG.format(
            **{"bind": "127.0.0.1:18080", "pool": "demo", "server": "127.0.0.1:9001", "more": "", **values}
        )
    )
    assert run(path) == code
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_broken_configuration_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lb.toml"
    path.write_text("[listen.public]\nbnd = 1\n")
    assert run(path) == 1
    assert "bnd" in capfd.readouterr().err


def test_a_taken_port_is_one_clear_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = tmp_path / "lb.toml"
        path.write_text(CONFIG.format(more="", bind=f"127.0.0.1:{free_port()}", pool="demo", server=address))
        assert run(path) == 3
    error = capfd.readouterr().err
    assert f"the demo server for {address} can't listen: address already in use." in error
    assert f"change it in pool.demo of {path}" in error
    assert error.count("\n") == 1


def test_without_a_file_the_packaged_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runner.default_file() == ROOT / "lb/demo/lb.toml"
    os.mkdir("config")
    Path("config/lb.toml").write_text("")
    assert runner.default_file() == Path("config/lb.toml")


def test_the_packaged_file_is_copied_to_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lb"
    monkeypatch.setattr(places, "folder", lambda: folder)
    packaged = ROOT / "lb/demo/lb.toml"
    copy = runner.own_copy(packaged)
    assert copy == folder / "demo/lb.toml"
    token = admin_token(load(copy))
    assert (folder / "demo/admin.token").read_text().strip() == token
    assert not packaged.with_name("admin.token").exists()
    copy.write_text("changed")
    assert runner.own_copy(packaged).read_bytes() == packaged.read_bytes()
    assert admin_token(load(copy)) == token, "bookmarks stay"
    assert runner.own_copy(Path("config/lb.toml")) == Path("config/lb.toml")


def test_a_copy_that_can_not_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "folder", lambda: tmp_path / "lb")
    (tmp_path / "lb").write_text("a file")
    assert run(None) == 3
    (tmp_path / "lb").unlink()
    (tmp_path / "lb/demo/lb.toml").mkdir(parents=True)
    (tmp_path / "lb").chmod(0o700)
    (tmp_path / "lb/demo").chmod(0o700)
    assert run(None) == 3
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"lb demo: the folder {tmp_path}/lb ")
    assert second == f"lb demo: {tmp_path}/lb/demo/lb.toml can't be written: is a directory"


def test_it_runs_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    """Ctrl-C in a terminal is SIGINT to the whole process group."""
    front, back, admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
    path = tmp_path / "lb.toml"
    path.write_text(
        CONFIG.format(
            more=f'admin = {{ listen = "{admin}", token_file = "t" }}', bind=front, pool="demo", server=back
        )
        + f'[process]\nworkers = 1\npid_file = "{tmp_path}/pid"\n'
    )
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr, (tmp_path / "access").open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "lb", "demo", "-c", str(path)],
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        eventually(lambda: "ready: " in errors.read_text() or process.poll() is not None, "the demo serves")
        with urllib.request.urlopen(f"http://{front}/api/hello", timeout=5) as response:
            assert json.load(response)["server"] == "one"
        token = (tmp_path / "t").read_text().strip()
        assert f"dashboard  http://{admin}/#token={token}\n" in errors.read_text()
        asked = urllib.request.Request(
            f"http://{admin}/api/v1/status", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=5) as response:
            assert response.status == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for address in (front, back, admin):
        with socket.socket() as probe:
            host, _, port = address.rpartition(":")
            assert probe.connect_ex((host, int(port))) != 0
    text = errors.read_text()
    assert f"open   http://{front}/" in text
    assert f"-m lb reload -c {path}" in text
    assert "Traceback" not in text
    assert json.loads((tmp_path / "access").read_text())["target"] == "/api/hello"
