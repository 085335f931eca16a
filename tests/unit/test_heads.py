"""Request and response heads: what is one, what is refused, and that nobody else can read it differently."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.contract import errors
from workers.contract.errors import ProxyError, Refusal
from workers.core import heads
from workers.core.heads import (
    CHUNKED,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
    field_values,
    parse_request,
    parse_response,
    tokens,
)

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])


def request(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((line, *fields, b"", b""))


def parsed(raw: bytes) -> RequestHead:
    head = parse_request(raw, 0, len(raw))
    assert head is not None
    return head


def refused(raw: bytes) -> Refusal:
    with pytest.raises(ProxyError) as caught:
        parse_request(raw, 0, len(raw))
    assert caught.value.side == "client"
    return caught.value.refusal


def with_host(*fields: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    return request(b"Host: a.example", *fields, line=line)


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return request(*fields, line=line)


def answered(raw: bytes) -> ResponseHead:
    head = parse_response(raw, 0, len(raw))
    assert head is not None
    return head


def answer_refused(raw: bytes) -> str:
    with pytest.raises(ProxyError) as caught:
        parse_response(raw, 0, len(raw))
    assert caught.value.refusal is errors.BAD_RESPONSE
    assert caught.value.side == "upstream"
    return caught.value.detail


# --- strategies -----------------------------------------------------------------------------------------

names = st.one_of(
    st.text(TOKEN, min_size=1, max_size=12).map(str.encode),
    st.sampled_from(
        [
            b"Accept",
            b"Connection",
            b"TE",
            b"Hos",
            b"Hostess",
            b"X-Host",
            b"Upgrade",
            b"Keep-Alive",
            b"Forwarded",
        ]
    ),
)
values = st.one_of(
    st.lists(st.sampled_from(list(VALUE)), max_size=20).map(bytes),
    st.sampled_from([b"", b"Host: evil", b"close", b"keep-alive, X-Foo", b"Content-Length: 5", b"trailers"]),
)
_FRAMING = {b"host", b"content-length", b"transfer-encoding"}


def _harmless(field: tuple[bytes, bytes]) -> bool:
    return field[0].lower() not in _FRAMING


field_lists = st.lists(st.tuples(names, values).filter(_harmless), max_size=6)


@st.composite
def request_heads(draw: st.DrawFn) -> bytes:
    """Heads that are valid."""
    target = b"/" + draw(st.text('abc/?&=%20.;[]{}|\\^`"<>', max_size=12)).encode()
    lines = [b"%b:%b" % field for field in draw(field_lists)]
    host = draw(st.sampled_from([b"Host: a.example", b"hOsT:\ta.example:80 ", b"Host:", b"HOST: [::1]:8080"]))
    framing = draw(
        st.sampled_from([None, b"Content-Length: 12", b"content-length:0", b"Transfer-Encoding: Chunked"])
    )
    for line in (host, framing):
        if line is not None:
            lines.insert(draw(st.integers(0, len(lines))), line)
    method = draw(st.sampled_from([b"GET", b"POST", b"M-SEARCH", b"get", b"OPTIONS"]))
    return request(*lines, line=method + b" " + target + b" HTTP/1.1")


def facts(head: RequestHead) -> list[object]:
    return [getattr(head, name) for name in dir(head) if not name.startswith("_")]


# --- pieces and places ----------------------------------------------------------------------------------


@given(request_heads(), st.binary(max_size=8))
def test_a_valid_request_head_is_never_refused_early(raw: bytes, rest: bytes) -> None:
    for end in range(len(raw)):
        assert parse_request(raw, 0, end) is None
    head = parsed(raw)
    assert head.size == len(raw)
    assert facts(parsed(raw + rest)) == facts(head)


@given(request_heads(), st.binary(max_size=8), st.binary(max_size=8))
@example(raw=with_host(), before=b"\r\n\r\n", after=b"\n")
def test_only_the_range_of_the_buffer_counts(raw: bytes, before: bytes, after: bytes) -> None:
    buffer = bytearray(before + raw + after)
    head = parse_request(buffer, len(before), len(before) + len(raw))
    assert head is not None
    assert facts(head) == facts(parsed(raw))
    assert all(type(value) is not bytearray for value in facts(head))
    assert parse_request(buffer, len(before), len(before) + len(raw) - 1) is None


@given(field_lists, st.sampled_from([b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Server: x"]))
def test_a_valid_response_head_is_never_refused_early(
    fields: list[tuple[bytes, bytes]], framing: bytes
) -> None:
    raw = response(framing, *(b"%b:%b" % field for field in fields), line=b"HTTP/1.1 404 Not \xe9 Found")
    for end in range(len(raw)):
        assert parse_response(raw, 0, end) is None
    for buffer in (raw, b"\n\n" + raw + b"\n"):
        head = parse_response(bytearray(buffer), buffer.index(b"H"), len(buffer))
        assert head is not None
        assert (head.status, head.reason, head.size) == (404, b"Not \xe9 Found", len(raw))


# --- against a lenient reader ---------------------------------------------------------------------------


def lenient(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]] | None:
    """A head as a careless server reads it: any line end, any white space, folded lines, odd names."""
    lines = re.split(rb"\r\n|\n|\r", raw)
    first = lines[0].split()
    if len(first) != 3:
        return None
    fields: list[tuple[bytes, bytes]] = []
    for line in lines[1:]:
        if not line:
            break
        if line[:1] in b" \t" and fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + b" " + line.strip())
            continue
        name, _, value = line.partition(b":")
        fields.append((name.strip().strip(b"\x00\x0b\x0c").lower(), value.split(b"\x00")[0].strip()))
    return first[0], first[1], fields


def _damage(raw: bytes, where: int, what: bytes, cut: int) -> bytes:
    where %= len(raw)
    return raw[:where] + what + raw[where + cut :]


@given(
    request_heads(),
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.one_of(
                st.binary(max_size=2),
                st.sampled_from(
                    [
                        b"\n",
                        b"\r",
                        b"\r\n",
                        b"\r\n ",
                        b"\n\t",
                        b"\x00",
                        b" ",
                        b"\t",
                        b" :",
                        b":",
                        b"\x0b",
                        b"\r\nContent-Length: 7",
                        b"\nTransfer-Encoding: chunked",
                        b"\r\nHost: evil",
                        b"\r\nTransfer-Encoding : chunked",
                        b"\r\n\r\n",
                    ]
                ),
            ),
            st.integers(0, 2),
        ),
        max_size=3,
    ),
)
def test_a_lenient_reader_sees_the_same_request(raw: bytes, damages: list[tuple[int, bytes, int]]) -> None:
    for damage in damages:
        raw = _damage(raw, *damage)
    try:
        head = parse_request(raw, 0, len(raw))
    except ProxyError:
        return
    if head is None:
        return
    other = lenient(raw[: head.size])
    assert other is not None
    method, target, fields = other
    assert method == head.method
    assert target == head.target or head.absolute or target == b"*"
    assert [value for name, value in fields if name == b"host"][1:] == []
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if head.length == CHUNKED:
        assert (codings, lengths) == ([b"chunked"], [])
    else:
        assert codings == []
        assert [int(value) for value in lengths] == ([head.length] if lengths else [])
        assert lengths or head.length == 0
    assert len(fields) == head.fields.count(b"\r\n")
    for name in {name for name, _ in fields}:
        assert field_values(head.fields, name) == [
            value.strip(b" \t") for key, value in fields if key == name
        ]


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        (with_host(b"X: 1\nTransfer-Encoding: chunked"), errors.BAD_HEADER),
        (with_host(b"X: 1\rTransfer-Encoding: chunked"), errors.BAD_HEADER),
        (with_host(b"X: 1\r\n folded"), errors.BAD_HEADER),
        (with_host(b"X: 1\r\n\tfolded"), errors.BAD_HEADER),
        (with_host(b"Transfer-Encoding : chunked"), errors.BAD_HEADER),
        (with_host(b"Transfer-Encoding\t: chunked"), errors.BAD_HEADER),
        (with_host(b" Transfer-Encoding: chunked"), errors.BAD_HEADER),
        (with_host(b"X: a\x00b"), errors.BAD_HEADER),
        (with_host(b"X: a\x7fb"), errors.BAD_HEADER),
        (with_host(b"X: a\x0bb"), errors.BAD_HEADER),
        (with_host(b"X\x00: a"), errors.BAD_HEADER),
        (with_host(b": a"), errors.BAD_HEADER),
        (with_host(b"X"), errors.BAD_HEADER),
        (with_host(b"Caf\xe9: a"), errors.BAD_HEADER),
        (b"GET / HTTP/1.1\r\nHost: a\n\n", errors.BAD_HEADER),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", errors.BAD_HEADER),
        (b"GET / HTTP/1.1\nHost: a\n\n", errors.BAD_REQUEST_LINE),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET  / HTTP/1.1"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET / HTTP/1.1 "), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET /\t HTTP/1.1"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET /\xe9 HTTP/1.1"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET /#x HTTP/1.1"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"G(T / HTTP/1.1"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET /"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET / http/1.1"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET / HTTP/1.10"), errors.BAD_REQUEST_LINE),
        (request(b"Host: a", line=b"GET / HTTP/1.2"), errors.BAD_VERSION),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", errors.BAD_VERSION),
        (b"\x16\x03\x01\x02\x00\x01\x00", errors.BAD_REQUEST_LINE),
    ],
)
def test_what_is_malformed_is_refused(raw: bytes, refusal: Refusal) -> None:
    assert refused(raw) is refusal
    assert refusal.close


@pytest.mark.parametrize(
    "raw",
    [b"GET / HTTP/1.1\n", b"GET / HTTP/3.0\r\n", b"nonsense\r\n", b"GET / HTTP/1.1\r\nHost: a\nX: ", b"\n"],
)
def test_a_line_that_can_not_become_right_is_refused_before_the_head_is_whole(raw: bytes) -> None:
    refused(raw)


# --- the length of the body -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ((), 0),
        ((b"Content-Length: 0",), 0),
        ((b"content-length:42\t ",), 42),
        ((b"Content-Length: 007",), 7),
        ((b"Content-Length: 999999999999999999",), 10**18 - 1),
        ((b"Transfer-Encoding: chunked",), CHUNKED),
        ((b"transfer-encoding:\tCHUNKED ",), CHUNKED),
    ],
)
def test_the_length_of_a_request_body(fields: tuple[bytes, ...], length: int) -> None:
    assert parsed(with_host(*fields)).length == length


@pytest.mark.parametrize(
    "fields",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"CONTENT-LENGTH: 5"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: 5,",),
        (b"Content-Length:",),
        (b"Content-Length: ",),
        (b"Content-Length: +5",),
        (b"Content-Length: -5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 5_0",),
        (b"Content-Length: 5.0",),
        (b"Content-Length: 5 5",),
        (b"Content-Length: \xb2",),
        (b"Content-Length: 1000000000000000000",),
        (b"Content-Length: " + b"9" * 5000,),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b"Transfer-Encoding: chunked, chunked",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding: chunked;q=1",),
        (b"Transfer-Encoding: ,chunked",),
        (b'Transfer-Encoding: "chunked"',),
    ],
)
def test_ambiguous_framing_is_refused(fields: tuple[bytes, ...]) -> None:
    assert refused(with_host(*fields)) is errors.BAD_FRAMING


@pytest.mark.parametrize("coding", [b"", b"gzip", b"identity", b"cow"])
def test_unknown_transfer_codings_are_not_implemented(coding: bytes) -> None:
    assert refused(with_host(b"Transfer-Encoding: " + coding)) is errors.BAD_TRANSFER_CODING


def test_transfer_encoding_is_refused_in_http_1_0() -> None:
    raw = with_host(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0")
    assert refused(raw) is errors.BAD_FRAMING


def test_look_alikes_with_underscores_are_known_but_frame_nothing() -> None:
    head = parsed(with_host(b"Content_Length: 5", b"Transfer_Encoding: chunked", b"X_Forwarded-For: 1.2.3.4"))
    assert head.length == 0
    assert [name for name, _ in head.known] == [
        b"host", b"content_length", b"transfer_encoding", b"x_forwarded-for"
    ]  # fmt: skip
    assert not head.plain


@pytest.mark.parametrize(
    "name", [b"X-Host", b"Hostx", b"Host-", b"-Host", b"XContent-Length", b"Te-", b"ate"]
)
def test_names_that_contain_a_known_name_are_other_fields(name: bytes) -> None:
    head = parsed(with_host(name + b": 77"))
    assert [known for known, _ in head.known] == [b"host"]
    assert head.plain


# --- who is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "authority", "host"),
    [
        (b"a.example", b"a.example", b"a.example"),
        (b"A.Example:8080", b"a.example:8080", b"a.example"),
        (b"a.example \t", b"a.example", b"a.example"),
        (b"a.example.", b"a.example.", b"a.example"),
        (b"a.example:", b"a.example:", b"a.example"),
        (b"a_b.example", b"a_b.example", b"a_b.example"),
        (b"192.0.2.1:80", b"192.0.2.1:80", b"192.0.2.1"),
        (b"[2001:DB8::1]", b"[2001:db8::1]", b"[2001:db8::1]"),
        (b"[::ffff:192.0.2.1]:443", b"[::ffff:192.0.2.1]:443", b"[::ffff:192.0.2.1]"),
        (b"", b"", b""),
        (b"a" * 255, b"a" * 255, b"a" * 255),
    ],
)
def test_hosts(value: bytes, authority: bytes, host: bytes) -> None:
    for fields in ((b"Host: " + value,), (b"Host:" + value, b"Accept: x", b"Connection: close")):
        for _ in range(2):  # the second time from memory
            head = parsed(request(*fields))
            assert (head.authority, head.host) == (authority, host)


@pytest.mark.parametrize(
    "value",
    [
        b"user@a.example", b"user:pw@a.example", b"a.example:80:80", b"a.example:x", b"a.example:-1", b":80",
        b"a.example:123456", b"a/b", b"a b", b"a,b", b"a?b", b"a#b", b"a\\b", b"[::1", b"::1", b"[]",
        b"[::1]x", b"[v1.x]", b"[::g]", b"\xe9", b"%61", b"a..", b".", b"..", b".:80", b"a" * 256,
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused(value: bytes) -> None:
    for _ in range(2):
        assert refused(request(b"Host: " + value)) is errors.BAD_HOST
        assert refused(request(b"Host: " + value, b"Content-Length: 0")) is errors.BAD_HOST


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("second", [b"Host: a.example", b"hOST: b", b"Host:"])
def test_a_second_host_is_refused(second: bytes, version: bytes) -> None:
    assert refused(with_host(second, line=b"GET / HTTP/" + version)) is errors.BAD_HOST


def test_only_http_1_0_may_name_no_host() -> None:
    assert refused(request(b"Accept: x")) is errors.BAD_HOST
    head = parsed(request(b"Accept: x", line=b"GET / HTTP/1.0"))
    assert (head.minor, head.host, head.authority, head.keep_alive) == (0, b"", b"", False)


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"/a/b?c=/d?e", b"/a/b"), (b"/", b"/"), (b"//a.example/x", b"//a.example/x"), (b"/?", b"/")],
)
def test_origin_form(target: bytes, path: bytes) -> None:
    head = parsed(with_host(line=b"GET " + target + b" HTTP/1.1"))
    assert (head.target, head.path, head.absolute) == (target, path, False)


@pytest.mark.parametrize(
    ("line", "target", "path", "authority"),
    [
        (b"GET http://B.example/x?y", b"/x?y", b"/x", b"b.example"),
        (b"GET HTTP://b.example:81", b"/", b"/", b"b.example:81"),
        (b"GET https://b.example?y=/z", b"/?y=/z", b"/", b"b.example"),
        (b"GET http://[::1]:80//x", b"//x", b"//x", b"[::1]:80"),
        (b"OPTIONS http://b.example", b"*", b"*", b"b.example"),
        (b"OPTIONS http://b.example/", b"/", b"/", b"b.example"),
        (b"OPTIONS http://b.example?x", b"/?x", b"/", b"b.example"),
    ],
)
def test_absolute_form_overrides_host(line: bytes, target: bytes, path: bytes, authority: bytes) -> None:
    head = parsed(with_host(line=line + b" HTTP/1.1"))
    assert (head.target, head.path, head.authority) == (target, path, authority)
    assert head.absolute and not head.plain
    assert head.host == authority.removesuffix(b":80").removesuffix(b":81")


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        (b"http://user@b.example/", errors.BAD_HOST),
        (b"http://user:pw@b.example/", errors.BAD_HOST),
        (b"http://b.example\\@c.example/", errors.BAD_HOST),
        (b"http://:80/", errors.BAD_HOST),
        (b"http://./", errors.BAD_HOST),
        (b"http:///x", errors.BAD_REQUEST_LINE),
        (b"http://", errors.BAD_REQUEST_LINE),
        (b"http:/b.example/", errors.BAD_REQUEST_LINE),
        (b"http://b.example/#x", errors.BAD_REQUEST_LINE),
        (b"ftp://b.example/", errors.BAD_REQUEST_LINE),
        (b"b.example:80", errors.BAD_REQUEST_LINE),
        (b"?x", errors.BAD_REQUEST_LINE),
        (b"*", errors.BAD_REQUEST_LINE),
        (b"**", errors.BAD_REQUEST_LINE),
    ],
)
def test_targets_that_are_refused(target: bytes, refusal: Refusal) -> None:
    assert refused(with_host(line=b"GET " + target + b" HTTP/1.1")) is refusal


def test_absolute_form_does_not_excuse_a_bad_host() -> None:
    line = b"GET http://b.example/ HTTP/1.1"
    for fields in ((b"Host: u@a",), (b"Host: a", b"Host: a"), ()):
        assert refused(request(*fields, line=line)) is errors.BAD_HOST


def test_asterisk_form() -> None:
    head = parsed(with_host(line=b"OPTIONS * HTTP/1.1"))
    assert (head.target, head.path, head.host, head.absolute) == (b"*", b"*", b"a.example", False)


def test_connect_is_refused_by_name() -> None:
    assert refused(with_host(line=b"CONNECT a.example:443 HTTP/1.1")) is errors.METHOD_REFUSED


def test_the_memory_of_hosts_is_bounded() -> None:
    for number in range(2 * heads._HOST_MEMO_LIMIT + 10):
        parsed(request(b"Host: h%d%b" % (number, b" " * (number % 3))))
    assert len(heads._host_memo) <= heads._HOST_MEMO_LIMIT
    assert all(len(key) < 300 and not key.endswith(b" ") for key in heads._host_memo)


# --- Connection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fields", "keeps"),
    [
        (b"1.1", (), True),
        (b"1.1", (b"Connection: close",), False),
        (b"1.1", (b"Connection: x, CLOSE ,y",), False),
        (b"1.1", (b"Connection: x", b"connection:Close"), False),
        (b"1.1", (b"Connection: keep-alive",), True),
        (b"1.1", (b"Connection: closed",), True),
        (b"1.1", (b"X-Connection: close",), True),
        (b"1.0", (), False),
        (b"1.0", (b"Connection: Keep-Alive",), True),
        (b"1.0", (b"Connection: keep-alive, close",), False),
        (b"1.0", (b"Keep-Alive: timeout=5",), False),
        (b"1.0", (b"Connection: x",), False),
    ],
)
def test_whether_the_connection_stays(version: bytes, fields: tuple[bytes, ...], keeps: bool) -> None:
    assert parsed(with_host(*fields, line=b"GET / HTTP/" + version)).keep_alive is keeps
    raw = response(b"Content-Length: 0", *fields, line=b"HTTP/" + version + b" 200 OK")
    assert answered(raw).keep_alive is keeps


@pytest.mark.parametrize(
    ("fields", "upgrade"),
    [
        ((b"Upgrade: WebSocket", b"Connection: Upgrade"), b"websocket"),
        ((b"Connection: keep-alive, upgrade", b"Upgrade: websocket"), b"websocket"),
        ((b"Upgrade: a", b"Upgrade: b", b"Connection: upgrade"), b"a,b"),
        ((b"Upgrade: websocket",), b""),
        ((b"Upgrade: websocket", b"Connection: upgraded"), b""),
        ((b"Connection: upgrade",), b""),
    ],
)
def test_upgrade_counts_only_with_its_connection_option(fields: tuple[bytes, ...], upgrade: bytes) -> None:
    assert parsed(with_host(*fields)).upgrade == upgrade


def test_tokens() -> None:
    assert tokens(b"a, b\t,,c ") == [b"a", b"b", b"", b"c"]


# --- responses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ((), UNTIL_CLOSE),
        ((b"Content-Length: 12",), 12),
        ((b"content-length:\t12 ", b"Connection: close"), 12),
        ((b"Content-Length: 12 ",), 12),
        ((b"Transfer-Encoding: Chunked",), CHUNKED),
        ((b"Content_Length: 12",), UNTIL_CLOSE),
    ],
)
def test_the_length_of_a_response_body(fields: tuple[bytes, ...], length: int) -> None:
    assert answered(response(*fields)).length == length


@pytest.mark.parametrize(
    "fields",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length:",),
        (b"Content-Length: -1",),
        (b"Content-Length: 1000000000000000000",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: identity",),
        (b"X: a\nContent-Length: 5",),
        (b"X: a\r\n b",),
        (b"X : a",),
        (b"X: a\x00",),
    ],
)
def test_ambiguous_responses_are_refused(fields: tuple[bytes, ...]) -> None:
    assert answer_refused(response(*fields))


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 600 Odd", b"HTTP/1.1 099 Odd", b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200\tOK", b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"ICY 200 OK",
        b"http/1.1 200 OK", b"", b" HTTP/1.1 200 OK", b"HTTP/1.1 +20 OK", b"HTTP/1.1 \xb2\xb200 OK",
    ],
)  # fmt: skip
def test_status_lines_that_are_refused(line: bytes) -> None:
    assert answer_refused(response(b"Content-Length: 0", line=line))


def test_garbage_is_refused_at_its_first_byte_and_a_bare_line_feed_at_once() -> None:
    assert answer_refused(b"S") == "not HTTP/1"
    assert answer_refused(b"HTTQ") == "not HTTP/1"
    assert answer_refused(b"HTTP/1.1 200 OK\n") == "bare LF"


def test_an_empty_reason_and_none() -> None:
    empty = answered(response(b"Content-Length: 0", line=b"HTTP/1.1 200 "))
    assert (empty.status, empty.reason, empty.plain) == (200, b"", True)
    none = answered(response(b"Content-Length: 0", line=b"HTTP/1.1 200"))
    assert (none.status, none.reason, none.plain) == (200, b"", False)


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ((b"Content-Length: 1", b"X-Connection: a"), True),
        ((b"Transfer-Encoding: chunked",), True),
        ((b"Content-Length: 1", b"Connection: keep-alive"), False),
        ((b"Transfer-Encoding: chunked", b"Keep-Alive: timeout=5"), False),
        ((), False),
    ],
)
def test_which_responses_go_on_as_they_came(fields: tuple[bytes, ...], plain: bool) -> None:
    assert answered(response(*fields)).plain is plain


def test_what_an_http_1_0_server_says_is_written_anew() -> None:
    assert not answered(response(b"Content-Length: 1", line=b"HTTP/1.0 200 OK")).plain


def test_transfer_encoding_is_refused_from_http_1_0_servers() -> None:
    assert answer_refused(response(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK"))


# --- fields and cost ------------------------------------------------------------------------------------


def test_field_values() -> None:
    fields = parsed(with_host(b"Cookie: a=B; c", b"X-Cookie: n", b"COOKIE:\td:e ", b"Cookies: n")).fields
    assert field_values(fields, b"cookie") == [b"a=B; c", b"d:e"]
    assert field_values(fields, b"missing") == []
    assert field_values(b"", b"cookie") == []


@pytest.mark.parametrize(
    "raw",
    [
        with_host(*[b"a:"] * 200_000),
        with_host(*[b"te: trailers"] * 80_000),
        with_host(b"Connection: " + b"," * 1_000_000),
        with_host(b"X:" + b" " * 1_000_000),
        with_host(b"a" * 1_000_000 + b":"),
        with_host(*[b"a:"] * 200_000)[:-4] + b"\x00\r\n\r\n",
        with_host(*[b"a:"] * 200_000)[:-1],
        with_host(line=b"GET http://" + b"a" * 1_000_000 + b"/ HTTP/1.1"),
        b"G" * 1_000_000,
        b"GET " + b"/" * 1_000_000 + b" \r\n",
    ],
    ids=range(10),
)
def test_the_cost_grows_with_the_size_alone(raw: bytes) -> None:
    begin = time.process_time()
    with contextlib.suppress(ProxyError):
        parse_request(raw, 0, len(raw))
    assert time.process_time() - begin < 1  # 0.1 s at most here; anything quadratic takes minutes
