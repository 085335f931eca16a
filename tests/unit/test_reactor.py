"""The worker's event loop, on real sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from workers.io.reactor import LONG_TURN, Reactor

_RESET = struct.pack("ii", 1, 0)


class Stage:
    """A reactor and the exceptions that its callbacks let through."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.reactor = Reactor(lambda error, _callback: self.failures.append(error))

    def run(self, within: float = 5.0) -> None:
        """Runs until a callback stops it."""
        overdue: list[bool] = []

        def give_up() -> None:
            overdue.append(True)
            self.reactor.stop()

        timer = self.reactor.call_later(within, give_up)
        self.reactor.run()
        timer.cancel()
        assert not overdue, "nothing stopped the loop in time"


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.reactor.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setblocking(False)
    with near, far:
        yield near, far


def test_reads_what_comes(stage: Stage, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    got: list[bytes] = []

    def read() -> None:
        got.append(near.recv(100))
        stage.reactor.stop()

    stage.reactor.add_reader(near.fileno(), read)
    far.send(b"hello")
    stage.run()
    assert got == [b"hello"]


def test_what_a_callback_leaves_is_reported_again(
    stage: Stage, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    got: list[bytes] = []

    def read_one() -> None:
        got.append(near.recv(1))
        if len(got) == 3:
            stage.reactor.stop()

    stage.reactor.add_reader(near.fileno(), read_one)
    far.send(b"abc")
    stage.run()
    assert b"".join(got) == b"abc"


def test_a_reset_behind_data_is_seen(stage: Stage, pair: tuple[socket.socket, socket.socket]) -> None:
    """libuv calls the reader once for both and never again."""
    near, far = pair
    got: list[bytes] = []

    def read() -> None:
        try:
            got.append(near.recv(100))
        except ConnectionResetError:
            got.append(b"reset")
            stage.reactor.stop()

    far.send(b"data")
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    far.close()
    stage.reactor.add_reader(near.fileno(), read)
    stage.run()
    assert got[-1] == b"reset"


def test_writers_come_and_go_beside_readers(stage: Stage, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    calls: list[str] = []

    def write() -> None:
        calls.append("write")
        stage.reactor.remove_writer(near.fileno())
        far.send(b"x")

    def read() -> None:
        calls.append("read")
        near.recv(1)
        stage.reactor.remove_reader(near.fileno())
        stage.reactor.call_soon(stage.reactor.stop)

    stage.reactor.add_reader(near.fileno(), read)
    stage.reactor.add_writer(near.fileno(), write)
    stage.run()
    assert calls == ["write", "read"]


@pytest.mark.interpreted
def test_nothing_is_reported_of_a_descriptor_that_nobody_watches(
    stage: Stage, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A hang-up can't be masked in epoll: a paused descriptor has to be taken out, or it would spin."""
    near, far = pair
    stage.reactor.add_reader(near.fileno(), near.fileno)
    stage.reactor.remove_reader(near.fileno())
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    far.close()
    turns: list[float] = []
    poll = stage.reactor._dispatch

    def counted(events: list[tuple[int, int]]) -> None:
        turns.append(time.monotonic())
        poll(events)

    stage.reactor._dispatch = counted  # type: ignore[method-assign]
    stage.reactor.call_later(0.05, stage.reactor.stop)
    stage.run()
    assert len(turns) < 5


def test_events_of_a_closed_number_do_not_reach_its_next_owner(stage: Stage) -> None:
    """Two pipes are readable in one turn; the one that is served first takes the other's number away."""
    reactor = stage.reactor
    pipes = {number: os.pipe() for number in range(2)}
    silent, silent_end = os.pipe()
    calls: list[str] = []

    def serve(number: int) -> None:
        calls.append("served")
        other = pipes[1 - number][0]
        reactor.remove_reader(pipes[number][0])
        reactor.remove_reader(other)
        os.dup2(silent, other)
        reactor.add_reader(other, lambda: calls.append("stale"))
        reactor.call_later(0.02, reactor.stop)

    for number, (reader, writer) in pipes.items():
        reactor.add_reader(reader, partial(serve, number))
        os.write(writer, b"x")
    stage.run()
    assert calls == ["served"]
    for fd in (silent, silent_end, *pipes[0], *pipes[1]):
        reactor.remove_reader(fd)
        os.close(fd)


def test_a_callback_that_fails_costs_its_descriptor_and_nothing_else(
    stage: Stage, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair

    def fail() -> None:
        raise RuntimeError("a bug")

    stage.reactor.add_reader(near.fileno(), fail)
    stage.reactor.call_later(0.05, stage.reactor.stop)
    far.send(b"x")
    stage.run()
    assert [str(error) for error in stage.failures] == ["a bug"]


def test_calls_come_in_order_and_timers_when_they_are_due(stage: Stage) -> None:
    calls: list[str] = []
    stage.reactor.call_later(0.02, stage.reactor.stop)
    stage.reactor.call_later(0.01, lambda: calls.append("later"))
    stage.reactor.call_later(0.0, lambda: calls.append("now"))
    stage.reactor.call_later(0.005, lambda: calls.append("never")).cancel()
    stage.reactor.call_soon(lambda: calls.append("soon"))
    stage.run()
    assert sorted(calls[:2]) == ["now", "soon"]
    assert calls[2:] == ["later"]


def test_a_failing_call_does_not_end_the_loop(stage: Stage) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    stage.reactor.call_soon(fail)
    stage.reactor.call_later(0.0, fail)
    stage.reactor.call_later(0.02, stage.reactor.stop)
    stage.run()
    assert len(stage.failures) == 2


def test_work_in_a_thread_comes_back_to_the_loop(stage: Stage) -> None:
    threads: list[int] = []

    def done() -> None:
        threads.append(threading.get_ident())
        stage.reactor.stop()

    stage.reactor.in_thread(lambda: threads.append(threading.get_ident()), done)
    stage.run()
    assert len(set(threads)) == 2
    assert threads[1] == threading.get_ident()


def test_a_muted_reader_hears_of_a_reset_once_and_of_nothing_else(
    stage: Stage, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    calls: list[str] = []
    stage.reactor.add_reader(near.fileno(), lambda: calls.append("read"))
    stage.reactor.mute_reader(near.fileno(), lambda: calls.append("reset"))
    far.send(b"data that is not reported")

    def reset() -> None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        far.close()

    stage.reactor.call_later(0.01, reset)
    stage.reactor.call_later(0.05, stage.reactor.stop)
    stage.run()
    assert calls == ["reset"]


def test_a_muted_reader_reads_again_beside_a_writer(
    stage: Stage, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    calls: list[str] = []

    def write() -> None:
        calls.append("write")
        stage.reactor.add_reader(near.fileno(), read)
        stage.reactor.remove_writer(near.fileno())

    def read() -> None:
        calls.append("read")
        stage.reactor.stop()

    stage.reactor.mute_reader(near.fileno(), lambda: calls.append("reset"))
    stage.reactor.add_writer(near.fileno(), write)
    far.send(b"x")
    stage.run()
    assert calls == ["write", "read"]


def test_a_reader_that_is_kept_outlives_its_failure(
    stage: Stage, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    read: list[bytes] = []

    def fail_first() -> None:
        read.append(near.recv(1))
        if len(read) == 1:
            raise RuntimeError("a bug")
        stage.reactor.stop()

    stage.reactor.add_reader(near.fileno(), fail_first)
    stage.reactor.keep_reader(near.fileno())
    far.send(b"xy")
    stage.run()
    assert read == [b"x", b"y"]
    assert len(stage.failures) == 1


def test_a_long_turn_is_noted_and_a_short_one_is_not(stage: Stage) -> None:
    reactor = stage.reactor

    took = 0.0  # the shorter of the two, on a machine that may be busy

    def wait(seconds: float, then: Callable[[], object]) -> None:
        nonlocal took
        began = time.monotonic()
        time.sleep(seconds)
        reactor.call_soon(then)
        took = time.monotonic() - began

    def look() -> None:
        assert (reactor.longest, reactor.long_turns) == (0.0, 0)
        reactor.call_soon(partial(wait, 2 * LONG_TURN, partial(wait, LONG_TURN / 2, reactor.stop)))

    reactor.call_later(0.01, look)  # to wait for something takes no time of a turn
    stage.run()
    assert 2 * LONG_TURN <= reactor.longest < 1.0
    assert 1 <= reactor.long_turns <= (1 if took < LONG_TURN else 2)


def test_a_bell_that_is_kept_outlives_its_failure(stage: Stage) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    rings: list[int] = []

    def fail_first() -> None:
        rings.append(len(rings))
        if len(rings) == 2:
            stage.reactor.stop()
            return
        os.eventfd_write(fd, 1)
        raise RuntimeError("a bug")

    try:
        stage.reactor.add_bell(fd, fail_first)
        stage.reactor.keep_reader(fd)
        os.eventfd_write(fd, 1)
        stage.run()
    finally:
        os.close(fd)
    assert len(stage.failures) == 1
