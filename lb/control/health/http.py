"""The HTTP check: a GET on a connection of its own, the answer's status, and what its body must hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace

from lb.control.health.finding import CheckFailed, Finding, broken
from lb.control.health.stream import establish
from lb.control.health.target import Target
from workers.contract.cells import CheckResult

BODY_LIMIT: Final = 64 * 1024  # bytes of the body in which the text must occur
CHECK_LIMIT: Final = 256 * 1024  # bytes that a server may send in one check, whatever they are
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class _Bounded(ResponseHandler):
    """Reads an answer, and gives up on one that has no end: aiohttp bounds neither the answers before the
    last one nor what stands beside the chunks."""

    __slots__ = ("received",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.received = 0

    def data_received(self, data: bytes) -> None:
        """Counts, and passes it on."""
        self.received += len(data)
        if self.received <= CHECK_LIMIT:
            super().data_received(data)
        elif self.transport is not None:
            self.transport.abort()


class _Connector(aiohttp.BaseConnector):
    """Connects to the target whatever the URL says, as the other checks do: aiohttp's own connectors know
    no TLS on Unix sockets, and blame a failed handshake on the connection."""

    def __init__(self, target: Target) -> None:
        super().__init__(force_close=True)
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._protocol: _Bounded | None = None

    @property
    def flooded(self) -> bool:
        """Whether the server sent more than a check takes."""
        return self._protocol is not None and self._protocol.received > CHECK_LIMIT

    def abort(self) -> None:
        """Closes the connection for good: over TLS aiohttp leaves it waiting for the server's farewell."""
        if self._transport is not None:
            self._transport.abort()

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        self._transport, self._protocol = await establish(self._target, lambda: _Bounded(loop))
        self._target.stage = "waiting for the answer"
        return self._protocol


async def check_http(target: Target, stack: AsyncExitStack) -> Finding:
    """Checks once. Raises `CheckFailed` or `NotChecked`."""
    connector = _Connector(target)
    stack.callback(connector.abort)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=_NO_TIMEOUT,  # the whole check has one
        )
    )
    headers = {
        "Host": target.host_field,
        "User-Agent": "lb-health",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    try:
        # The scheme says nothing here: TLS is the connector's business.
        url = f"http://server{target.spec.path}"
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            return await _judge(target, response)
    except (aiohttp.ClientError, OSError) as error:
        if connector.flooded:
            detail = f"answered more than {CHECK_LIMIT} bytes while {target.stage}"
            raise CheckFailed(CheckResult.PROTOCOL, detail) from error
        raise _failure(error, target.stage) from error


def _failure(error: aiohttp.ClientError | OSError, stage: str) -> CheckFailed:
    match error:
        case aiohttp.ServerDisconnectedError():
            return CheckFailed(CheckResult.PROTOCOL, f"closed while {stage}")
        case OSError():
            return broken(error, stage)
        case aiohttp.ClientResponseError():
            return CheckFailed(CheckResult.PROTOCOL, f"malformed answer: {_one_line(error.message)}")
    return CheckFailed(CheckResult.PROTOCOL, f"while {stage}: {_one_line(str(error))}")


async def _judge(target: Target, response: aiohttp.ClientResponse) -> Finding:
    spec = target.spec
    if not any(low <= response.status <= high for low, high in spec.status):
        raise CheckFailed(CheckResult.STATUS, f"expected status {ranges(spec.status)}, got {response.status}")
    if spec.body is not None:
        target.stage = "reading the body"
        await _find(spec.body.encode(), response)
    return Finding(CheckResult.OK, f"status {response.status}")


async def _find(text: bytes, response: aiohttp.ClientResponse) -> None:
    """Reads until `text` came, or the end, or the limit."""
    body = bytearray()
    while len(body) < BODY_LIMIT:
        data = await response.content.read(BODY_LIMIT - len(body))
        if not data:
            break
        begin = max(0, len(body) - len(text))
        body += data
        if body.find(text, begin) >= 0:
            return
    raise CheckFailed(CheckResult.BODY, f"the body's first {len(body)} bytes do not hold {text.decode()!r}")


def ranges(status: Sequence[tuple[int, int]]) -> str:
    """Ranges of status codes, as the configuration writes them."""
    return ",".join(f"{low}-{high}" if low != high else f"{low}" for low, high in status)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
