"""The client of the admin API, and where it looks for it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.admin.views import StatusView
from lb.cli import address
from lb.cli.api import Api, Refused, quoted
from lb.cli.client import Unreachable, ask
from lb.master import places
from lb.master.report import Request
from tests.harness.waiting import eventually
from tests.unit.admin_server import AdminServer, Answer, status_view
from tests.unit.terminal import Terminal


@pytest.fixture
def server(socket_folder: str) -> Iterator[AdminServer]:
    with AdminServer(Path(socket_folder, "admin.sock")) as server:
        yield server


def api(server: AdminServer, timeout: float = 10.0) -> Api:
    return Api(address.parse(server.address), timeout)


# --- requests --------------------------------------------------------------------------------------------


def test_an_answer_is_decoded(server: AdminServer) -> None:
    server.says("GET status", status_view())
    assert api(server).get("status", StatusView) == status_view()


def test_parameters_are_encoded(server: AdminServer) -> None:
    server.says("GET tunnels", [])
    api(server).get("tunnels", list[int], {"client": "2001:db8::1&x", "older": 1.5})
    assert server.asked[0].target == "tunnels?client=2001%3Adb8%3A%3A1%26x&older=1.5"


@pytest.mark.parametrize(
    ("name", "part"),
    [("unix:/run/a b.sock", "unix%3A%2Frun%2Fa%20b.sock"), ("[::1]:80", "%5B%3A%3A1%5D%3A80")],
)
def test_names_are_parts_of_a_path(name: str, part: str) -> None:
    assert quoted(name) == part


def test_a_problem_becomes_one_line(server: AdminServer) -> None:
    problem = {"title": "Bad", "status": 422, "detail": "first\n\x1b[31msecond\u202e"}
    server.says("POST reload", problem, 422)
    with pytest.raises(Refused) as caught:
        api(server).send("POST", "reload", None, StatusView)
    assert str(caught.value) == "first ?[31msecond?"
    assert caught.value.status == 422


def test_what_is_no_problem_document_is_told(server: AdminServer) -> None:
    server.answers["GET status"] = Answer(b"<html>no</html>", 403, "text/html")
    with pytest.raises(Refused, match=r"answered 403 Forbidden: is it lb's admin API\?"):
        api(server).get("status", StatusView)
    server.answers["GET status"] = Answer(b"[", 500, "application/problem+json")
    with pytest.raises(Refused, match="answered 500"):
        api(server).get("status", StatusView)


@pytest.mark.parametrize("answer", [b"", b"no JSON", b"{}", b'{"version": 3}'])
def test_a_useless_answer_is_told(server: AdminServer, answer: bytes) -> None:
    server.answers["GET status"] = Answer(answer)
    with pytest.raises(Unreachable, match="gave no usable answer"):
        api(server).get("status", StatusView)


def test_a_closed_connection_is_told(server: AdminServer) -> None:
    server.answers["GET status"] = Answer(status=0)
    with pytest.raises(Unreachable, match="no admin API answers"):
        api(server).get("status", StatusView)


def test_an_answer_has_a_deadline(server: AdminServer) -> None:
    server.answers["GET status"] = Answer(status=-1)
    with pytest.raises(Unreachable, match=r"does not answer within 0\.2s"):
        api(server, 0.2).get("status", StatusView)


@pytest.fixture
def dripping(request: pytest.FixtureRequest, socket_folder: str) -> Iterator[str]:
    """Where something sends `request.param` and goes on with more of it, a piece each moment, for ever."""
    path = f"{socket_folder}/drip.sock"
    over = threading.Event()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()

    def drip() -> None:
        client, _ = listening.accept()
        begin, more = request.param
        with client, contextlib.suppress(OSError):
            client.sendall(begin)
            while not over.wait(0.01):
                client.sendall(more)

    thread = threading.Thread(target=drip)
    thread.start()
    yield path
    over.set()
    thread.join()
    listening.close()


@pytest.mark.parametrize(
    "dripping",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    indirect=True,
)
def test_the_deadline_is_that_of_the_whole_answer(dripping: str) -> None:
    with pytest.raises(Unreachable, match=r"does not answer within 0\.2s"):
        Api(address.Address(path=dripping), 0.2).get("status", StatusView)


@pytest.mark.parametrize("dripping", [(b"", b" ")], indirect=True)
def test_a_command_has_a_deadline_too(dripping: str) -> None:
    with pytest.raises(Unreachable, match=r"does not answer within 0\.2s"):
        ask(Request(command="status"), None, f"unix:{dripping}", 0.2)


@pytest.mark.parametrize("command", [("tunnels",), ("server", "web/a")])
def test_who_waits_may_interrupt(server: AdminServer, command: tuple[str, ...]) -> None:
    for asked in ("tunnels", "pools", "pools/web", "pools/web/servers/a", "status"):
        server.answers[f"GET {asked}"] = Answer(status=-1)
    with Terminal(*command, "--admin", server.address) as terminal:
        eventually(lambda: bool(server.asked), "it asks")
        terminal.types("\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.shown


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no such file"):
        Api(address.Address(path=str(tmp_path / "none"))).get("status", StatusView)


def test_the_token_goes_over_tcp_alone(tmp_path: Path, server: AdminServer) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with AdminServer() as remote:
        for each in (remote, server):
            each.says("GET status", status_view())
            Api(address.find(None, each.address, token)).get("status", StatusView)
        assert remote.asked[0].authorization == "Bearer secret"
    assert server.asked[0].authorization == ""


def test_a_wrong_token_is_explained(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong")
    with AdminServer() as remote:
        remote.says("GET status", {"title": "Unauthorized", "status": 401, "detail": "wrong token"}, 401)
        with pytest.raises(Refused, match="wrong token; the token comes from --token-file"):
            Api(address.find(None, remote.address, token)).get("status", StatusView)


# --- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:/run/lb/admin.sock", "unix:/run/lb/admin.sock"),
        ("10.0.0.1:9181", "10.0.0.1:9181"),
        ("http://edge.example:9181/", "edge.example:9181"),
        ("[2001:db8::1]:9181", "[2001:db8::1]:9181"),
        (":9181", "127.0.0.1:9181"),
        ("0.0.0.0:9181", "127.0.0.1:9181"),
        ("[::]:9181", "[::1]:9181"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert str(address.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "unix:admin.sock", "host", "host:0", "host:70000", "::1:80", "http://host:80/path", "a b:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Unreachable, match="expected unix:/path"):
        address.parse(text)


def test_tls_is_refused_by_name() -> None:
    with pytest.raises(Unreachable, match="plain HTTP"):
        address.parse("https://host:1")


@pytest.mark.parametrize(
    ("admin", "is_one"),
    [
        ("unix:/run/lb/command.sock", True),
        ("unix:/run/lb/lb.command.sock", True),
        ("unix:/run/lb/command-0123456789ab.sock", True),
        ("unix:/run/lb/admin.sock", False),
        ("unix:/run/command.sock/admin.sock", False),
        ("command.sock:80", False),
    ],
)
def test_command_sockets_are_known_by_name(admin: str, is_one: bool) -> None:
    assert address.is_command_socket(admin) is is_one


@pytest.mark.parametrize(
    ("command", "admin"),
    [
        ("command.sock", "admin.sock"),
        ("lb.command.sock", "lb.admin.sock"),
        ("command-0123456789ab.sock", "admin-0123456789ab.sock"),
        ("command.command.sock", "command.admin.sock"),
    ],
)
def test_the_api_is_beside_the_command_socket(command: str, admin: str) -> None:
    assert address.find(None, f"unix:/run/lb/{command}", None).path == f"/run/lb/{admin}"


def test_the_configuration_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(address.TOKEN_FILE_VARIABLE, raising=False)
    config = tmp_path / "lb.toml"
    config.write_text('process.pid_file = "lb.pid"\n')
    assert address.find(config, None, None).path == str(tmp_path / "lb.admin.sock")
    config.write_text('admin.listen = "unix:/run/x.sock"\n')
    assert address.find(config, None, None).path == "/run/x.sock"
    assert address.find(config, "unix:/run/y.sock", None).path == "/run/y.sock"
    (tmp_path / "token").write_text("secret")
    config.write_text('admin = { listen = "127.0.0.1:1", token_file = "token" }\n')
    assert address.find(config, None, None) == address.Address(host="127.0.0.1", port=1, token="secret")
    config.write_text('admin.listen = "off"\n')
    with pytest.raises(address.Switched, match="switched off"):
        address.find(config, None, None)


def test_a_broken_file_still_says_where(tmp_path: Path) -> None:
    config = tmp_path / "lb.toml"
    config.write_text('process.pid_file = "lb.pid"\nworkers = [\n')
    assert address.find(config, None, None).path == str(tmp_path / "lb.admin.sock")


def test_the_default_file_counts_where_its_instance_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "folder", lambda: tmp_path / "run")
    api_socket = tmp_path / "api.sock"
    Path("lb.toml").write_text(f'admin.listen = "unix:{api_socket}"\n')
    with pytest.raises(Unreachable, match="no lb runs here"):
        address.find(None, None, None)
    api_socket.touch()
    assert address.find(None, None, None).path == str(api_socket)


def test_the_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(address.TOKEN_FILE_VARIABLE, raising=False)
    with pytest.raises(Unreachable, match="wants a token"):
        address.find(None, "host:1", None)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("one\n")
    other.write_text("other\n")
    monkeypatch.setenv(address.TOKEN_FILE_VARIABLE, str(one))
    assert address.find(None, "host:1", None).token == "one"
    assert address.find(None, "host:1", other).token == "other"
    for wrong in ("", "\n", "two words", "two\nlines", "é", "x" * 5000):
        other.write_text(wrong)
        with pytest.raises(Unreachable, match="token file"):
            address.find(None, "host:1", other)
    with pytest.raises(Unreachable, match="can't be read"):
        address.find(None, "host:1", tmp_path / "missing")
