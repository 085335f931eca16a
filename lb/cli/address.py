"""Where the admin API of a running instance is, and the token that it wants."""

from __future__ import annotations

import os
import pathlib
import re
import tomllib
from typing import Any, Final, NamedTuple

from lb.cli.client import Unreachable, command_socket
from lb.cli.defaults import default_file

TOKEN_FILE_VARIABLE: Final = "LB_ADMIN_TOKEN_FILE"
_COMMAND_SOCKET: Final = re.compile(r"(?:.*\.)?command(?:-[0-9a-f]+)?\.sock")
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]*):([0-9]{1,5})")
# Where somebody listens on every address, the loopback is one of them.
_EVERY_ADDRESS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_MAX_TOKEN_FILE: Final = 4096


class Switched(Unreachable):
    """The configuration switches the admin API off."""


class Address(NamedTuple):
    """An admin API: the path of a Unix socket, else host and port; `token` is sent over TCP alone."""

    path: str = ""
    host: str = ""
    port: int = 0
    token: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def is_command_socket(admin: str) -> bool:
    """Whether `--admin` names a command socket rather than an admin API, by the name of the file."""
    path = admin.removeprefix("unix:")
    return path != admin and _COMMAND_SOCKET.fullmatch(path.rpartition("/")[2]) is not None


def beside(command: pathlib.Path) -> pathlib.Path:
    """The default place of the admin API of the instance whose command socket is `command`:
    X.command.sock has X.admin.sock, and command.sock has admin.sock."""
    head, _, tail = command.name.rpartition("command")
    return command.with_name(f"{head}admin{tail}")


def find(config: pathlib.Path | None, admin: str | None, token_file: pathlib.Path | None) -> Address:
    """The admin API that `admin` names, else that of `config`, else that of the only instance there is.

    Raises `Unreachable`; `Switched` where the configuration says that there is none.
    """
    if admin is not None and not is_command_socket(admin):
        return _with_token(parse(admin), token_file, config, _table(config) if config else {})
    used = config
    if used is None and admin is None:
        used = default_file()
        # A file in this folder need not be that of the instance that runs here.
        if used is not None and not command_socket(used, None).exists() and not _listens(_table(used)):
            used = None
    table = _table(used) if used is not None else {}
    listen = table.get("listen")
    if listen == "off":
        raise Switched(f"the admin API is switched off: admin.listen in {used}")
    if isinstance(listen, str):
        return _with_token(parse(listen), token_file, used, table)
    return Address(path=str(beside(command_socket(config, admin))))


def parse(text: str) -> Address:
    """An address as a user writes it: unix:/path, host:port, [v6]:port or http://host:port.

    Raises `Unreachable` with what is wrong.
    """
    if text.startswith("unix:/"):
        return Address(path=text.removeprefix("unix:"))
    if text.startswith("https://"):
        raise Unreachable(f"{text}: the admin API speaks plain HTTP, name it as host:port")
    match = _HOST_AND_PORT.fullmatch(text.removeprefix("http://").removesuffix("/"))
    if match is None or not 0 < int(match[2]) < 65536:
        raise Unreachable(f"{text}: expected unix:/path, host:port or http://host:port of an admin API")
    host = match[1].strip("[]")
    return Address(host=_EVERY_ADDRESS.get(host, host), port=int(match[2]))


def _listens(table: dict[str, Any]) -> bool:
    listen = table.get("listen")
    return isinstance(listen, str) and listen.startswith("unix:") and pathlib.Path(listen[5:]).exists()


def _table(config: pathlib.Path) -> dict[str, Any]:
    """`[admin]` of `config`, read leniently: what is wrong with the file is what a reload shall find out."""
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8")).get("admin")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable(f"{config} can't be read: {error}") from error
    except tomllib.TOMLDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _with_token(
    address: Address, token_file: pathlib.Path | None, config: pathlib.Path | None, table: dict[str, Any]
) -> Address:
    if address.path:
        return address
    place = token_file
    if place is None and (variable := os.environ.get(TOKEN_FILE_VARIABLE)):
        place = pathlib.Path(variable)
    if place is None and config is not None and isinstance(table.get("token_file"), str):
        place = config.parent / table["token_file"]
    if place is None:
        raise Unreachable(
            f"the admin API at {address} wants a token: name its file"
            f" with --token-file or ${TOKEN_FILE_VARIABLE}"
        )
    return address._replace(token=_token(place))


def _token(path: pathlib.Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(_MAX_TOKEN_FILE + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable(f"the token file {path} can't be read: {error}") from error
    if not token or len(token) > _MAX_TOKEN_FILE or not token.isprintable() or " " in token:
        raise Unreachable(f"the token file {path} must hold one line of printable ASCII without spaces")
    return token
