"""What the bench's clients ask and what its server answers: requests of which no two are alike, with answers
that prove which request they belong to.

A path is `/KIND/...`, PATH bytes long. The server ends the body of its answer with the path and ` ok\\n`, so
that an answer that was swapped, cut or repeated on the way is noticed by comparing bytes.
"""

from __future__ import annotations

import os
import struct
from typing import Final

PATH: Final = 56
TAIL: Final = PATH + 4  # bytes at the end of a body that name the request
SIZES: Final[dict[str, int]] = {
    "small": TAIL,
    "10k": 10_240,
    "1m": 1 << 20,
    "post": TAIL,
    "browser": TAIL,
}  # bytes of a body
POSTED: Final = 10_240
ROUTES: Final = 500
_LETTERS: Final = {"small": b"s", "10k": b"k", "1m": b"m", "post": b"p", "browser": b"s"}
_AGENTS: Final = (
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0",
    b"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/%d.4 Safari/605.1.15",
    b"Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 Firefox/%d.0",
)


class Request:
    """A request and the end of its answer's body."""

    __slots__ = ("data", "tail")

    def __init__(self, data: bytes, tail: bytes) -> None:
        self.data = data
        self.tail = tail


class Requests:
    """What is asked, request by request."""

    __slots__ = ()

    def following(self) -> Request:
        """The next request."""
        raise NotImplementedError


def _agents(number: int) -> list[bytes]:
    made = []
    for index in range(number):
        agent = _AGENTS[index % len(_AGENTS)]
        versions = (90 + index,) * agent.count(b"%d")
        made.append(agent % versions)
    return made


def _fields(kind: str, *, close: bool) -> tuple[list[bytes], bytes]:
    """The fields before and after the cookie; the first in many variants."""
    if kind == "browser":
        before = [
            b" HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\n"
            b'sec-ch-ua: "Chromium";v="%d", "Not?A_Brand";v="8"\r\nsec-ch-ua-mobile: ?0\r\n'
            b'sec-ch-ua-platform: "Linux"\r\nUser-Agent: %b\r\n'
            b"Accept: application/json, text/plain, */*\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.7\r\n"
            b"Accept-Encoding: gzip, deflate, br, zstd\r\nSec-Fetch-Site: same-origin\r\n"
            b"Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"
            b"Referer: https://shop.example.com/aisle/%d\r\nPriority: u=1, i\r\nCookie: session="
            % (100 + index, agent, index)
            for index, agent in enumerate(_agents(61))
        ]
        return before, b"; theme=dark; _ga=GA1.1.1203948571.1763800000\r\n\r\n"
    before = [
        b" HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: %b\r\nAccept: */*\r\nCookie: session=" % agent
        for agent in _agents(61)
    ]
    after = b"\r\n"
    if close:
        after += b"Connection: close\r\n"
    if kind == "post":
        after += b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % POSTED
        return before, after + os.urandom(POSTED)
    return before, after + b"\r\n"


_BLOCK: Final = 1000  # requests whose numbers differ in the last digits only


class Gets(Requests):
    """Requests (POST, too) with another path, cookie and user agent each time."""

    __slots__ = ("_after", "_before", "_cookie", "_cookies", "_head", "_items", "_number", "_path", "_starts")

    def __init__(self, kind: str, *, close: bool = False, routes: int = 1) -> None:
        self._before, self._after = _fields(kind, close=close)
        method = b"POST /" if kind == "post" else b"GET /"
        self._path = len(method) - 1  # where the path begins
        self._starts = [method + _LETTERS[kind] + b"/r%03d/item-" % route for route in range(routes)]
        self._items = [
            b"%03d/view?page=%03d&from=search-%06d" % (low, low % 97, low * 7919 % 999_983)
            for low in range(_BLOCK)
        ]
        self._cookies = [b"%08x" % (low * 0x9E3779B1 & 0xFFFFFFFF) for low in range(_BLOCK)]
        self._number = int.from_bytes(os.urandom(3), "big")
        self._begin_block()

    def _begin_block(self) -> None:
        high = self._number // _BLOCK
        self._head = b"%07d" % high
        self._cookie = b"%08x" % (high * 0x9E3779B1 & 0xFFFFFFFF)

    def following(self) -> Request:
        """The next request."""
        number = self._number = self._number + 1
        low = number % _BLOCK
        if not low:
            self._begin_block()
        data = b"".join(
            (
                self._starts[number % len(self._starts)],
                self._head,
                self._items[low],
                self._before[number % len(self._before)],
                self._cookie,
                self._cookies[low],
                self._after,
            )
        )
        return Request(data, data[self._path : self._path + PATH] + b" ok\n")


class Message:
    """A masked frame and the bytes that the server sends back: its payload as it stands there."""

    __slots__ = ("data", "echo")

    def __init__(self, data: bytes, echo: bytes) -> None:
        self.data = data
        self.echo = echo


def frame_head(length: int, *, masked: bool) -> bytes:
    """The head of a final binary frame (RFC 6455 section 5.2), without the mask."""
    bit = 0x80 if masked else 0
    if length < 126:
        return struct.pack("!BB", 0x82, bit | length)
    if length < 1 << 16:
        return struct.pack("!BBH", 0x82, bit | 126, length)
    return struct.pack("!BBQ", 0x82, bit | 127, length)


def messages(size: int, number: int = 64) -> list[Message]:
    """Messages of `size` random bytes, to be sent in turn."""
    made = []
    for _ in range(number):
        payload = os.urandom(size)
        mask = os.urandom(4)
        made.append(
            Message(frame_head(size, masked=True) + mask + payload, frame_head(size, masked=False) + payload)
        )
    return made
