"""One configuration as the workers get it: the descriptors that go with it, and the messages."""

from __future__ import annotations

import fcntl
import os
import pathlib
import pwd
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from lb.master.failures import reason
from lb.master.listeners import Served
from lb.master.plan import Plan, same
from workers.contract import snapshot as snapshots
from workers.contract.messages import (
    AccessLogFd,
    AnyMessage,
    Attach,
    CertificateFd,
    FdRole,
    ListenerFd,
    Prepare,
    SnapshotFd,
)

# Far below MAX_FDS and, with the longest names, below MAX_BYTES.
_PER_MESSAGE: Final = 100
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class DeployError(Exception):
    """The descriptors of a configuration can't be made; `str()` says which and why."""


class Envelope(NamedTuple):
    """A message with the descriptors that travel beside it (they stay the deployment's)."""

    message: AnyMessage
    fds: tuple[int, ...]


class Deployment:
    """Holds the descriptors of `plan` until `close`; `envelopes` is what a worker is sent."""

    def __init__(self, plan: Plan) -> None:
        """Raises `DeployError`; nothing is left open then."""
        self.plan = plan
        self.generation = plan.snapshot.generation
        self._fds: list[tuple[FdRole, int]] = []
        self._log_fd: int | None = None
        self._control_fd: int | None = None
        try:
            self._fds.append((SnapshotFd(), sealed("lb-snapshot", snapshots.encode(plan.snapshot))))
            self._control_fd = sealed("lb-control-spec", msgspec.msgpack.encode(plan.control))
            for (listener, certificate), pem in plan.certificates.items():
                role = CertificateFd(listener=listener, certificate=certificate)
                self._fds.append((role, sealed("lb-certificate", pem)))
            self._log_fd = open_access_log(plan)
        except OSError as error:
            self.close()
            raise DeployError(f"no descriptors for the new configuration: {reason(error)}") from error
        except DeployError:
            self.close()
            raise

    def absorb(self, plan: Plan) -> bool:
        """Takes `plan` in where it serves the same and only what was found before it differs."""
        if not same(self.plan, plan):
            return False
        self.plan = plan.again(self.generation, plan.workers)
        return True

    @property
    def log_fd(self) -> int | None:
        """The access log, open for appending; `None` when it is off."""
        return self._log_fd

    @property
    def for_control(self) -> tuple[int, ...]:
        """The encoded snapshot and the encoded `ControlSpec`."""
        assert self._control_fd is not None
        return self._fds[0][1], self._control_fd

    def envelopes(self, served: Sequence[Served]) -> Iterator[Envelope]:
        """`Attach`es and the `Prepare` for a worker that shall serve `served` afterwards."""
        names = self.plan.listener_names
        everything = list(self._fds)
        for item in served:
            role = ListenerFd(listener=names[item.address], address=item.address, home=item.home)
            everything.append((role, item.socket.fileno()))
        if self._log_fd is not None:
            everything.append((AccessLogFd(), self._log_fd))
        while len(everything) > _PER_MESSAGE:
            part, everything = everything[:_PER_MESSAGE], everything[_PER_MESSAGE:]
            yield _envelope(Attach, self.generation, part)
        yield _envelope(Prepare, self.generation, everything)

    def reopen_log(self) -> int | None:
        """Opens the access log's path anew. Raises `DeployError`, and keeps the old file then."""
        fresh = open_access_log(self.plan)
        if self._log_fd is not None:
            os.close(self._log_fd)
        self._log_fd = fresh
        return fresh

    def close(self) -> None:
        """Gives the descriptors back; workers that were sent them keep their own."""
        for _, fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for own in (self._log_fd, self._control_fd):
            if own is not None:
                os.close(own)
        self._log_fd = self._control_fd = None


def _envelope(kind: type[Attach | Prepare], generation: int, part: list[tuple[FdRole, int]]) -> Envelope:
    message = kind(generation=generation, roles=tuple(role for role, _ in part))
    return Envelope(message, tuple(fd for _, fd in part))


def sealed(name: str, data: bytes) -> int:
    """A memfd with `data` that nobody can change any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_access_log(plan: Plan) -> int | None:
    """The access log for appending, `None` when it is off. A new file belongs to the workers' user, so
    that what rotates logs finds them with one owner. Raises `DeployError`."""
    if plan.snapshot.access_log.path == "off":
        return None
    path = plan.access_log
    try:
        if path is None:
            return fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        return _open_owned(path, plan.config.process.user)
    except OSError as error:
        name = "standard output" if path is None else str(path)
        raise DeployError(f"access_log.path: {name} can't be opened: {reason(error)}") from error


def _open_owned(path: pathlib.Path, user: str | None) -> int:
    # O_NONBLOCK: opening a named pipe that nobody reads must not stop the master.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
    except FileExistsError:
        fd = os.open(path, flags)
    else:
        if user is not None and os.geteuid() == 0:
            _give_to(fd, user)
    os.set_blocking(fd, True)
    return fd


def _give_to(fd: int, user: str) -> None:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise DeployError(f'process.user = "{user}": no such user on this machine any more') from None
    os.fchown(fd, entry.pw_uid, entry.pw_gid)
