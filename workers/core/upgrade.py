"""The WebSocket opening handshake, checked both ways (RFC 6455 section 4).

The load balancer opens a tunnel only where `check_request` passed the client's request, the server
answered it with 101, and `check_response` passed that answer. Subprotocols and extensions are between the
two ends: they pass untouched, and the client itself fails a connection that uses what it did not offer.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Mapping
from hashlib import sha1
from typing import Final

from workers.contract.errors import BAD_ACCEPT, BAD_UPGRADE, WEBSOCKET_VERSION, ProxyError

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")  # base64 of 16 bytes


def is_upgrade(minor_version: int, upgrade: bytes, connection: bytes) -> bool:
    """Whether a request asks for a WebSocket: HTTP/1.1, `Upgrade` names it and `Connection` names
    `upgrade`. Where one of them is missing, RFC 9110 section 7.8 has `Upgrade` ignored: it is a plain
    request, and goes on without the field."""
    return minor_version >= 1 and _has_token(upgrade, b"websocket") and _has_token(connection, b"upgrade")


def check_request(method: bytes, minor_version: int, fields: Mapping[bytes, bytes]) -> bytes:
    """The `Sec-WebSocket-Key` of a request for which `is_upgrade` holds (RFC 6455 section 4.2.1).

    `fields` maps lower-case names to values, repeated fields joined with commas, so that a repeated key
    is none. Raises `ProxyError` with `WEBSOCKET_VERSION` (answer it with `Sec-WebSocket-Version: 13`,
    section 4.4) or `BAD_UPGRADE`.
    """
    if method != b"GET" or minor_version < 1:
        raise ProxyError(BAD_UPGRADE, detail="a WebSocket handshake is a GET of HTTP/1.1")
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0").strip(b"0"):
        # What follows the head would be a body to one side and WebSocket frames to the other.
        raise ProxyError(BAD_UPGRADE, detail="a WebSocket handshake has no body")
    version = fields.get(b"sec-websocket-version", b"")
    if version != b"13":
        if not version:
            raise ProxyError(BAD_UPGRADE, detail="Sec-WebSocket-Version is missing")
        raise ProxyError(WEBSOCKET_VERSION, detail=f"Sec-WebSocket-Version is {version[:40]!r}")
    key = fields.get(b"sec-websocket-key", b"")
    if not _KEY.fullmatch(key):
        raise ProxyError(BAD_UPGRADE, detail="Sec-WebSocket-Key is not one base64 value of 16 bytes")
    return key


def accept_token(key: bytes) -> bytes:
    """The `Sec-WebSocket-Accept` that answers `key` (RFC 6455 section 4.2.2, step 5.4)."""
    return b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def check_response(key: bytes, upgrade: bytes, connection: bytes, accept: bytes) -> None:
    """Checks the server's 101 to a request with `key` (RFC 6455 section 4.1, second list, 2 to 4): the
    values of `Upgrade`, `Connection` and `Sec-WebSocket-Accept`, empty where missing.

    Raises `ProxyError` (`BAD_ACCEPT`, the upstream's): close that connection, no tunnel is opened. A 101
    to a request that was no upgrade is never to be brought here: that is `BAD_ACCEPT` at once.
    """
    if upgrade.lower() != b"websocket":
        raise _bad_accept("Upgrade is not websocket")
    if not _has_token(connection, b"upgrade"):
        raise _bad_accept("Connection does not name upgrade")
    if accept != accept_token(key):
        raise _bad_accept("Sec-WebSocket-Accept does not answer the key")


def _bad_accept(detail: str) -> ProxyError:
    return ProxyError(BAD_ACCEPT, side="upstream", detail=f"101: {detail}")


def _has_token(value: bytes, token: bytes) -> bool:
    """Whether the comma-separated list `value` names `token`, case ignored."""
    value = value.lower()
    return value == token or token in [item.strip(b" \t") for item in value.split(b",")]
