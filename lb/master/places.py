"""Where the command socket is, and the admin socket. The master and the commands must agree on it, so both
look here."""

from __future__ import annotations

import hashlib
import os
import pathlib
import stat
import tempfile

from lb.master.failures import StartError, reason

_NAME = "command"
_ADMIN = "admin"


def folder() -> pathlib.Path:
    """The folder of command sockets: /run/lb for root, a private one for others."""
    if os.geteuid() == 0:
        return pathlib.Path("/run/lb")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return pathlib.Path(runtime, "lb")
    return pathlib.Path(tempfile.gettempdir(), f"lb-{os.geteuid()}")


def make_folder(path: pathlib.Path) -> None:
    """Makes the folder (only its user gets in, unless it is root's), or checks the one that is there:
    in the temporary folder anybody could have made it. Raises `StartError`."""
    private = os.geteuid() != 0
    try:
        path.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise StartError(
            f"the folder {path} for the command socket can't be made: {reason(error)}"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StartError(f"{path} must be a folder that only its owner, uid {os.geteuid()}, can write to")


def beside_pid_file(pid_file: pathlib.Path) -> pathlib.Path:
    """The command socket of an instance with a pid file: /run/lb/lb.pid has /run/lb/lb.command.sock."""
    return pid_file.with_name(f"{pid_file.name.removesuffix('.pid')}.{_NAME}.sock")


def default() -> pathlib.Path:
    """The command socket of an instance without a pid file."""
    return folder() / f"{_NAME}.sock"


def second(config: pathlib.Path) -> pathlib.Path:
    """Where an instance is that found `default` taken: named after its configuration file."""
    digest = hashlib.sha256(os.path.abspath(os.fsencode(config))).hexdigest()[:12]
    return folder() / f"{_NAME}-{digest}.sock"


def admin_beside(command: pathlib.Path) -> pathlib.Path:
    """The admin socket of the instance whose command socket is `command`: lb.command.sock has lb.admin.sock,
    command-X.sock has admin-X.sock."""
    head, _, tail = command.name.rpartition(_NAME)
    return command.with_name(f"{head}{_ADMIN}{tail}")


def same_file(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether both name the same file, which need not be there any more."""
    if os.path.abspath(one) == os.path.abspath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def all_defaults() -> list[pathlib.Path]:
    """Every command socket in the default folder."""
    return [default(), *sorted(folder().glob(f"{_NAME}-*.sock"))]
