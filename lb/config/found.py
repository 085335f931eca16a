"""The servers of each pool: those that the configuration names, then those that were found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from lb.config import text
from lb.config.pool import Pool, Server
from lb.config.positions import Path
from lb.config.problems import Report
from lb.config.schema import Config
from lb.config.serversfile import ServersFileError, read_servers_file
from lb.config.state import State
from lb.config.text import Wrong
from lb.control.spec import Discovery, FoundServer

_MOST_WARNINGS: Final = 20  # for one pool


def every_server(config: Config, discovery: Discovery, warnings: Report) -> dict[str, tuple[Server, ...]]:
    """The servers by pool. What was found and can't be used, such as a name that the pool has already, is a
    warning."""
    servers: dict[str, tuple[Server, ...]] = {}
    for pool in config.pool:
        servers[pool.name] = pool.every_server
        if pool.discovers:
            left_out: list[tuple[str, str | None]] = []
            found = discovery.servers.get(pool.name, ())
            servers[pool.name] += tuple(_usable(pool, found, left_out))
            for message, value in left_out[:_MOST_WARNINGS]:
                warnings.add(_place(pool), message, value=value)
            if (more := len(left_out) - _MOST_WARNINGS) > 0:
                warnings.add(_place(pool), f"{more} more servers that were found are not used")
    return servers


def with_files(config: Config, state: State, discovery: Discovery, errors: Report) -> Discovery:
    """`discovery`, and what is in the files that were not looked into yet. One that can't be read is an
    error."""
    servers = dict(discovery.servers)
    for pool in config.pool:
        if pool.discover is not None:
            servers[pool.name] = _in_file(config, pool, pool.discover.file, state, discovery, errors)
    return msgspec.structs.replace(discovery, servers=servers)


def _place(pool: Pool) -> Path:
    return ("pool", pool.name, "servers" if pool.discover is None else "discover")


def _in_file(
    config: Config, pool: Pool, file: str, state: State, discovery: Discovery, errors: Report
) -> tuple[FoundServer, ...]:
    found = discovery.servers.get(pool.name)
    if found is not None and state.servers_files.get(pool.name) == file:
        return found
    if not file:
        return ()  # was refused already
    path = config.resolve(file)
    try:
        return read_servers_file(path)
    except ServersFileError as error:
        errors.add(("pool", pool.name, "discover", "file"), f"{path}: {error}")
        return ()


def _usable(
    pool: Pool, found: Iterable[FoundServer], left_out: list[tuple[str, str | None]]
) -> Iterator[Server]:
    names = {server.label for server in pool.every_server}
    for one in found:
        if one.name in names:
            message = (
                f"a server that was found is called {one.name}, as another one of the pool: it is not used"
            )
            left_out.append((message, None))
            continue
        try:
            name, address = text.server_name(one.name), text.server_address(one.address)
        except Wrong as wrong:
            left_out.append((f"a server that was found is not used: {wrong.message}", one.address))
            continue
        names.add(one.name)
        yield Server(name=name, address=address, weight=one.weight, backup=one.backup)
