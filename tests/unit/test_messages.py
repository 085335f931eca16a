"""The channel between master and workers, over real sockets: whole messages, or a closed channel."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.processes import own_descriptors
from workers.contract import messages
from workers.contract.messages import (
    MAX_BYTES,
    MAX_FDS,
    Abort,
    AccessLogFd,
    AnyMessage,
    Attach,
    CertificateFd,
    ChannelError,
    Commit,
    Committed,
    ListenerFd,
    Prepare,
    Prepared,
    Ready,
    Refused,
    ReopenLogs,
    SnapshotFd,
    Stop,
)

Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def channel() -> Iterator[Pair]:
    ours, theirs = messages.pair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def ends() -> Iterator[Pair]:
    with channel() as made:
        yield made


def received(end: socket.socket) -> tuple[AnyMessage, list[int]]:
    got = messages.receive(end)
    assert got is not None
    return got


def send_raw(end: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    end.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


numbers = st.integers(0, 2**63)
roles = st.lists(
    st.one_of(
        st.builds(ListenerFd, listener=st.text(), address=st.text(), home=st.integers(0, 63)),
        st.builds(CertificateFd, listener=st.text(), certificate=st.text()),
        st.just(SnapshotFd()),
        st.just(AccessLogFd()),
    ),
    max_size=5,
).map(tuple)
any_message: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(Attach, generation=numbers, roles=roles),
    st.builds(Prepare, generation=numbers, roles=roles),
    *(st.builds(kind, generation=numbers) for kind in (Commit, Abort, Prepared, Committed)),
    st.just(ReopenLogs()),
    st.builds(Stop, grace=st.floats(0, 1e9)),
    st.builds(Ready, pid=numbers),
    st.builds(Refused, generation=numbers, error=st.text()),
)


# --- what arrives ---------------------------------------------------------------------------------------


@given(st.lists(any_message, min_size=1, max_size=4))
def test_messages_arrive_whole_and_in_order(sent: list[AnyMessage]) -> None:
    with channel() as (master, worker):
        for message in sent:
            messages.send(master, message)
        assert [received(worker) for _ in sent] == [(message, []) for message in sent]
        with pytest.raises(BlockingIOError):
            messages.receive(worker)


def test_descriptors_arrive_usable_and_are_not_inherited(ends: Pair) -> None:
    master, worker = ends
    with pipe() as (reader, writer):
        messages.send(master, Attach(generation=1, roles=(SnapshotFd(), AccessLogFd())), [writer, reader])
        _, fds = received(worker)
        try:
            assert [os.get_inheritable(fd) for fd in fds] == [False, False]
            os.write(fds[0], b"through the channel")
            assert os.read(reader, 100) == b"through the channel"
            assert os.fstat(fds[1]) == os.fstat(reader)
        finally:
            for fd in fds:
                os.close(fd)


def test_descriptors_stay_with_their_message(ends: Pair) -> None:
    master, worker = ends
    with pipe() as (reader, _):
        messages.send(master, Commit(generation=1))
        messages.send(master, ReopenLogs(), [reader])
        messages.send(master, Commit(generation=2))
        assert received(worker) == (Commit(generation=1), [])
        message, (fd,) = received(worker)
        os.close(fd)
        assert message == ReopenLogs()
        assert received(worker) == (Commit(generation=2), [])


def test_the_most_descriptors_and_bytes_arrive(ends: Pair) -> None:
    master, worker = ends
    with pipe() as (reader, _):
        messages.send(master, ReopenLogs(), [reader] * MAX_FDS)
        message, fds = received(worker)
        for fd in fds:
            os.close(fd)
    assert (message, len(fds)) == (ReopenLogs(), MAX_FDS)
    refused = Refused(generation=1, error="x" * (MAX_BYTES - 100))
    refused = Refused(generation=1, error="x" * (2 * MAX_BYTES - 100 - len(msgspec.msgpack.encode(refused))))
    assert len(msgspec.msgpack.encode(refused)) == MAX_BYTES
    messages.send(worker, refused)
    assert received(master) == (refused, [])


# --- limits and ends ------------------------------------------------------------------------------------


def test_what_is_over_the_limits_is_not_sent(ends: Pair) -> None:
    master, worker = ends
    with pytest.raises(ChannelError, match=r"Refused is over the limits: \d+ bytes, 0 fds"):
        messages.send(worker, Refused(generation=1, error="x" * MAX_BYTES))
    with pytest.raises(ChannelError, match="254 fds"):
        messages.send(worker, ReopenLogs(), [0] * (MAX_FDS + 1))
    with pytest.raises(BlockingIOError):
        messages.receive(master)


def test_a_full_queue_blocks_nobody_and_loses_nothing(ends: Pair) -> None:
    master, worker = ends
    sent = 0
    with pytest.raises(BlockingIOError):
        while sent < 100_000:
            messages.send(master, Commit(generation=sent))
            sent += 1
    assert 0 < sent < 100_000
    assert [received(worker) for _ in range(sent)] == [(Commit(generation=n), []) for n in range(sent)]
    messages.send(master, Commit(generation=sent))
    assert received(worker) == (Commit(generation=sent), [])


def test_the_end_of_the_peer() -> None:
    with channel() as (master, worker):
        messages.send(worker, Ready(pid=1))
        worker.close()
        assert received(master) == (Ready(pid=1), [])
        assert messages.receive(master) is None
        with pytest.raises(BrokenPipeError):
            messages.send(master, ReopenLogs())


def test_a_channel_is_not_inherited(ends: Pair) -> None:
    for end in ends:
        assert not end.getblocking()
        assert not end.get_inheritable()


# --- what can't be trusted ------------------------------------------------------------------------------


def refuse(data: bytes, fds: int = 2) -> str:
    """Sends raw bytes with descriptors; returns why they were refused, with every descriptor closed."""
    with channel() as (master, worker), pipe() as (reader, _):
        send_raw(master, data, [reader] * fds)
        before = own_descriptors()
        with pytest.raises(ChannelError) as caught:
            messages.receive(worker)
        assert own_descriptors() == before
        return str(caught.value)


def test_a_datagram_that_is_too_long_is_fatal_and_leaks_nothing() -> None:
    data = msgspec.msgpack.encode(Refused(generation=1, error="x" * MAX_BYTES))
    assert refuse(data) == "truncated message"


def test_descriptors_that_were_cut_off_are_fatal_and_leak_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_SPACE", socket.CMSG_SPACE(2 * 4))
    assert refuse(msgspec.msgpack.encode(ReopenLogs()), 5).startswith("not all descriptors")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\xc1",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"type": "Unknown"}),
        msgspec.msgpack.encode({"type": "ListenerFd", "listener": "a", "address": "b", "home": 0}),
        msgspec.msgpack.encode({"type": "Commit"}),
        msgspec.msgpack.encode({"type": "Commit", "generation": "1"}),
        msgspec.msgpack.encode({"type": "Commit", "generation": 1})[:-1],
        msgspec.msgpack.encode({"type": "Commit", "generation": 1}) + b"\x00",
        msgspec.msgpack.encode({"type": "Refused", "generation": 1, "error": "abc"}).replace(
            b"abc", b"\xff\xfeb"
        ),
        msgspec.msgpack.encode({"type": "Prepare", "generation": 1, "roles": [{"type": "Commit"}]}),
        b"\x82\xa4type\xa6Commit\xa1x" + b"\x91" * 60_000,
    ],
)
def test_what_is_no_message_is_fatal_and_leaks_nothing(data: bytes) -> None:
    assert refuse(data).startswith("malformed message: ")


def test_a_datagram_of_descriptors_alone_is_no_end() -> None:
    assert refuse(b"").startswith("malformed message: ")


@given(st.binary(min_size=1, max_size=40))
def test_garbage_is_a_message_or_fatal(data: bytes) -> None:
    with channel() as (master, worker):
        send_raw(master, data)
        with contextlib.suppress(ChannelError):
            received(worker)
