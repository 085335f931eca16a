"""What a successor makes of what its predecessor held."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.master import command
from lb.master.command import CommandServer, Respond
from lb.master.failures import StartError
from lb.master.lending import Lending
from lb.master.listeners import SHARED, Listeners
from lb.master.loop import Loop
from lb.master.pidfile import PidFile
from lb.master.report import Reply, Request
from tests.harness.ports import free_port
from workers.contract.scoreboard import Capacity, Scoreboard


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(fail)
    yield made
    made.close()


def test_the_lock_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "lb.pid"
    first = PidFile(path)
    heir = PidFile.inherited(first.path, first.fd)
    with pytest.raises(StartError, match=f"another lb .pid {os.getpid()}. holds"):
        PidFile(path)
    heir.close()
    assert not path.exists()
    PidFile(path).close()


def test_listening_goes_on(socket_folder: str) -> None:
    tcp, unix = f"127.0.0.1:{free_port()}", f"unix:{socket_folder}/edge"
    first = Listeners()
    first.commit(first.stage([tcp, unix], (0, 1)))
    kept = first.all()
    assert [(one.address, one.home) for one in kept] == [(tcp, 0), (tcp, 1), (unix, SHARED)]
    heir = Listeners.inherited(kept)
    assert heir.all() == kept
    # Nothing is bound anew for workers in other slots; each socket has one of them.
    staged = heir.stage([tcp, unix], (2, 3))
    assert staged.fresh == ()
    served = [[(one.address, one.home) for one in heir.served_by(slot, (2, 3))] for slot in (2, 3)]
    assert served == [[(tcp, 0), (unix, 2)], [(tcp, 1), (unix, 3)]]
    heir.close()
    assert not Path(socket_folder, "edge").exists()


def test_more_workers_get_sockets_of_their_own() -> None:
    tcp = f"127.0.0.1:{free_port()}"
    first = Listeners()
    first.commit(first.stage([tcp], (0,)))
    heir = Listeners.inherited(first.all())
    heir.commit(heir.stage([tcp], (1, 2)))
    assert [one.home for one in heir.all()] == [0, 1]
    heir.close()


@contextlib.contextmanager
def command_server(loop: Loop, tmp_path: Path, held: list[Respond]) -> Iterator[CommandServer]:
    def serve(_request: Request, respond: Respond) -> None:
        held.append(respond)

    path, listening = command.open_socket(tmp_path / "lb.toml", tmp_path / "lb.pid")
    server = CommandServer(loop, listening, path, serve)
    yield server
    server.close()


def turn(loop: Loop) -> None:
    """What is ready now, and what that makes ready."""
    loop.later(0.05, loop.stop)
    loop.run()


def test_who_waits_for_an_upgrade_is_known(loop: Loop, tmp_path: Path) -> None:
    held: list[Respond] = []
    with command_server(loop, tmp_path, held) as server, socket.socket(socket.AF_UNIX) as asking:
        assert server.waiting("upgrade") == []
        asking.connect(str(tmp_path / "lb.command.sock"))
        turn(loop)
        assert server.waiting("upgrade") is None  # it has not said yet what it wants
        asking.sendall(b'{"command": "upgrade"}\n')
        turn(loop)
        (fd,) = server.waiting("upgrade") or []
        # The successor has a descriptor of the same connection, and a server of its own.
        respond = server.adopt(socket.socket(fileno=os.dup(fd)), "upgrade")
        respond(Reply(pid=7))
        assert asking.recv(100) == b'{"pid":7}\n'
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(tmp_path / "lb.command.sock"))
            other.sendall(b'{"command": "status"}\n')
            turn(loop)
            assert server.waiting("upgrade") is None


def test_who_says_nothing_holds_no_upgrade_up(loop: Loop, tmp_path: Path) -> None:
    with command_server(loop, tmp_path, []) as server, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "lb.command.sock"))
        turn(loop)
        assert server.waiting("upgrade") is None  # it may be about to ask
        silent.sendall(b'{"command": "sta')
        until = time.monotonic() + 3  # less than until its connection is closed
        while server.waiting("upgrade") is None and time.monotonic() < until:
            turn(loop)
        assert server.waiting("upgrade") == []
        silent.sendall(b'tus"}\n')  # served as ever, where no upgrade comes
        turn(loop)
        assert server.waiting("upgrade") is None


def test_an_heir_who_left_is_forgotten(loop: Loop, tmp_path: Path) -> None:
    with command_server(loop, tmp_path, []) as server:
        ours, theirs = socket.socketpair()
        respond = server.adopt(ours, "upgrade")
        theirs.close()
        turn(loop)
        assert server.waiting("upgrade") == []
        respond(Reply(pid=7))


def test_the_socket_file_of_another_is_left_alone(loop: Loop, tmp_path: Path) -> None:
    """It was replaced before the successor looked."""
    path, listening = command.open_socket(tmp_path / "lb.toml", tmp_path / "lb.pid")
    server = CommandServer(loop, listening, path, lambda _request, _respond: None, (1, 2))
    server.close()
    assert path.exists()


def test_shares_of_those_who_are_gone_are_taken_back(loop: Loop) -> None:
    board = Scoreboard.create(Capacity(workers=4, listeners=1, routes=1, pools=1, servers=4, series=1))
    try:
        for slot, server, share in ((0, 1, 5), (1, 1, 3), (1, 2, 4)):
            board.grants[board.grant_index(slot, server)] = share
        lending = Lending(loop, None, board)  # type: ignore[arg-type]
        lending.inherit((0, 1))
        lending._take_back({0}, {1: 8})
        shares = {
            (slot, server): board.grants[board.grant_index(slot, server)]
            for slot in (0, 1)
            for server in (1, 2)
        }
        assert shares == {(0, 1): 5, (0, 2): 0, (1, 1): 0, (1, 2): 0}
    finally:
        os.close(board.fd)
