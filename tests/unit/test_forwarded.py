"""What the server is told about the client, and whose word is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.core.forwarded import ForwardedPrefix, Received, RequestIds, TrustedProxies, plain_address

PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/48"])


def lines(*expected: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in expected)


def believed(
    received: Received, peer: str = "10.0.0.1", host: bytes = b"in.example:8080"
) -> dict[bytes, bytes]:
    written = ForwardedPrefix(peer, b"http", 8080).believed_lines(host, b"own-1", received)
    assert written.endswith(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in written[:-2].split(b"\r\n"))
    assert len(fields) == written.count(b"\r\n")
    return fields


# --- strangers ------------------------------------------------------------------------------------------


def test_the_lines_about_a_client() -> None:
    prefix = ForwardedPrefix("192.0.2.7", b"https", 443)
    for request_id in (b"id-1", b"id-2"):
        assert prefix.lines(b"example.com", request_id) == lines(
            b"X-Forwarded-For: 192.0.2.7",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Host: example.com",
            b"X-Forwarded-Port: 443",
            b'Forwarded: for=192.0.2.7;proto=https;host="example.com"',
            b"X-Request-ID: " + request_id,
        )


def test_each_request_has_its_own_host() -> None:
    prefix = ForwardedPrefix("192.0.2.7", b"http", 80)
    for host in (b"a.example", b"b.example:80", b"a.example"):
        assert b"X-Forwarded-Host: " + host + b"\r\n" in prefix.lines(host, b"1")
        assert b';host="' + host + b'"\r\n' in prefix.lines(host, b"1")


def test_an_ipv6_client_without_host_on_a_unix_socket() -> None:
    assert ForwardedPrefix("2001:db8::1", b"http", 0).lines(b"", b"1") == lines(
        b"X-Forwarded-For: 2001:db8::1",
        b"X-Forwarded-Proto: http",
        b'Forwarded: for="[2001:db8::1]";proto=http',
        b"X-Request-ID: 1",
    )


def test_a_client_without_an_address() -> None:
    told = ForwardedPrefix("", b"http", 0).lines(b"h", b"1")
    assert b"X-Forwarded-For: unknown\r\n" in told
    assert b'Forwarded: for=unknown;proto=http;host="h"\r\n' in told


def test_a_host_can_not_leave_its_quotes() -> None:
    told = ForwardedPrefix("192.0.2.7", b"http", 80).lines(b'a";for=\\x', b"1")
    assert b'host="a\\";for=\\\\x"\r\n' in told


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("", ""),
    ],
)
def test_plain_address(address: str, plain: str) -> None:
    assert plain_address(address) == plain


def test_request_ids_are_valid_and_never_twice() -> None:
    ids = RequestIds(b"0123456789abcdef")
    made = [ids.following() for _ in range(1000)]
    assert made == [b"0123456789abcdef-%06x" % number for number in range(1, 1001)]
    assert len(set(made)) == 1000
    assert believed(Received(request_id=made[999]))[b"X-Request-ID"] == made[999]


# --- trusted proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.0.0.1", True),
        ("10.255.255.255", True),
        ("11.0.0.1", False),
        ("::ffff:10.0.0.1", True),
        ("::ffff:11.0.0.1", False),
        ("2001:db8:1::5", True),
        ("2001:db8:2::5", False),
        ("", False),
        ("10.0.0", False),
        ("unknown", False),
    ],
)
def test_trusts(address: str, trusted: bool) -> None:
    assert PROXIES.trusts(address) is trusted
    assert PROXIES.trusts(address) is trusted  # from the memo


def test_the_memo_is_bounded() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    for number in range(10_000):
        assert proxies.trusts(f"10.1.{number >> 8}.{number & 255}")
    assert len(proxies._memo) <= 4096


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("192.0.2.1", b"", "192.0.2.1"),
        ("192.0.2.1", b"10.0.0.9", "192.0.2.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", b"6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", b"6.6.6.6,192.0.2.1 , 10.0.0.2", "192.0.2.1"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", b"192.0.2.1, junk, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", b"192.0.2.1, junk", "10.0.0.1"),
        ("10.0.0.1", b"192.0.2.1:4711", "192.0.2.1"),
        ("10.0.0.1", b"[2001:DB8::5]:4711", "2001:db8::5"),
        ("10.0.0.1", b"2001:db8::5", "2001:db8::5"),
        ("10.0.0.1", b"::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1::1", b"192.0.2.1", "192.0.2.1"),
        ("", b"192.0.2.1", ""),
        ("10.0.0.1", b"," * 30_000, "10.0.0.1"),
    ],
)
def test_client_ip(peer: str, forwarded_for: bytes, client: str) -> None:
    assert PROXIES.client_ip(peer, forwarded_for) == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (b"for=192.0.2.1", "192.0.2.1"),
        (b'for=6.6.6.6;proto=http, For="192.0.2.1:80" ; by=10.0.0.2, for=10.0.0.3', "192.0.2.1"),
        (b'for="[2001:db8::5]:80"', "2001:db8::5"),
        (b"for=_hidden, for=10.0.0.2", "10.0.0.2"),
        (b"for=192.0.2.1, by=10.0.0.2", "10.0.0.1"),
        (b'for=192.0.2.1;x=", for=6.6.6.6"', "192.0.2.1"),  # in a quoted string it is no element
        (b'x=", for=6.6.6.6', "10.0.0.1"),
        (b"", "10.0.0.1"),
    ],
)
def test_client_ip_from_forwarded(forwarded: bytes, client: str) -> None:
    assert PROXIES.client_ip("10.0.0.1", b"", forwarded) == client


def test_nobody_is_trusted_by_default() -> None:
    assert TrustedProxies([]).client_ip("10.0.0.1", b"192.0.2.1") == "10.0.0.1"


def test_what_a_proxy_says_is_kept_and_appended_to() -> None:
    received = Received(
        forwarded_for=b"192.0.2.1",
        proto=b"https",
        host=b"www.example.com",
        port=b"4443",
        forwarded=b"for=192.0.2.1;proto=https;host=www.example.com",
        request_id=b"edge-7",
    )
    assert believed(received) == {
        b"X-Forwarded-For": b"192.0.2.1, 10.0.0.1",
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-Host": b"www.example.com",
        b"X-Forwarded-Port": b"4443",
        b"Forwarded": b"for=192.0.2.1;proto=https;host=www.example.com, "
        b'for=10.0.0.1;proto=http;host="in.example:8080"',
        b"X-Request-ID": b"edge-7",
    }


def test_a_proxy_that_says_nothing_is_the_client() -> None:
    prefix = ForwardedPrefix("10.0.0.1", b"http", 8080)
    assert prefix.believed_lines(b"h", b"own-1", Received()) == prefix.lines(b"h", b"own-1")


def test_a_forwarded_for_alone_is_translated() -> None:
    fields = believed(Received(forwarded_for=b"192.0.2.1, 2001:db8::5", proto=b"https", host=b"www.example"))
    assert fields[b"Forwarded"] == (
        b'for=192.0.2.1;proto=https;host="www.example", for="[2001:db8::5]", '
        b'for=10.0.0.1;proto=http;host="in.example:8080"'
    )
    fields = believed(Received(forwarded_for=b"unknown, 192.0.2.1"))
    assert fields[b"Forwarded"].count(b"for=") == 1


def test_a_forwarded_alone_is_translated() -> None:
    fields = believed(
        Received(forwarded=b'for=192.0.2.1, for="[2001:db8::5]:9";proto=https;host="www.example:44"')
    )
    assert fields[b"X-Forwarded-For"] == b"192.0.2.1, 2001:db8::5, 10.0.0.1"
    assert fields[b"X-Forwarded-Proto"] == b"https"
    assert fields[b"X-Forwarded-Host"] == b"www.example:44"
    assert fields[b"X-Forwarded-Port"] == b"44"
    assert believed(Received(forwarded=b"for=_x"))[b"X-Forwarded-For"] == b"10.0.0.1"


@pytest.mark.parametrize(
    ("received", "port"),
    [
        (Received(proto=b"https"), b"443"),
        (Received(proto=b"HTTPS", port=b"0"), b"443"),
        (Received(proto=b"https", host=b"h:4443"), b"4443"),
        (Received(proto=b"https", port=b"70000"), b"443"),
        (Received(proto=b"https", port=b"8443, 1"), b"443"),
        (Received(port=b"8443"), b"8443"),
        (Received(), b"8080"),
        (Received(proto=b"gopher"), b"8080"),
    ],
)
def test_the_port_fits_the_scheme(received: Received, port: bytes) -> None:
    assert believed(received)[b"X-Forwarded-Port"] == port


@pytest.mark.parametrize(
    "bad",
    [
        Received(proto=b"gopher"),
        Received(proto=b"https, http"),
        Received(host=b"a b"),
        Received(host=b'"a"'),
        Received(host=b"a,b"),
        Received(host=b"h:port"),
        Received(request_id=b"a b"),
        Received(request_id=b"x" * 129),
        Received(request_id=b"a, b"),
        Received(forwarded=b"nonsense"),
        Received(forwarded=b'for="open'),
        Received(forwarded=b"for=a b"),
    ],
)
def test_what_is_invalid_is_replaced_even_if_a_trusted_proxy_says_it(bad: Received) -> None:
    assert believed(bad) == believed(Received())


@pytest.mark.parametrize("request_id", [b"a", b"x" * 128, b"Az09._~+/=-"])
def test_valid_request_ids(request_id: bytes) -> None:
    assert believed(Received(request_id=request_id))[b"X-Request-ID"] == request_id


values = st.one_of(st.just(b""), st.from_regex(rb"[\t\x20-\x7e\x80-\xff]{1,30}", fullmatch=True))


@given(st.builds(Received, values, values, values, values, values, values))
def test_whatever_a_proxy_says_the_lines_stay_lines(received: Received) -> None:
    fields = believed(received)
    assert fields[b"X-Forwarded-For"].endswith(b"10.0.0.1")
    assert fields[b"Forwarded"].endswith(b'for=10.0.0.1;proto=http;host="in.example:8080"')
    assert fields[b"X-Forwarded-Proto"] in (b"http", b"https", b"ws", b"wss")


@given(values, values)
def test_a_client_ip_is_always_found(forwarded_for: bytes, forwarded: bytes) -> None:
    assert PROXIES.client_ip("10.0.0.1", forwarded_for, forwarded)
