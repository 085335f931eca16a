"""Stickiness: the signed cookie, and where the other kinds of key are found in a request.

A cookie's value is a keyed digest of the server's name, so it tells nobody an address and nobody without
the key can make one (design, invariant 7). It follows from key, pool and server name alone: every worker,
after every restart, knows it again, and nothing is remembered.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Final

from workers.contract.snapshot import ServerSpec

_DIGEST_BYTES: Final = 16  # 128 bits, 22 characters
_MAX_REPEATS: Final = 16  # cookies of one name that are looked at


class StickyCookie:
    """The cookie of one pool."""

    __slots__ = ("_cookies", "_indexes", "_name", "_needle", "_secure_cookies", "_skip", "_stop")

    def __init__(self, name: str, key: bytes, pool: str, servers: Sequence[ServerSpec]) -> None:
        tokens = [_token(key, pool, server.name) for server in servers]
        self._indexes = {token: index for index, token in enumerate(tokens)}
        self._name = name.encode()
        self._needle = self._name + b"="
        self._skip = len(self._needle)
        self._stop = self._skip + len(tokens[0]) if tokens else self._skip
        attributes = b"; Path=/; HttpOnly; SameSite=Lax"
        self._cookies = [self._needle + token + attributes for token in tokens]
        self._secure_cookies = [cookie + b"; Secure" for cookie in self._cookies]

    def lookup(self, header: bytes) -> int:
        """The index of the server that the client is stuck to, or -1 where the value of its Cookie field
        (several fields: joined with "; ") has no cookie of ours, or none that this key made for a server
        of this pool. Of repeated cookies the first valid one counts.
        """
        at = header.find(self._needle)
        if at < 0:
            return -1
        stop = at + self._stop
        # A dict's look-up is not of constant time; but it compares keyed hashes before it compares bytes.
        index = self._indexes.get(header[at + self._skip : stop], -1)
        alone = not at or header.endswith(b"; ", 0, at)
        if index >= 0 and alone and header[stop : stop + 1] in (b"", b";"):
            return index
        for value in _values(header, self._name):
            index = self._indexes.get(value, -1)
            if index >= 0:
                return index
        return -1

    def set_cookie(self, index: int, secure: bool) -> bytes:
        """The value of the Set-Cookie field that sticks a client to server `index`; `secure` where it came
        over TLS."""
        return self._secure_cookies[index] if secure else self._cookies[index]


def _token(key: bytes, pool: str, server: str) -> bytes:
    digest = hmac.digest(key, f"{pool}\0{server}".encode(), "sha256")
    return urlsafe_b64encode(digest[:_DIGEST_BYTES]).rstrip(b"=")


def _values(header: bytes, name: bytes) -> list[bytes]:
    """The values of the cookies `name` (RFC 6265 section 4.2.1), without quotes; the first few."""
    values: list[bytes] = []
    for pair in header.split(b";"):
        key, equals, value = pair.partition(b"=")
        if equals and key.strip(b" \t") == name:
            value = value.strip(b" \t")
            if len(value) > 1 and value[:1] == value[-1:] == b'"':
                value = value[1:-1]
            values.append(value)
            if len(values) == _MAX_REPEATS:
                break
    return values


def cookie_value(header: bytes, name: bytes) -> bytes | None:
    """The value of the first cookie `name` in the value of a Cookie field, or `None`: absent or empty."""
    if header.find(name) < 0:
        return None
    values = _values(header, name)
    return values[0] or None if values else None


def query_value(target: bytes, name: bytes) -> bytes | None:
    """The value of the first parameter `name` in the query of a request target, or `None`: absent or empty.

    It is not decoded, being a key to hash and not to read: a client that writes it in the same way every
    time gets the same server.
    """
    query = target.find(b"?")
    if query < 0:
        return None
    needle = name + b"="
    at = target.find(needle, query + 1)
    # A name may end another one ("sid" in "xsid"), so look on until it stands alone.
    while at >= 0:
        if at - 1 == query or target[at - 1 : at] == b"&":
            end = target.find(b"&", at)
            return target[at + len(needle) : end if end >= 0 else None] or None
        at = target.find(needle, at + 1)
    return None
