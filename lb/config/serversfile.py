"""Files with servers that other programs write, in the format of Prometheus's file_sd: JSON or YAML,

    [{"targets": ["10.0.0.1:9000", "10.0.0.2:9000"], "labels": {"weight": "2", "backup": "true"}}]

Labels that mean something here are `weight`, `backup` and, for a single target, `name`; others are left
alone, since the same file may serve Prometheus.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any, Final

from lb.config import text
from lb.config.files import read_regular
from lb.config.text import Wrong
from lb.control.spec import FoundServer

MAX_BYTES: Final = 4 * 1024 * 1024
# What the scoreboard has room for.
_MAX_SERVERS: Final = 4096
_MAX_WEIGHT: Final = 1000
# What a YAML parser says bit by bit, see `_yaml`: a server with ten labels has 25 parts.
_MAX_DEPTH: Final = 16
_MAX_PARTS: Final = 500_000
_BOOLEANS: Final = {"true": True, "false": False, "1": True, "0": False}


class ServersFileError(ValueError):
    """A file that can't be used; the text says why and what to do, without the file's name."""


def read_servers_file(path: pathlib.Path) -> tuple[FoundServer, ...]:
    """The servers in the file `path`, in its order. Raises `ServersFileError`."""
    try:
        content, _ = read_regular(path, MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ServersFileError("there is no such file: write [] into it to start without servers") from error
    except OSError as error:
        raise ServersFileError(f"can't be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ServersFileError(f"is larger than {MAX_BYTES >> 20} MiB")
    return parse_servers(content, as_json=path.suffix.lower() == ".json")


def parse_servers(content: bytes, *, as_json: bool) -> tuple[FoundServer, ...]:
    """The servers in `content`, which is JSON or YAML. Raises `ServersFileError`."""
    servers: dict[str, FoundServer] = {}
    for server in _servers(_decode(content, as_json=as_json)):
        if server.name in servers:
            raise ServersFileError(f"two servers are called {server.name}: each stands once")
        if len(servers) == _MAX_SERVERS:
            raise ServersFileError(f"has more than {_MAX_SERVERS} servers")
        servers[server.name] = server
    return tuple(servers.values())


def _decode(content: bytes, *, as_json: bool) -> object:
    kind = "JSON" if as_json else "YAML"
    try:
        decoded = content.decode("utf-8-sig")
        return json.loads(decoded) if as_json else _yaml(decoded)
    except UnicodeDecodeError as error:
        raise ServersFileError("is not UTF-8") from error
    except RecursionError as error:
        raise ServersFileError("is nested too deep") from error
    except ValueError as error:
        what = _cut(" ".join(str(error).split()))
        raise ServersFileError(f"is no valid {kind}: {what}") from error


def _yaml(content: str) -> object:
    import yaml  # here, since it takes long and few have such files

    # Scalars stay text. The parser in C is ten times as fast; whether it is there depends on how the package
    # was built.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    depth = 0
    try:
        # Building nested values in C ends the process where they are too deep; this step does not nest.
        for part, event in enumerate(yaml.parse(content, loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH or part > _MAX_PARTS:
                raise ServersFileError("is nested too deep" if depth > _MAX_DEPTH else "has too many parts")
            if isinstance(event, yaml.AliasEvent):
                # A kilobyte of them can stand for more than any memory holds.
                alias = _cut(str(event.anchor))
                raise ServersFileError(f"has an alias, *{alias}: write out what it stands for")
        return yaml.load(content, loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _servers(groups: object) -> Iterator[FoundServer]:
    if not isinstance(groups, list):
        raise ServersFileError('holds no list: expected [{"targets": ["10.0.0.1:9000"]}]')
    for index, group in enumerate(groups):
        try:
            yield from _group(group)
        except Wrong as wrong:
            hint = f" ({wrong.hint})" if wrong.hint else ""
            raise ServersFileError(_cut(f"[{index}]: {wrong.message}{hint}")) from wrong


def _group(group: Any) -> Iterator[FoundServer]:
    if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
        raise Wrong('expected an object with a list "targets"')
    unknown = [key for key in group if key not in ("targets", "labels")]
    if unknown:
        raise Wrong(f'unknown key "{_cut(str(unknown[0]), 80)}": only "targets" and "labels" are known')
    labels = group.get("labels") or {}
    if not isinstance(labels, dict):
        raise Wrong('"labels" is no object')
    targets = group["targets"]
    name = labels.get("name")
    if name is not None and len(targets) != 1:
        raise Wrong('the label "name" is for a single target')
    weight, backup = _weight(labels.get("weight", 1)), _backup(labels.get("backup", False))
    for target in targets:
        if not isinstance(target, str):
            raise Wrong(f'a target is a string such as "10.0.0.1:9000", not {_shown(target)}')
        address = _address(target)
        label = address if name is None else text.server_name(_text("name", name))
        yield FoundServer(name=label, address=address, weight=weight, backup=backup)


def _address(target: str) -> str:
    try:
        if target.startswith("unix:"):
            raise Wrong("a Unix socket stands in the configuration itself")
        return text.server_address(target)
    except Wrong as wrong:
        raise Wrong(f"target {_shown(target)}: {wrong.message}", wrong.hint) from wrong


def _weight(value: object) -> int:
    digits = _text("weight", value)
    if not digits.isascii() or not digits.isdigit() or len(digits) > 4 or not 1 <= int(digits) <= _MAX_WEIGHT:
        raise Wrong(f'the label "weight" is {_shown(value)}: expected a number from 1 to {_MAX_WEIGHT}')
    return int(digits)


def _backup(value: object) -> bool:
    backup = _BOOLEANS.get(_text("backup", value).lower())
    if backup is None:
        raise Wrong(f'the label "backup" is {_shown(value)}: expected "true" or "false"')
    return backup


def _text(label: str, value: object) -> str:
    if not isinstance(value, str | int | float):
        raise Wrong(f'the label "{label}" is {_shown(value)}: expected a text')
    return str(value)


def _shown(value: object) -> str:
    """`value` as a message has it. What is in a list or an object is never turned into text: it can be of
    any size."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return _cut(repr(value[:80] if isinstance(value, str) else value), 80)


def _cut(shown: str, most: int = 300) -> str:
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
