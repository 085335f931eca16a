"""Heads written anew: what the next hop gets parses again, and holds nothing that was for this hop."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract.snapshot import HeaderRules
from workers.core.heads import RequestHead, ResponseHead, parse_request, parse_response, tokens
from workers.core.rewrite import (
    client_head,
    cut,
    is_bare_upgrade,
    request_rules,
    response_rules,
    unchunked,
    upstream_head,
)

FORWARDED = b"X-Forwarded-For: 192.0.2.1\r\nX-Request-ID: 1\r\n"


def request(*fields: bytes, line: bytes = b"GET /x?y HTTP/1.1") -> RequestHead:
    raw = b"\r\n".join((line, *fields, b"", b""))
    head = parse_request(raw, 0, len(raw))
    assert head is not None
    return head


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    raw = b"\r\n".join((line, *fields, b"", b""))
    head = parse_response(raw, 0, len(raw))
    assert head is not None
    return head


def read(raw: bytes) -> RequestHead:
    head = parse_request(raw, 0, len(raw))
    assert head is not None and head.size == len(raw)
    return head


def written(head: RequestHead, rules: HeaderRules | None = None, forwarded: bytes = b"") -> list[bytes]:
    """The lines that the server gets, after the request line."""
    raw = upstream_head(head, head.target, forwarded, request_rules(rules or HeaderRules()))
    assert read(raw).minor == 1
    lines = raw.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert lines[0] == head.method + b" " + head.target + b" HTTP/1.1"
    return lines[1:-2]


def answered(head: ResponseHead, extra: bytes = b"", rules: HeaderRules | None = None) -> list[bytes]:
    """The lines that the client gets, the status line too."""
    raw = client_head(head, extra, response_rules(rules or HeaderRules()))
    again = parse_response(raw, 0, len(raw))
    assert again is not None and again.size == len(raw)
    return raw.split(b"\r\n")[:-2]


# --- strategies -----------------------------------------------------------------------------------------

HOP = [
    b"Connection: close", b"connection: Keep-Alive, X-Foo", b"CONNECTION: x-bar,TE,, accept",
    b"Keep-Alive: 5", b"Proxy-Connection: close", b"TE: trailers, deflate", b"Upgrade: h2c",
    b"HTTP2-Settings: abc", b"Content_Length: 5", b"Transfer_Encoding: chunked",
    b"X_Forwarded_For: 6.6.6.6", b"Forwarded: for=6.6.6.6", b"X-Forwarded-Proto: https",
    b"X-Request-ID: mine", b"X-Forwarded-Host:evil", b"X-Forwarded-Port: 1",
    b"Connection: host, content-length, transfer-encoding",
]  # fmt: skip
END_TO_END = [
    b"X-Foo: Host: a", b"X-BAR:Connection: close", b"Accept: */*", b"Cookie: a=b", b"cookie: c",
    b"X-Foo-Bar: 1", b"Teapot: x", b"Upgrade-Insecure-Requests: 1", b"Empty:", b"Latin: \xe9",
    b"Trailer: X-Digest",
]  # fmt: skip
HOP_NAMES = {line.partition(b":")[0].lower() for line in HOP}


@st.composite
def requests(draw: st.DrawFn) -> RequestHead:
    fields = draw(st.lists(st.sampled_from(HOP + END_TO_END), max_size=10))
    fields.insert(draw(st.integers(0, len(fields))), b"Host: A.example:80")
    framing = draw(st.sampled_from([None, b"Content-Length: 5", b"Transfer-Encoding: chunked"]))
    if framing is not None:
        fields.insert(draw(st.integers(0, len(fields))), framing)
    return request(*fields, line=draw(st.sampled_from([b"POST /x HTTP/1.1", b"POST http://b/x HTTP/1.1"])))


def nominated(head: RequestHead) -> set[bytes]:
    return {name for key, value in head.known if key == b"connection" for name in tokens(value)}


# --- requests -------------------------------------------------------------------------------------------


@given(requests())
def test_the_server_reads_the_same_request_without_what_was_for_this_hop(head: RequestHead) -> None:
    raw = upstream_head(head, head.target, FORWARDED, None)
    again = read(raw)
    assert (again.method, again.target, again.length) == (head.method, head.target, head.length)
    assert (again.host, again.minor, again.keep_alive) == (head.host, 1, True)
    gone = (HOP_NAMES | nominated(head)) - {b"host", b"content-length", b"transfer-encoding"}
    expected = [
        line for line in head.fields.split(b"\r\n")[1:]
        if line.partition(b":")[0].lower() not in gone and not (head.absolute and line.startswith(b"Host"))
    ]  # fmt: skip
    assert [line for line in raw.split(b"\r\n")[1:-2] if line in expected] == expected
    others = {line for line in raw.split(b"\r\n")[1:-2] if line not in expected}
    ours = {*FORWARDED.split(b"\r\n")[:-1], b"Host: b", b"TE: trailers", b"Connection: TE"}
    assert others <= ours
    assert raw.count(b"\r\nHost: ") == 1
    assert (b"Host: b" in others) is head.absolute


@given(requests())
def test_what_was_written_is_written_the_same_again(head: RequestHead) -> None:
    once = read(upstream_head(head, head.target, b"", None))
    twice = read(upstream_head(once, once.target, b"", None))
    assert sorted(once.fields.split(b"\r\n")) == sorted(twice.fields.split(b"\r\n"))


def test_a_plain_head_keeps_its_bytes() -> None:
    head = request(b"hOsT:  a.example", b"Accept:x", b"X-Foo: 1 ")
    assert head.plain
    assert upstream_head(head, b"/new", FORWARDED, None) == (
        b"GET /new HTTP/1.1\r\nhOsT:  a.example\r\nAccept:x\r\nX-Foo: 1 \r\n" + FORWARDED + b"\r\n"
    )


def test_fields_that_connection_names_go() -> None:
    head = request(
        b"Host: a", b"X-Foo: 1", b"X-Foo-Bar: 2", b"Foo: 3", b"Connection: x-FOO ,\tfoo", b"x-foo: 4"
    )
    assert written(head) == [b"Host: a", b"X-Foo-Bar: 2"]


def test_connection_can_not_take_out_what_frames_or_routes() -> None:
    head = request(
        b"Connection: close, Host, Content-Length, Transfer-Encoding", b"Host: a", b"Content-Length: 5"
    )
    assert written(head) == [b"Host: a", b"Content-Length: 5"]
    head = request(b"Connection: transfer-encoding", b"Host: a", b"Transfer-Encoding: chunked")
    assert written(head) == [b"Host: a", b"Transfer-Encoding: chunked"]


def test_connection_can_not_take_out_what_we_say_about_the_client() -> None:
    head = request(b"Host: a", b"Connection: X-Forwarded-For, X-Request-ID", b"X-Forwarded-For: 6.6.6.6")
    assert written(head, forwarded=FORWARDED) == [b"Host: a", *FORWARDED.split(b"\r\n")[:-1]]


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"X_Forwarded_For", b"X-Forwarded_Host", b"Forwarded"])
def test_forwarding_fields_of_the_client_never_pass(name: bytes) -> None:
    assert written(request(b"Host: a", name + b": 6.6.6.6")) == [b"Host: a"]


def test_absolute_form_replaces_host() -> None:
    head = request(b"Accept: x", b"Host: a.example", line=b"GET http://B.example:81/x HTTP/1.1")
    assert written(head) == [b"Host: b.example:81", b"Accept: x"]


def test_http_1_0() -> None:
    head = request(b"Connection: keep-alive", b"Accept: x", line=b"GET / HTTP/1.0")
    assert written(head) == [b"Host: ", b"Accept: x"]
    head = request(b"Host: a", b"Content-Length: 5", b"Expect: 100-continue", line=b"POST / HTTP/1.0")
    assert written(head) == [b"Host: a", b"Content-Length: 5"]


def test_expect_passes() -> None:
    head = request(b"Host: a", b"Content-Length: 5", b"Expect: 100-continue", line=b"POST / HTTP/1.1")
    assert written(head) == [b"Host: a", b"Content-Length: 5", b"Expect: 100-continue"]


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        (b"trailers", [b"TE: trailers", b"Connection: TE"]),
        (b"gzip, Trailers", [b"TE: trailers", b"Connection: TE"]),
        (b"gzip", []),
        (b"trailersx", []),
    ],
)
def test_te_is_said_anew_for_trailers_alone(value: bytes, ours: list[bytes]) -> None:
    assert written(request(b"Host: a", b"TE: " + value, b"Connection: TE")) == [b"Host: a", *ours]


def test_an_upgrade_is_asked_for_anew_and_alone() -> None:
    head = request(
        b"Host: a", b"Upgrade: websocket", b"Connection: keep-alive, Upgrade", b"TE: trailers",
        b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Protocol: chat",
    )  # fmt: skip
    lines = [b"Host: a", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Protocol: chat"]
    upgrade = [b"Connection: Upgrade", b"Upgrade: websocket"]
    assert written(head) == lines + upgrade
    rules = HeaderRules(request_set=(("X-Edge", "1"),))
    assert written(head, rules) == [*lines, b"X-Edge: 1", *upgrade]
    head.upgrade = b""  # as the exchange does for other protocols
    assert written(head) == [*lines, b"TE: trailers", b"Connection: TE"]


# --- rules ----------------------------------------------------------------------------------------------


def test_no_rules_are_none() -> None:
    assert request_rules(HeaderRules(response_set=(("A", "1"),))) is None
    assert response_rules(HeaderRules(request_remove=("A",))) is None


def test_rules_replace_add_and_remove_whatever_the_case() -> None:
    rules = HeaderRules(
        request_set=(("X-Edge", "1"), ("host", "inner")), request_remove=("Cookie", "X-Absent")
    )
    head = request(
        b"Host: a", b"x-EDGE: 0", b"X-Edge-2: 2", b"cookie: a", b"Accept: cookie: b", b"X-Edge: 00"
    )
    assert head.plain
    assert written(head, rules) == [b"X-Edge-2: 2", b"Accept: cookie: b", b"X-Edge: 1", b"host: inner"]


def test_rules_see_the_forwarding_fields() -> None:
    rules = HeaderRules(request_remove=("X-Request-ID",), request_set=(("X-Forwarded-For", "hidden"),))
    assert written(request(b"Host: a"), rules, FORWARDED) == [b"Host: a", b"X-Forwarded-For: hidden"]


def test_a_field_may_be_set_twice() -> None:
    rules = HeaderRules(response_set=(("Link", "<a>"), ("Link", "<b>")), response_remove=("Server",))
    head = response(b"Content-Length: 0", b"server: x", b"LINK: <c>")
    assert answered(head, rules=rules)[1:] == [b"Content-Length: 0", b"Link: <a>", b"Link: <b>"]


# --- responses ------------------------------------------------------------------------------------------


def test_a_response_keeps_its_status_and_its_fields() -> None:
    head = response(b"Content-Length: 5", b"Set-Cookie: a", b"set-cookie: b", line=b"HTTP/1.1 404 N\xf6 ")
    assert answered(head, b"\r\nConnection: close") == [
        b"HTTP/1.1 404 N\xf6 ", b"Content-Length: 5", b"Set-Cookie: a", b"set-cookie: b",
        b"Connection: close",
    ]  # fmt: skip


@pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200"])
def test_the_space_before_an_empty_reason_stays(line: bytes) -> None:
    assert answered(response(b"Content-Length: 0", line=line)) == [b"HTTP/1.1 200 ", b"Content-Length: 0"]


def test_hop_by_hop_fields_of_a_response_go() -> None:
    head = response(
        b"Connection: close, X-Foo, content-length", b"X-FOO: 1", b"X-Food: 2", b"Keep-Alive: timeout=5",
        b"Upgrade: h2c", b"Proxy-Connection: close", b"Content-Length: 5", b"Connection: bar",
        b"Bar: Connection: x",
    )  # fmt: skip
    assert answered(head) == [b"HTTP/1.1 200 OK", b"X-Food: 2", b"Content-Length: 5"]


def test_unchunked() -> None:
    head = response(b"Transfer-Encoding: chunked", b"Trailer: X-Digest", b"X-Digest: a")
    unchunked(head)
    assert answered(head)[1:] == [b"X-Digest: a"]
    counted = response(b"Content-Length: 5", b"Trailer: X")
    unchunked(counted)
    assert answered(counted)[1:] == [b"Content-Length: 5", b"Trailer: X"]


# --- cut ------------------------------------------------------------------------------------------------

_lines = st.lists(st.sampled_from([b"A: 1", b"a:2", b"AB: a: 1", b"B:", b"b: \xc4a:", b"C-A: 3"]), max_size=8)
_padding = st.sampled_from([(), tuple(b"n%d" % i for i in range(50))])


@given(_lines, st.lists(st.sampled_from([b"a", b"b", b"ab", b"c", b"c-a"]), unique=True), _padding)
def test_cut_takes_out_whole_lines_and_no_others(
    lines: list[bytes], names: list[bytes], more: tuple[bytes, ...]
) -> None:
    expected = [line for line in lines if line.partition(b":")[0].lower() not in names]
    fields = b"".join(b"\r\n" + line for line in lines)
    assert cut(fields, (*names, *more)) == b"".join(b"\r\n" + line for line in expected)


def test_the_cost_of_many_names_and_many_lines_is_bounded() -> None:
    names = b",".join(b"n%06d" % i for i in range(80_000))
    many_names = request(b"Host: a", b"Connection: " + names, *[b"a:"] * 20_000)
    many_lines = response(b"Content-Length: 0", *[b"te:"] * 100_000)
    begin = time.process_time()
    assert len(written(many_names)) == 20_001
    assert answered(many_lines)[1:] == [b"Content-Length: 0"]
    assert time.process_time() - begin < 1  # about 0.1 s; a search for each name takes many


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket", True),
        (b"Host: a\r\nUpgrade: WebSocket\r\nConnection: upgrade", True),
        (b"Host: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket", False),
        (b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTE: trailers", False),
        (b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: 1.2.3.4", False),
    ],
)
def test_a_bare_handshake_goes_on_as_it_came_and_others_as_if_it_had(fields: bytes, expected: bool) -> None:
    raw = b"GET / HTTP/1.1\r\n" + fields + b"\r\n\r\n"
    head = parse_request(raw, 0, len(raw))
    assert head is not None
    assert is_bare_upgrade(head.known) is expected
    written = upstream_head(head, b"/", b"X-Forwarded-For: 9.9.9.9\r\n", None)
    lines = written.lower().split(b"\r\n")
    assert sum(line.startswith((b"connection:", b"upgrade:", b"te:")) for line in lines) == 2
    assert lines.count(b"x-forwarded-for: 9.9.9.9") == 1
    assert b"1.2.3.4" not in written
