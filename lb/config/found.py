"""The servers of each pool: those that the configuration names, then those that were found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lb.config import text
from lb.config.pool import Pool, Server
from lb.config.positions import Path
from lb.config.problems import Report
from lb.config.schema import Config
from lb.config.serversfile import ServersFileError, read_servers_file
from lb.config.state import State
from lb.config.text import Wrong
from lb.control.spec import Discovery, FoundServer


def every_server(
    config: Config, state: State, discovery: Discovery, errors: Report, warnings: Report
) -> dict[str, tuple[Server, ...]]:
    """The servers by pool. A file that can't be read is an error; what was found and can't be used, such as
    a name that the pool has already, is a warning."""
    servers: dict[str, tuple[Server, ...]] = {}
    for pool in config.pool:
        servers[pool.name] = pool.every_server
        if pool.discovers:
            found = _found(config, pool, state, discovery, errors)
            servers[pool.name] += tuple(_usable(pool, found, warnings))
    return servers


def _place(pool: Pool) -> Path:
    return ("pool", pool.name, "servers" if pool.discover is None else "discover")


def _found(
    config: Config, pool: Pool, state: State, discovery: Discovery, errors: Report
) -> tuple[FoundServer, ...]:
    """What discovery found; where it has not looked into the file yet, what is in there now."""
    found = discovery.servers.get(pool.name)
    if pool.discover is None:
        return found or ()
    if found is not None and state.servers_files.get(pool.name) == pool.discover.file:
        return found
    if not pool.discover.file:
        return ()  # was refused already
    path = config.resolve(pool.discover.file)
    try:
        return read_servers_file(path)
    except ServersFileError as error:
        errors.add(("pool", pool.name, "discover", "file"), f"{path}: {error}")
        return ()


def _usable(pool: Pool, found: Iterable[FoundServer], warnings: Report) -> Iterator[Server]:
    names = {server.label for server in pool.every_server}
    for one in found:
        if one.name in names:
            message = (
                f"a server that was found is called {one.name}, as another one of the pool: it is not used"
            )
            warnings.add(_place(pool), message)
            continue
        try:
            name, address = text.server_name(one.name), text.server_address(one.address)
        except Wrong as wrong:
            message = f"a server that was found is not used: {wrong.message}"
            warnings.add(_place(pool), message, value=one.address)
            continue
        names.add(one.name)
        yield Server(name=name, address=address, weight=one.weight, backup=one.backup)
