"""The command socket: who may ask, how much, and for how long."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import stat
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from lb.master import command, places
from lb.master.command import MAX_CLIENTS, MAX_REQUEST, CommandServer, Respond
from lb.master.failures import StartError
from lb.master.loop import Loop
from lb.master.report import Outcome, Reply, Request


def fail(error: Exception) -> None:
    raise error


class Served:
    """A command socket in a loop of its own thread; `answer` says what each request gets."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.asked: list[Request] = []
        self.held: list[Respond] = []
        self.answer: Callable[[Request, Respond], None] = lambda _request, respond: respond(Reply(pid=7))
        self.loop = Loop(fail)
        self.path, listening = command.open_socket(folder / "lb.toml", folder / "lb.pid")
        self.server = CommandServer(self.loop, listening, self.path, self._serve)
        self.thread = threading.Thread(target=self.loop.run)
        self._wake = os.pipe()
        self.loop.watch(self._wake[0], 1, lambda _events: self.loop.stop())
        self.thread.start()

    def _serve(self, request: Request, respond: Respond) -> None:
        self.asked.append(request)
        self.answer(request, respond)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        connection.connect(str(self.path))
        return connection

    def close(self) -> None:
        os.write(self._wake[1], b"x")
        self.thread.join()
        self.server.close()
        self.loop.close()
        for fd in self._wake:
            os.close(fd)


@pytest.fixture
def served(tmp_path: pathlib.Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def test_a_request_gets_its_reply(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b'{"command": "sta')
        connection.sendall(b'tus"}\n')
        assert msgspec.json.decode(read_all(connection), type=Reply).pid == 7
    assert served.asked == [Request(command="status")]


def test_a_large_reply_is_sent_whole(served: Served) -> None:
    outcome = Outcome(ok=True, generation=1, changes=tuple(map(str, range(100_000))))
    served.answer = lambda _request, respond: respond(Reply(outcome=outcome))
    with served.connect() as connection:
        connection.sendall(b'{"command": "reload"}\n')
        assert msgspec.json.decode(read_all(connection), type=Reply).outcome == outcome


@pytest.mark.parametrize("line", [b"\n", b"reload\n", b'{"command": "explode"}\n', b"\xff\xfe\n", b"[]\n"])
def test_a_malformed_request_is_told_so(served: Served, line: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(line)
        assert "malformed" in msgspec.json.decode(read_all(connection), type=Reply).error
    assert served.asked == []


def test_a_request_without_end_is_cut_off(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"x" * (MAX_REQUEST + 1))
        # What was left unread makes it a reset.
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_clients_are_bounded(served: Served) -> None:
    connections = [served.connect() for _ in range(MAX_CLIENTS)]
    with served.connect() as beyond:
        assert beyond.recv(1) == b""
    for connection in connections:
        connection.close()


def test_a_reply_to_a_client_that_left_is_dropped(served: Served) -> None:
    asked = threading.Event()

    def hold(_request: Request, respond: Respond) -> None:
        served.held.append(respond)
        asked.set()

    served.answer = hold
    with served.connect() as connection:
        connection.sendall(b'{"command": "stop"}\n')
        assert asked.wait(5)

    def answer_both(_request: Request, respond: Respond) -> None:
        served.held[0](Reply())
        respond(Reply(pid=9))

    served.answer = answer_both
    with served.connect() as connection:
        connection.sendall(b'{"command": "status"}\n')
        assert msgspec.json.decode(read_all(connection), type=Reply).pid == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_is_not_served(served: Served) -> None:
    served.path.chmod(0o666)
    for folder in (served.path.parent, *served.path.parent.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    # The kernel notes who connects when they connect.
    os.seteuid(65534)
    try:
        connection = served.connect()
    finally:
        os.seteuid(0)
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(b'{"command": "stop"}\n')
        assert connection.recv(1) == b""
    assert served.asked == []


def test_the_socket_is_its_users_alone_and_goes_with_it(tmp_path: pathlib.Path) -> None:
    served = Served(tmp_path)
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    served.close()
    assert not served.path.exists()


def test_the_second_instance_without_a_pid_file_is_named_after_its_configuration(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "folder", lambda: tmp_path / "run")
    first_path, first = command.open_socket(tmp_path / "a.toml", None)
    second_path, second = command.open_socket(tmp_path / "b.toml", None)
    with first, second:
        assert first_path == tmp_path / "run" / "command.sock"
        assert second_path == places.second(tmp_path / "b.toml")
        assert places.all_defaults() == [first_path, second_path]
        with pytest.raises(StartError, match="another process listens there"):
            command.open_socket(tmp_path / "b.toml", None)


def test_a_folder_that_others_can_write_to_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(places, "folder", lambda: folder)
    with pytest.raises(StartError, match="only its owner"):
        command.open_socket(tmp_path / "lb.toml", None)
