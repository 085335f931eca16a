"""Forking a child: what it keeps, what it drops, and what it becomes."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import os
import pkgutil
import pwd
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple, NoReturn

from lb.master import signals
from lb.master.failures import StartError
from workers.contract import messages
from workers.contract.bells import Bells
from workers.contract.ledger import Ledger
from workers.contract.scoreboard import Scoreboard

# What a child runs with its end of the channel; the exit status.
Main = Callable[[socket.socket], int]
RunWorker = Callable[[int, socket.socket, Scoreboard, Bells, Ledger], int]
RunKeeper = Callable[[int, socket.socket, Ledger], int]
# With the listening sockets of metrics and admin API, where there are such.
RunControl = Callable[[socket.socket, Scoreboard, Bells, socket.socket | None, socket.socket | None], int]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_NO_NEW_PRIVS: Final = 38
_EXIT_CRASHED: Final = 70  # sysexits: internal software error
# What ours import in functions or load by name, besides what they import at their head.
_WORKER_LIBRARIES: Final = ("encodings.idna", "encodings.latin_1", "msgspec", "ssl")
_LIBRARIES: Final = ("yaml", "cryptography.x509", "asyncio", "aiohttp.web", "aiodns", "prometheus_client")
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Programs(NamedTuple):
    """What the children run."""

    worker: RunWorker
    control: RunControl
    keeper: RunKeeper


class Identity(NamedTuple):
    """Whom a child runs as."""

    name: str
    uid: int
    gid: int


class Spawned(NamedTuple):
    """A fresh child and the master's end of its channel."""

    pid: int
    channel: socket.socket


def identity(user: str | None) -> Identity | None:
    """Whom `process.user` names; `None` keeps the master's own. Raises `StartError`."""
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise StartError(f'process.user = "{user}": no such user on this machine') from None
    if os.geteuid() not in (0, entry.pw_uid):
        raise StartError(f'process.user = "{user}": only root can change the user; leave it out otherwise')
    return Identity(user, entry.pw_uid, entry.pw_gid) if os.geteuid() == 0 else None


def preload() -> Programs:
    """Imports everything that children run, so that a replacement never runs other code than its
    predecessor, even when a new version was installed meanwhile. No import may start a thread: forking
    would lose it."""
    programs = preload_workers()
    for _ in preload_rest():
        pass
    return programs


def preload_workers() -> Programs:
    """The part that workers and keepers run. Before the control process is forked, `preload_rest` has to
    have come to its end."""
    for name in _WORKER_LIBRARIES:
        importlib.import_module(name)
    _import_all("workers")
    worker: RunWorker = importlib.import_module("workers.main").run
    keeper: RunKeeper = importlib.import_module("workers.keeper").run
    return Programs(worker, _run_control, keeper)


def preload_rest() -> Iterator[None]:
    """What the control process runs, and the master seldom, in steps: it takes longer than all the rest of
    the start, and nobody who wants to be served needs it. Raises `ImportError`."""
    for name in _LIBRARIES:
        importlib.import_module(name)
        yield
    for name in ("lb.config", "lb.control", "lb.metrics", "lb.admin", "lb.dashboard"):
        _import_all(name)
        yield


def _run_control(
    channel: socket.socket,
    board: Scoreboard,
    bells: Bells,
    metrics: socket.socket | None,
    admin: socket.socket | None,
) -> int:
    run: RunControl = importlib.import_module("lb.control.main").run
    return run(channel, board, bells, metrics, admin)


def _import_all(name: str) -> None:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)


def freeze() -> None:
    """Keeps the collector off what exists now, so that children go on sharing its pages, and lets it collect
    what comes. (What could be collected of that is little, and looking for it takes long.)"""
    gc.freeze()
    gc.enable()


def spawn(name: str, kept: Collection[int], main: Main, user: Identity | None) -> Spawned:
    """Forks a child that is called `name` and runs `main`, with the descriptors `kept` besides its channel
    and the standard three. Raises `OSError` where the system refuses."""
    ours, theirs = messages.pair()
    try:
        with signals.blocked() as unblock:
            pid = os.fork()
            if pid == 0:
                _be_child(name, {0, 1, 2, theirs.fileno(), *kept}, lambda: main(theirs), user, unblock)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Spawned(pid, ours)


def _be_child(
    name: str,
    kept: Collection[int],
    main: Callable[[], int],
    user: Identity | None,
    unblock: Callable[[], None],
) -> NoReturn:
    """Never returns: whatever happens, the child doesn't go on as a second master."""
    status = _EXIT_CRASHED
    try:
        signals.reset_in_child()
        close_all_but(kept)
        _prctl(_PR_SET_NAME, name.encode())
        if user is not None:
            _drop_privileges(user)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        faulthandler.enable(file=2)
        faulthandler.register(signals.DUMP_STACKS, file=2, all_threads=True)
        unblock()
        status = main()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def close_all_but(kept: Collection[int]) -> None:
    """Closes every descriptor that is not in `kept`: other slots' listeners, the master's ends of the
    channels (no end of file would reach anybody), its pipes, locks and files."""
    # The listing's own descriptor is among them, closed already by the time its turn comes.
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _drop_privileges(user: Identity) -> None:
    os.initgroups(user.name, user.gid)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def end_with_parent() -> None:
    """The kernel kills this process when its parent ends, also after an execve (prctl(2))."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, argument: bytes | int) -> None:
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, value, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def raise_open_files() -> int:
    """Raises the soft limit of open files to the hard one, which is returned."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
