"""Sticky cookies: deterministic, unforgeable, silent about addresses; and the other kinds of keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract.snapshot import ServerSpec
from workers.core.sticky import StickyCookie, cookie_value, query_value

KEY = bytes(range(32))
SERVERS = [ServerSpec(slot=at, name=f"10.0.0.{at}:9000", host=f"10.0.0.{at}", port=9000) for at in range(3)]
COOKIE = StickyCookie("lb", KEY, "chat", SERVERS)


def pair(index: int, cookie: StickyCookie = COOKIE) -> bytes:
    return cookie.set_cookie(index, False).partition(b";")[0]


def token(index: int) -> bytes:
    return pair(index).partition(b"=")[2]


def test_the_set_cookie_field() -> None:
    # HMAC-SHA256 computed with openssl; a change here would cost every client its server.
    assert COOKIE.set_cookie(0, False) == b"lb=DJTL-TMTGGkFwCkcBAX6Ig; Path=/; HttpOnly; SameSite=Lax"
    assert COOKIE.set_cookie(0, True) == COOKIE.set_cookie(0, False) + b"; Secure"
    assert len({token(index) for index in range(3)}) == 3


def test_what_was_set_is_found() -> None:
    assert [COOKIE.lookup(pair(index)) for index in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "header",
    [
        b"a=b; %b",
        b"%b; a=b",
        b"a=b; %b; c=d",
        b"a=b;%b;c=d",
        b"a; %b",
        b"xlb=1; lbx=2; %b",
        b"lb=stale; %b",
        b"a=lb=x; %b",
        b"a=b; %b ; c=d",
        b"a=b, %b; lb=old; %b",
    ],
)
def test_among_other_cookies(header: bytes) -> None:
    assert COOKIE.lookup(header.replace(b"%b", pair(1))) == 1


def test_a_quoted_value() -> None:
    assert COOKIE.lookup(b'a="b"; lb="' + token(2) + b'"; c=d') == 2


def test_of_repeated_cookies_the_first_valid_one_counts() -> None:
    assert COOKIE.lookup(b"lb=none; " + pair(2) + b"; " + pair(1)) == 2


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"lb",
        b"lb=",
        b"lb=x",
        b"a=b",
        b"x%b",
        b"a=%b",
        b"lb=%bx",
        b"%bx",
        b"%b, a=b",
        b"LB=%t",
        b"lb==%t",
        b'lb="%t',
        b"lb=%t=",
    ],
)
def test_what_is_no_cookie_of_ours(header: bytes) -> None:
    assert COOKIE.lookup(header.replace(b"%b", pair(1)).replace(b"%t", token(1))) == -1


@pytest.mark.parametrize(
    "other",
    [
        StickyCookie("lb", bytes(32), "chat", SERVERS),
        StickyCookie("lb", KEY, "other", SERVERS),
        StickyCookie("lb2", KEY, "chat", SERVERS),
        StickyCookie("lb", KEY, "chat", SERVERS[2:]),
        StickyCookie("lb", KEY, "chat", []),
    ],
    ids=["key", "pool", "name", "server", "nobody"],
)
def test_a_cookie_of_another_key_pool_name_or_server_is_none(other: StickyCookie) -> None:
    assert other.lookup(pair(0)) == -1


def test_a_server_is_known_again_at_another_place() -> None:
    moved = StickyCookie("lb", KEY, "chat", SERVERS[::-1])
    assert moved.lookup(pair(0)) == 2


def test_the_cookie_tells_nothing_of_the_server() -> None:
    assert all(len(token(index)) == 22 for index in range(3))
    assert b"10.0.0" not in b"".join(COOKIE.set_cookie(index, True) for index in range(3))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_nothing_but_the_token_is_accepted(before: bytes, after: bytes) -> None:
    header = before + b"lb=" + token(1) + after
    fields = [field.strip(b" \t") for field in header.split(b";")]
    values = [field.partition(b"=") for field in fields]
    ours = any(
        name.strip(b" \t") == b"lb" and value.strip(b" \t") in (token(1), b'"' + token(1) + b'"')
        for name, _, value in values
    )
    assert COOKIE.lookup(header) == (1 if ours else -1)


def test_a_header_full_of_cookies_is_read_in_bounded_steps() -> None:
    assert COOKIE.lookup(b"lb=x; " * 16 + pair(1)) == -1


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"sid=abc", b"abc"),
        (b"a=b; sid=abc; c=d", b"abc"),
        (b'sid="a b"', b"a b"),
        (b"sid=a=b", b"a=b"),
        (b"xsid=1; sid=2; sid=3", b"2"),
        (b"sid=", None),
        (b"sid", None),
        (b"xsid=1", None),
        (b"a=sid=1", None),
        (b"", None),
    ],
)
def test_cookie_value(header: bytes, value: bytes | None) -> None:
    assert cookie_value(header, b"sid") == value


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (b"/?sid=abc", b"abc"),
        (b"/x?a=b&sid=abc&c=d", b"abc"),
        (b"/x?xsid=1&sid=2&sid=3", b"2"),
        (b"/x?sid=a%20b", b"a%20b"),
        (b"/x?sid=a?b=c", b"a?b=c"),
        (b"/x?a=?sid=1", None),
        (b"/x?sid=&sid=2", None),
        (b"/x?sid", None),
        (b"/sid=1", None),
        (b"/&sid=1?a=b", None),
        (b"/", None),
    ],
)
def test_query_value(target: bytes, value: bytes | None) -> None:
    assert query_value(target, b"sid") == value
