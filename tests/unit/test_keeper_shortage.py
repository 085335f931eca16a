"""The kernel counts descriptors on their way through Unix sockets for all processes of a user together, and
takes no more than one process may have open (unix(7), ETOOMANYREFS). Only capabilities lift that, so this
runs in a process without them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.harness.workers import SNAPSHOT, DrivenWorker
from tests.unit.test_keeper import Play
from workers.contract.messages import Reclaimed

OPEN_FILES = 200


@contextlib.contextmanager
def shortage() -> Iterator[None]:
    """So many descriptors are on their way, and nobody takes them, that no other can be sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        while not is_short(ours):
            pass
        yield


def is_short(sock: socket.socket) -> bool:
    """Sends some, where there is room."""
    try:
        socket.send_fds(sock, [b"x"], [0] * 100)
    except OSError as error:
        assert error.errno == errno.ETOOMANYREFS
        return True
    return False


def opened_meanwhile() -> None:
    """A tunnel that is opened in a shortage is safe when that is over."""
    play = Play()
    with shortage():
        made, _, _ = play.site.tunnel(play.worker, age=10)
        play.worker.worker.keeping.tick()
        before = made.crash_safe
    play.worker.worker.keeping.tick()
    assert (before, made.crash_safe) == (False, True)
    play.close()


def reclaimed_meanwhile() -> None:
    """A keeper waits for the end of a shortage, without haste, and then gives the tunnels back."""
    play = Play()
    play.worker.die()
    play.worker.close()
    play.keeper.settle()
    play.site.workers[0] = play.worker = DrivenWorker(play.site, 0)
    play.keeper.attend(play.worker, reclaim=True)
    play.site.serve(play.worker, SNAPSHOT)
    with shortage():
        play.keeper.keeper.turn(0)
        before = time.monotonic()
        play.keeper.keeper.turn(0.02)
        assert time.monotonic() - before >= 0.015
    assert play.answer() == Reclaimed(restored=1, closed=0)
    play.close()


@pytest.mark.parametrize("case", [opened_meanwhile, reclaimed_meanwhile])
def test_a_shortage_of_the_moment_costs_no_tunnel(case: object) -> None:
    command = [sys.executable, "-m", __name__, getattr(case, "__name__", "")]
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("needs setpriv (util-linux), or another user than root")
        command = [setpriv, "--bounding-set", "-sys_admin,-sys_resource", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    {"opened_meanwhile": opened_meanwhile, "reclaimed_meanwhile": reclaimed_meanwhile}[sys.argv[1]]()
