"""The kernel's counts of what was read from a socket and written to it, against what was really so."""

from __future__ import annotations

import socket
import threading
from _socket import socket as RawSocket
from collections.abc import Iterator

import pytest

from tests.harness.waiting import eventually
from tests.harness.workers import connected
from workers.io import tcpinfo
from workers.io.endpoint import sever

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = connected()
    with ours, theirs:
        yield ours, theirs


def test_what_is_read_counts_and_what_waits_does_not(pair: Pair) -> None:
    ours, theirs = pair
    before = tcpinfo.counts(ours)
    theirs.sendall(bytes(1000))
    eventually(lambda: len(ours.recv(2000, socket.MSG_PEEK)) == 1000, "it is there")
    assert tcpinfo.counts(ours).read == before.read
    ours.recv(300)
    assert tcpinfo.counts(ours).read == before.read + 300


def test_what_is_written_counts_wherever_it_is(pair: Pair) -> None:
    ours, theirs = pair
    before = tcpinfo.counts(ours).written
    sent = 0
    while True:  # into the peer's buffer, then into ours
        try:
            sent += ours.send(bytes(50_000))
        except BlockingIOError:
            break
    assert tcpinfo.counts(ours).written == before + sent
    theirs.setblocking(True)
    theirs.recv(100_000)
    assert tcpinfo.counts(ours).written == before + sent


@pytest.mark.parametrize("read_the_end", [False, True])
def test_the_peers_end_is_no_byte(pair: Pair, read_the_end: bool) -> None:
    ours, theirs = pair
    before = tcpinfo.counts(ours).read
    theirs.sendall(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    eventually(lambda: tcpinfo.counts(ours).state == 8, "CLOSE_WAIT")
    ours.recv(4)
    assert tcpinfo.counts(ours).read == before + 4
    ours.recv(100)
    if read_the_end:
        assert ours.recv(100) == b""
    assert tcpinfo.counts(ours).read == before + 10


def test_our_end_is_no_byte(pair: Pair) -> None:
    ours, theirs = pair
    before = tcpinfo.counts(ours).written
    ours.sendall(b"last words")
    ours.shutdown(socket.SHUT_WR)
    assert tcpinfo.counts(ours).written == before + 10
    eventually(lambda: tcpinfo.counts(ours).state == 5, "FIN_WAIT2")  # it is acknowledged
    assert tcpinfo.counts(ours).written == before + 10
    theirs.close()
    eventually(lambda: tcpinfo.counts(ours).state == tcpinfo.CLOSE, "closed")
    assert tcpinfo.counts(ours).written == before + 10


def test_urgent_data_counts_once_where_it_is_in_line(pair: Pair) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    before = tcpinfo.counts(ours).read
    theirs.send(b"abc")
    theirs.send(b"!", socket.MSG_OOB)
    theirs.send(b"def")
    got = b""

    def all_of_it() -> bool:
        nonlocal got
        try:
            got += ours.recv(100)
        except BlockingIOError:
            return False
        return len(got) == 7

    eventually(all_of_it, "seven bytes")
    assert got == b"abc!def"
    assert tcpinfo.counts(ours).read == before + 7


def test_counts_are_exact_while_the_peer_talks_and_listens(pair: Pair) -> None:
    """Nobody touches our end, and it is all that changes: what was read and written stays the same."""
    ours, theirs = pair
    ours.setblocking(True)
    theirs.setblocking(True)
    ours.sendall(bytes(200_000))
    before = tcpinfo.counts(ours)
    talks = threading.Event()

    def talk() -> None:
        theirs.settimeout(5)
        for _ in range(100):
            theirs.recv(2000)
            theirs.send(bytes(1500))
            talks.set()

    talker = threading.Thread(target=talk)
    talker.start()
    assert talks.wait(30)
    while talker.is_alive():
        found = tcpinfo.counts(ours)
        assert (found.read, found.written) == (before.read, before.written)
    talker.join()
    found = tcpinfo.counts(ours)
    assert (found.read, found.written) == (before.read, before.written)


def test_unix_sockets_are_not_counted() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not tcpinfo.is_counted(one)
        with pytest.raises(OSError):
            tcpinfo.counts(one)


@pytest.mark.parametrize("failed", [False, True])
def test_a_severed_connection_ends_though_a_duplicate_is_kept(pair: Pair, failed: bool) -> None:
    ours, theirs = pair
    with ours.dup():
        stream = RawSocket(fileno=ours.detach())
        sever(stream, failed=failed)
        stream.close()
        theirs.setblocking(True)
        theirs.settimeout(10)
        if failed:
            with pytest.raises(ConnectionResetError):
                theirs.recv(10)
        else:
            assert theirs.recv(10) == b""
