"""The WebSocket handshake is checked both ways (RFC 6455 sections 4.1, 4.2)."""

from __future__ import annotations

import pytest

from workers.contract.errors import BAD_ACCEPT, BAD_UPGRADE, WEBSOCKET_VERSION, ProxyError, Refusal, Retry
from workers.core.upgrade import accept_token, check_request, check_response, is_upgrade

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # the example of section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FIELDS = {b"sec-websocket-key": KEY, b"sec-websocket-version": b"13"}


def refusal(method: bytes, minor_version: int, fields: dict[bytes, bytes]) -> Refusal:
    with pytest.raises(ProxyError) as caught:
        check_request(method, minor_version, fields)
    assert caught.value.side == "client"
    assert caught.value.detail
    return caught.value.refusal


def test_the_example_of_the_rfc() -> None:
    assert check_request(b"GET", 1, FIELDS) == KEY
    assert accept_token(KEY) == ACCEPT
    check_response(KEY, b"websocket", b"Upgrade", ACCEPT)


@pytest.mark.parametrize(
    ("minor", "upgrade", "connection", "asks"),
    [
        (1, b"websocket", b"Upgrade", True),
        (1, b"WebSocket", b"keep-alive, Upgrade", True),
        (1, b"h2c, websocket", b"upgrade,x", True),
        (0, b"websocket", b"upgrade", False),
        (1, b"websocket", b"keep-alive", False),
        (1, b"", b"upgrade", False),
        (1, b"h2c", b"upgrade", False),
        (1, b"websocket-draft", b"upgrade", False),
        (1, b"websocket", b"upgrade-insecure", False),
    ],
)
def test_what_asks_for_a_websocket(minor: int, upgrade: bytes, connection: bytes, asks: bool) -> None:
    assert is_upgrade(minor, upgrade, connection) is asks


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"short==",
        KEY[:-1],
        KEY + b"=",
        KEY + b", " + KEY,  # a repeated field
        KEY.replace(b"d", b"-"),
        b"dGhlIHNhbXBsZSBub25jZQAA",
        KEY + b"\n",
    ],
)
def test_a_key_that_is_none(key: bytes) -> None:
    assert refusal(b"GET", 1, FIELDS | {b"sec-websocket-key": key}) is BAD_UPGRADE


def test_only_a_get_of_http_1_1_is_a_handshake() -> None:
    assert refusal(b"POST", 1, FIELDS) is BAD_UPGRADE
    assert refusal(b"get", 1, FIELDS) is BAD_UPGRADE
    assert refusal(b"GET", 0, FIELDS) is BAD_UPGRADE


def test_a_handshake_has_no_body() -> None:
    assert refusal(b"GET", 1, FIELDS | {b"content-length": b"5"}) is BAD_UPGRADE
    assert refusal(b"GET", 1, FIELDS | {b"transfer-encoding": b"chunked"}) is BAD_UPGRADE
    assert check_request(b"GET", 1, FIELDS | {b"content-length": b"0"}) == KEY


@pytest.mark.parametrize("version", [b"8", b"7, 8", b"13, 8", b"013"])
def test_another_version_is_told_which_one_is_spoken(version: bytes) -> None:
    assert refusal(b"GET", 1, FIELDS | {b"sec-websocket-version": version}) is WEBSOCKET_VERSION


def test_no_version_is_malformed() -> None:
    assert refusal(b"GET", 1, {b"sec-websocket-key": KEY}) is BAD_UPGRADE


@pytest.mark.parametrize(
    ("upgrade", "connection", "accept"),
    [
        (b"", b"Upgrade", ACCEPT),
        (b"h2c", b"Upgrade", ACCEPT),
        (b"websocket, h2c", b"Upgrade", ACCEPT),
        (b"websocket", b"", ACCEPT),
        (b"websocket", b"close", ACCEPT),
        (b"websocket", b"Upgrade", b""),
        (b"websocket", b"Upgrade", ACCEPT.lower()),
        (b"websocket", b"Upgrade", accept_token(b"AAAAAAAAAAAAAAAAAAAAAA==")),
    ],
)
def test_a_wrong_answer_opens_no_tunnel(upgrade: bytes, connection: bytes, accept: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        check_response(KEY, upgrade, connection, accept)
    assert (caught.value.refusal, caught.value.side, caught.value.retry) == (
        BAD_ACCEPT,
        "upstream",
        Retry.NEVER,
    )


def test_an_answer_in_other_case_is_right() -> None:
    check_response(KEY, b"WebSocket", b"keep-alive, upgrade", ACCEPT)
