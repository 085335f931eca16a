"""Finds a running instance by its command socket and asks it something."""

from __future__ import annotations

import pathlib
import re
import socket
import time
import tomllib
from typing import Final

import msgspec

from lb.cli.defaults import default_file
from lb.master import places, sockets
from lb.master.failures import reason
from lb.master.report import Reply, Request

# A reload waits for one that is under way, then has its own deadlines.
TIMEOUT: Final = 60.0
_MAX_REPLY: Final = 1024 * 1024
_PID_FILE: Final = re.compile(r"""^\s*(?:process\.)?pid_file\s*=\s*["']([^"']+)["']""", re.MULTILINE)


class Unreachable(Exception):
    """No running instance answers; `str()` says where it was looked for."""


def ask(request: Request, config: pathlib.Path | None, admin: str | None, timeout: float = TIMEOUT) -> Reply:
    """Sends `request` to the instance that `admin` or `config` names, else to the only one there is.

    Raises `Unreachable`.
    """
    place = command_socket(config, admin)
    if config is not None:
        request = msgspec.structs.replace(request, config=str(config.absolute()))
    try:
        answer = _exchange(place, request, timeout)
    except TimeoutError:
        raise Unreachable(f"lb at {place} does not answer within {timeout:g}s") from None
    except OSError as error:
        raise Unreachable(f"no lb answers at {place}: {reason(error)}") from error
    try:
        return msgspec.json.decode(answer, type=Reply)
    except msgspec.MsgspecError as error:
        why = "it closed the connection" if not answer else str(error)
        raise Unreachable(f"lb at {place} gave no usable answer: {why}") from error


def _exchange(place: pathlib.Path, request: Request, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(place))
        connection.sendall(msgspec.json.encode(request) + b"\n")
        answer = bytearray()
        while len(answer) <= _MAX_REPLY and not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            part = connection.recv(65536)
            if not part:
                break
            answer += part
        return bytes(answer)


def command_socket(config: pathlib.Path | None, admin: str | None) -> pathlib.Path:
    """Where the command socket is that `admin` or `config` names, else the only one. Raises `Unreachable`."""
    if admin is not None:
        if not admin.startswith("unix:/"):
            raise Unreachable(f"--admin {admin}: expected unix:/path of the command socket")
        return pathlib.Path(admin.removeprefix("unix:"))
    if config is not None:
        return _of_config(config)
    fallback = default_file()
    if fallback is not None and (place := _of_config(fallback)).exists():
        return place
    return _only_one()


def _of_config(config: pathlib.Path) -> pathlib.Path:
    pid_file = _pid_file(config)
    if pid_file is not None:
        return places.beside_pid_file(pid_file)
    second = places.second(config)
    return second if second.exists() and sockets.answers(str(second)) else places.default()


def _pid_file(config: pathlib.Path) -> pathlib.Path | None:
    """`process.pid_file`, read leniently: what is wrong with the file is what a reload shall find out."""
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable(f"{config} can't be read: {error}") from error
    try:
        found = tomllib.loads(text).get("process", {}).get("pid_file")
    except (tomllib.TOMLDecodeError, AttributeError):
        match = _PID_FILE.search(text)
        found = match[1] if match else None
    return config.parent.absolute() / found if isinstance(found, str) else None


def _only_one() -> pathlib.Path:
    found = [place for place in places.all_defaults() if place.exists() and sockets.answers(str(place))]
    if not found:
        raise Unreachable(f"no lb runs here (looked in {places.folder()}); name its file with -c")
    if len(found) > 1:
        listed = ", ".join(f"unix:{place}" for place in found)
        raise Unreachable(f"several run here, name one with -c FILE or --admin: {listed}")
    return found[0]
