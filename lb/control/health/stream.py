"""The connection of a check: every check has one of its own, and closes it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, TypeVar

from lb.control.health.finding import no_tls, not_connected
from lb.control.health.target import Target
from workers.contract.trust import TlsSetupError

READ_LIMIT: Final = 64 * 1024  # bytes of a head
FAREWELL: Final = 0.25  # seconds that an orderly end of the connection may take

Protocol = TypeVar("Protocol", bound=asyncio.Protocol)


async def establish(target: Target, protocol: Callable[[], Protocol]) -> tuple[asyncio.Transport, Protocol]:
    """Connects to the server, with TLS where it is spoken. Raises `CheckFailed` or `NotChecked`."""
    target.stage = "connecting"
    try:
        sock = await _connect(target)
    except OSError as error:
        raise not_connected(error) from error
    loop = asyncio.get_running_loop()
    try:
        if target.tls is None:
            return await loop.create_connection(protocol, sock=sock)
        target.stage = "shaking hands for TLS"
        context = target.context()
        name = target.tls_name
        if context.check_hostname and not name:
            raise TlsSetupError("there is no name to verify: give the pool a tls.sni, or the check a host")
        return await loop.create_connection(protocol, sock=sock, ssl=context, server_hostname=name)
    except (OSError, TlsSetupError) as error:  # ssl's errors are OSErrors
        sock.close()
        raise no_tls(error) from error
    except BaseException:
        sock.close()
        raise


async def _connect(target: Target) -> socket.socket:
    path = target.server.path
    if path is None:
        host = await target.address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
    else:
        family = socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path or (host, target.port))
    except BaseException:
        sock.close()
        raise
    return sock


class Stream:
    """A connection to read from and write to. Close it with `hang_up`."""

    __slots__ = ("_writer", "reader")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, target: Target) -> Stream:
        """Connects. Raises `CheckFailed` or `NotChecked`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_LIMIT, loop=loop)
        transport, protocol = await establish(target, lambda: asyncio.StreamReaderProtocol(reader, loop=loop))
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def send(self, data: bytes) -> None:
        """Sends `data`. Raises `OSError`."""
        self._writer.write(data)
        await self._writer.drain()

    async def hang_up(self) -> None:
        """Closes in order, if the server lets us within `FAREWELL` seconds, else at once."""
        self._writer.close()
        try:
            with contextlib.suppress(OSError):  # a reset, or the time is over: it is closed either way
                async with asyncio.timeout(FAREWELL):
                    await self._writer.wait_closed()
        finally:
            self._writer.transport.abort()
