"""Responses of our own: well-formed, of the right length, and with what each status owes the client."""

from __future__ import annotations

import pytest

from workers.contract import errors
from workers.contract.errors import Refusal
from workers.core.heads import ResponseHead, field_values, parse_response
from workers.core.responses import redirect_response, refusal_response

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
REFUSALS = [value for value in vars(errors).values() if isinstance(value, Refusal)]


def read(raw: bytes) -> tuple[ResponseHead, bytes]:
    head = parse_response(raw, 0, len(raw))
    assert head is not None
    return head, raw[head.size :]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.reason)
@pytest.mark.parametrize("close", [False, True])
def test_every_refusal_is_a_well_formed_response(refusal: Refusal, close: bool) -> None:
    raw = refusal_response(refusal, date=DATE, close=close, without_body=False)
    head, body = read(raw)
    assert (head.status, head.keep_alive, head.length) == (refusal.status, not close, len(body))
    assert head.reason and refusal.text.encode() in body
    assert field_values(head.fields, b"date") == [DATE.encode()]
    assert field_values(head.fields, b"content-type") == [b"text/plain; charset=utf-8"]
    assert field_values(head.fields, b"cache-control") == [b"no-store"]
    without = refusal_response(refusal, date=DATE, close=close, without_body=True)
    assert without + body == raw


@pytest.mark.parametrize(
    ("refusal", "name", "value"),
    [
        # RFC 9110: 15.5.6, 15.5.22, 15.6.4; RFC 6455: 4.4
        (errors.METHOD_REFUSED, b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (errors.WEBSOCKET_VERSION, b"sec-websocket-version", b"13"),
        (errors.WEBSOCKET_VERSION, b"upgrade", b"websocket"),
        (errors.WEBSOCKET_VERSION, b"connection", b"upgrade"),
        (errors.NO_SERVER, b"retry-after", b"1"),
    ],
)
def test_what_a_status_owes_the_client(refusal: Refusal, name: bytes, value: bytes) -> None:
    head, _ = read(refusal_response(refusal, date=DATE, close=False, without_body=False))
    assert field_values(head.fields, name) == [value]
    other, _ = read(refusal_response(errors.NO_ROUTE, date=DATE, close=False, without_body=False))
    assert field_values(other.fields, name) == []


def test_the_connection_options_are_one_field() -> None:
    raw = refusal_response(errors.WEBSOCKET_VERSION, date=DATE, close=True, without_body=False)
    assert field_values(read(raw)[0].fields, b"connection") == [b"close, upgrade"]


@pytest.mark.parametrize("close", [False, True])
def test_a_redirect_keeps_method_and_body(close: bool) -> None:
    head, rest = read(redirect_response(b"https://a.example/x?y", date=DATE, close=close))
    assert (head.status, head.length, head.keep_alive, rest) == (308, 0, not close, b"")
    assert field_values(head.fields, b"location") == [b"https://a.example/x?y"]
    assert field_values(head.fields, b"date") == [DATE.encode()]
