"""Bells: whoever watches wakes once for each ring, however many watch, and none has to read."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from workers.contract.bells import Bells

# The children only wait and leave: that other tests have started threads does not matter to them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

DEADLINE = 10.0  # seconds


@pytest.fixture
def bells() -> Iterator[Bells]:
    made = Bells.create()
    yield made
    os.close(made.workers)
    os.close(made.control)


def watch(fd: int) -> select.epoll:
    """An epoll set with `fd`, edge-triggered."""
    watching = select.epoll()
    watching.register(fd, select.EPOLLIN | select.EPOLLET)
    return watching


def test_every_set_sees_every_ring(bells: Bells) -> None:
    sets = [watch(bells.workers) for _ in range(3)]
    for watching in sets:
        assert watching.poll(0) == []
    for _ in range(3):
        bells.ring_workers()
        for watching in sets:
            assert watching.poll(DEADLINE) == [(bells.workers, select.EPOLLIN)]
            assert watching.poll(0) == [], "one ring is one edge"
    for watching in sets:
        watching.close()


def test_rings_while_nobody_looks_are_one_edge(bells: Bells) -> None:
    watching = watch(bells.workers)
    for _ in range(100):
        bells.ring_workers()
    assert len(watching.poll(DEADLINE)) == 1
    assert watching.poll(0) == []
    watching.close()


def _child(bells: Bells, out: int, rings: int) -> None:
    """Tells by a byte that it watches, and by one more for each ring that it saw."""
    watching = watch(bells.workers)
    os.write(out, b".")
    for _ in range(rings):
        if not watching.poll(DEADLINE):
            os._exit(1)
        os.write(out, b".")
    os._exit(0)


def test_every_process_sees_every_ring(bells: Bells) -> None:
    children = []
    for _ in range(3):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                _child(bells, writer, rings=2)
            finally:
                os._exit(2)
        os.close(writer)
        children.append((pid, reader))
    for ring in range(3):
        for _, reader in children:
            assert os.read(reader, 1) == b"."
        if ring < 2:
            bells.ring_workers()
    for pid, reader in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(reader)


def test_the_bell_of_control_is_silent_once_it_was_read(bells: Bells) -> None:
    waiting = select.epoll()
    waiting.register(bells.control, select.EPOLLIN)
    bells.silence_control()
    assert waiting.poll(0) == []
    bells.ring_control()
    bells.ring_control()
    assert waiting.poll(DEADLINE) == [(bells.control, select.EPOLLIN)]
    bells.silence_control()
    assert waiting.poll(0) == []
    bells.ring_control()
    assert len(waiting.poll(DEADLINE)) == 1
    waiting.close()


def test_a_bell_that_is_full_still_rings(bells: Bells) -> None:
    watching = watch(bells.workers)
    os.eventfd_write(bells.workers, 2**64 - 2)
    assert len(watching.poll(DEADLINE)) == 1
    bells.ring_workers()
    assert len(watching.poll(DEADLINE)) == 1
    watching.close()


def test_bells_do_not_survive_exec(bells: Bells) -> None:
    assert not os.get_inheritable(bells.workers)
    assert not os.get_inheritable(bells.control)
