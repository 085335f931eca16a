"""Request and response heads: found, checked and taken apart in a handful of C-level operations.

A browser's head has fifteen fields, so a Python step per field would cost more than everything else the
proxy does. One strict possessive pattern therefore checks the whole head at once (RFC 9112 sections 2-5:
no bare CR or LF, no folding, no white space before the colon, no control characters), and a second one
finds only those fields that a proxy must know. All other fields are carried as bytes and never looked at.
Where it is compiled, C does the same in one pass (`_native.c`); the patterns say what is right.

`parse_request` and `parse_response` take a buffer and a range and return the head, or `None` when it is not
complete yet. They raise `ProxyError` for what is malformed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from workers.contract import errors
from workers.contract.errors import ProxyError
from workers.contract.native import native

Buffer = bytes | bytearray
# What a whole head consists of: method, target, minor version, raw fields, size, known fields.
RequestParts = tuple[bytes, bytes, int, bytes, int, list[tuple[bytes, bytes]]]
# Minor version, status, reason phrase (`None` without the space before it), raw fields, size, known fields.
ResponseParts = tuple[int, int, bytes | None, bytes, int, list[tuple[bytes, bytes]]]

CHUNKED: Final = -1  # body length: chunked
UNTIL_CLOSE: Final = -2  # body length: until the server closes (responses only)

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
# RFC 9110 section 5.5: VCHAR, obs-text, SP and HTAB; never CR, LF or NUL.
_FIELDS: Final = rb"((?:\r\n" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+)*+)"
# Browsers leave some characters unescaped that RFC 3986 wants escaped; they are unambiguous. "#" is not.
_TARGET: Final = rb"([\x21\x22\x24-\x7e]++)"

_REQUEST: Final = re.compile(
    rb"(" + _TOKEN + rb"++) " + _TARGET + rb" HTTP/1\.([01])" + _FIELDS + rb"\r\n\r\n"
)
_RESPONSE: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?" + _FIELDS + rb"\r\n\r\n"
)
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb"++) " + _TARGET + rb" (HTTP/[0-9]\.[0-9])\r\n")

# The fields that a proxy must know. Underscores: CGI-like servers take X_Forwarded_For for X-Forwarded-For,
# so such look-alikes are found, and dropped, too.
_KNOWN_REQUEST: Final = re.compile(
    rb"\n(h(?:ost|ttp2-settings)|con(?:nection|tent[-_]length)|t(?:e|ransfer[-_]encoding)|upgrade|expect"
    rb"|keep-alive|proxy-connection|x[-_](?:forwarded[-_](?:for|host|proto|port)|request[-_]id)|forwarded)"
    rb":[\t ]*+([^\r]*+)"
)
_KNOWN_RESPONSE: Final = re.compile(
    rb"\n(con(?:nection|tent-length)|t(?:ransfer-encoding|e)|upgrade|keep-alive|proxy-connection)"
    rb":[\t ]*+([^\r]*+)"
)

# RFC 3986 section 3.2.2, without percent-encoding: names as DNS and containers have them, IPv4, [IPv6].
# No port without a host: RFC 9110 section 4.2.1 wants such a URI rejected.
_AUTHORITY: Final = re.compile(rb"(?:([a-z0-9._-]{1,255}+|\[[0-9a-f:.]{2,45}+\])(?::[0-9]{0,5}+)?)?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*+)(.*+)", re.IGNORECASE)
_LENGTH_DIGITS: Final = 18  # of a Content-Length, so that it fits 64 bits

_HOST_MEMO_LIMIT: Final = 4096
_KEEP_ALIVE: Final = (b"connection", b"keep-alive")
_host_memo: dict[bytes, bytes] = {}


class RequestHead:
    """One request head.

    `path` is the raw target without query; `host` is lower case without the port. `fields` is the raw
    block: every line begins with CRLF, none ends with it. `known` holds the fields that a proxy must know
    as (lower-case name, lower-case value), in their order. `length` is the body's: bytes, or `CHUNKED`.
    """

    __slots__ = (
        "absolute",
        "authority",
        "fields",
        "host",
        "keep_alive",
        "known",
        "length",
        "method",
        "minor",
        "path",
        "plain",
        "size",
        "target",
        "upgrade",
    )

    method: bytes
    target: bytes
    path: bytes
    authority: bytes
    host: bytes
    minor: int
    fields: bytes
    known: list[tuple[bytes, bytes]]
    length: int
    keep_alive: bool
    upgrade: bytes
    absolute: bool
    plain: bool
    size: int


class ResponseHead:
    """One response head. `length` is the body's: bytes, `CHUNKED` or `UNTIL_CLOSE`; the caller knows which
    requests have none whatever the head says. `plain` says that nothing in it needs to be taken out."""

    __slots__ = ("fields", "keep_alive", "known", "length", "minor", "plain", "reason", "size", "status")

    status: int
    reason: bytes
    minor: int
    fields: bytes
    known: list[tuple[bytes, bytes]]
    length: int
    keep_alive: bool
    plain: bool
    size: int


def _request_parts(buffer: Buffer, start: int, end: int) -> RequestParts | None:
    match = _REQUEST.match(buffer, start, end)
    if match is None:
        return None
    method, target, minor, fields = match.groups()
    known = _KNOWN_REQUEST.findall(fields.lower())
    return method, target, int(minor), fields, match.end() - start, known


def _response_parts(buffer: Buffer, start: int, end: int) -> ResponseParts | None:
    match = _RESPONSE.match(buffer, start, end)
    if match is None:
        return None
    minor, status, reason, fields = match.groups()
    known = _KNOWN_RESPONSE.findall(fields.lower())
    return int(minor), int(status), reason, fields, match.end() - start, known


def _field_values(fields: bytes, name: bytes) -> list[bytes]:
    values = []
    for line in fields.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            values.append(value.strip(b"\t "))
    return values


# Of a whole head at `buffer[start:end]`, or `None` where there is none (yet).
request_parts: Final[Callable[[Buffer, int, int], RequestParts | None]] = (
    _request_parts if native is None else native.request_parts
)
response_parts: Final[Callable[[Buffer, int, int], ResponseParts | None]] = (
    _response_parts if native is None else native.response_parts
)
# All values of the field `name` (lower case) in a raw block, in their own spelling.
field_values: Final[Callable[[bytes, bytes], list[bytes]]] = (
    _field_values if native is None else native.field_values
)


def parse_request(buffer: Buffer, start: int, end: int) -> RequestHead | None:
    """The request head at `buffer[start:end]`, or `None` when more bytes are needed.

    Raises `ProxyError` for a malformed or ambiguous head (RFC 9112 sections 2.2, 3, 5 and 6).
    """
    parts = request_parts(buffer, start, end)
    if parts is None:
        _explain_request(buffer, start, end)
        return None
    head = RequestHead()
    head.method, target, head.minor, head.fields, head.size, known = parts
    head.known = known
    if len(known) == 1 and known[0][0] == b"host":
        authority = known[0][1]
        head.length = 0
        head.keep_alive = head.minor == 1
        head.upgrade = b""
        head.plain = True
    elif len(known) == 2 and known[0][0] == b"host" and known[1] == _KEEP_ALIVE:
        authority = known[0][1]  # what nearly every browser sends
        head.length = 0
        head.keep_alive = True
        head.upgrade = b""
        head.plain = False
    else:
        authority = _read_known_request(head, known)
    head.target = target
    head.absolute = False
    if target.startswith(b"/"):
        head.path = target.partition(b"?")[0]
    else:
        authority = _special_target(head, authority)
    host = _host_memo.get(authority)
    if host is None:
        authority = authority.rstrip(b"\t ")
        host = _check_host(authority)
    head.authority = authority
    head.host = host
    return head


def _read_known_request(head: RequestHead, known: list[tuple[bytes, bytes]]) -> bytes:
    """Fills in what the known fields say; returns the Host value."""
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection = b""
    head.upgrade = b""
    head.plain = False
    for name, value in known:
        if name == b"host":
            hosts.append(value.rstrip(b"\t "))
        elif name == b"content-length":
            lengths.append(value.rstrip(b"\t "))
        elif name == b"transfer-encoding":
            codings.append(value.rstrip(b"\t "))
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
        elif name == b"upgrade":
            head.upgrade = head.upgrade + b"," + value if head.upgrade else value
    # RFC 9112 section 3.2: exactly one Host in HTTP/1.1; older clients may have none.
    if len(hosts) > 1 or (not hosts and head.minor == 1):
        raise ProxyError(errors.BAD_HOST, detail="no Host" if not hosts else "more than one Host")
    head.length = _request_length(head.minor, lengths, codings)
    head.keep_alive = _keeps_alive(head.minor, connection)
    if head.upgrade and connection != b"upgrade" and b"upgrade" not in tokens(connection):
        head.upgrade = b""  # RFC 9110 section 7.8: without the connection option it is to be ignored
    return hosts[0] if hosts else b""


def _request_length(minor: int, lengths: list[bytes], codings: list[bytes]) -> int:
    """RFC 9112 section 6.3 for requests, refusing whatever two parsers might read differently."""
    if codings:
        if lengths:
            raise ProxyError(errors.BAD_FRAMING, detail="Transfer-Encoding with Content-Length")
        if minor == 0:
            raise ProxyError(errors.BAD_FRAMING, detail="Transfer-Encoding in HTTP/1.0")
        if codings == [b"chunked"]:
            return CHUNKED
        if b"chunked" in b",".join(codings):
            raise ProxyError(errors.BAD_FRAMING, detail="more than one transfer coding")
        raise ProxyError(errors.BAD_TRANSFER_CODING)
    if not lengths:
        return 0
    return content_length(lengths, errors.BAD_FRAMING, "client")


def content_length(values: list[bytes], refusal: errors.Refusal, side: str) -> int:
    """The one Content-Length (RFC 9110 section 8.6). Repeats are refused even when they agree: what is
    written to the next hop would have to be repaired, and nobody honest sends them."""
    if len(values) > 1:
        raise ProxyError(refusal, side=side, detail="more than one Content-Length")
    if not (values[0].isdigit() and len(values[0]) <= _LENGTH_DIGITS):
        raise ProxyError(refusal, side=side, detail="Content-Length is not a number")
    return int(values[0])


def tokens(value: bytes) -> list[bytes]:
    """The elements of a comma-separated list (RFC 9110 section 5.6.1), as they are spelled."""
    return [token.strip(b"\t ") for token in value.split(b",")]


def _keeps_alive(minor: int, connection: bytes) -> bool:
    """RFC 9112 section 9.3."""
    if not connection:
        return minor == 1
    if connection == b"keep-alive":
        return True
    if connection == b"upgrade":
        return minor == 1
    options = tokens(connection)
    if b"close" in options:
        return False
    return minor == 1 or b"keep-alive" in options


def _special_target(head: RequestHead, authority: bytes) -> bytes:
    """absolute-form and asterisk-form (RFC 9112 sections 3.2.2 and 3.2.4); returns the authority.
    `authority` is the Host field's."""
    target = head.target
    if head.method == b"CONNECT":  # authority-form; refused by name rather than as a malformed line
        raise ProxyError(errors.METHOD_REFUSED, detail="CONNECT")
    if target == b"*" and head.method == b"OPTIONS":
        head.path = target
        return authority
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise ProxyError(errors.BAD_REQUEST_LINE, detail="the target is neither a path nor an http URI")
    _check_host(authority.rstrip(b"\t "))  # not used, yet section 3.2 has an invalid one refused
    # "a proxy MUST ignore the received Host header field and replace it with the host information of the
    # request-target"
    authority, target = match.groups()
    if not authority:
        raise ProxyError(errors.BAD_REQUEST_LINE, detail="the target names no host")
    if not target and head.method == b"OPTIONS":
        target = b"*"  # section 3.2.4
    elif not target.startswith(b"/"):
        target = b"/" + target
    head.target = target
    head.path = target.partition(b"?")[0]
    head.absolute = True
    head.plain = False
    return authority.lower()


def _check_host(authority: bytes) -> bytes:
    """The host of a lower-case authority, remembered. Raises `ProxyError` where it is none."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ProxyError(errors.BAD_HOST, detail="Host is malformed")
    host: bytes = match.group(1) or b""
    host = host.removesuffix(b".")  # the root: RFC 1034 section 3.1
    if host.endswith(b".") or (authority and not host):
        raise ProxyError(errors.BAD_HOST, detail="Host ends in more than one dot")
    if len(_host_memo) >= _HOST_MEMO_LIMIT:
        _host_memo.clear()  # many made-up names: start anew rather than keep order for an attacker
    _host_memo[authority] = host
    return host


def _explain_request(buffer: Buffer, start: int, end: int) -> None:
    """Why there is no head: returns when it is merely incomplete, raises for what can't become one."""
    whole = buffer.find(b"\r\n\r\n", start, end)
    line_end = buffer.find(b"\n", start, end)
    if line_end < 0:
        if _looks_like_tls(buffer, start, end):
            raise ProxyError(errors.BAD_REQUEST_LINE, detail="TLS on a plain port")
        return
    match = _REQUEST_LINE.match(buffer, start, end)
    if match is None:
        raise ProxyError(errors.BAD_REQUEST_LINE)
    if match.group(3) not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ProxyError(errors.BAD_VERSION, detail=match.group(3).decode("ascii"))
    if whole >= 0:
        raise ProxyError(errors.BAD_HEADER)
    _refuse_bare_line_feed(buffer, start, end, errors.BAD_HEADER, "client")


def _looks_like_tls(buffer: Buffer, start: int, end: int) -> bool:
    # A TLS record of type handshake, version 3.x: RFC 8446 section 5.1.
    return end - start >= 2 and buffer[start] == 0x16 and buffer[start + 1] == 0x03


def _refuse_bare_line_feed(buffer: Buffer, start: int, end: int, refusal: errors.Refusal, side: str) -> None:
    """A head that can never match should be answered now rather than time out."""
    if buffer.count(b"\n", start, end) != buffer.count(b"\r\n", start, end):
        raise ProxyError(refusal, side=side, detail="bare LF")


def parse_response(buffer: Buffer, start: int, end: int) -> ResponseHead | None:
    """The response head at `buffer[start:end]`, or `None` when more bytes are needed.

    Raises `ProxyError` (BAD_RESPONSE) for what is malformed (RFC 9112 sections 4 to 6).
    """
    parts = response_parts(buffer, start, end)
    if parts is None:
        _explain_response(buffer, start, end)
        return None
    head = ResponseHead()
    head.minor, head.status, reason, head.fields, head.size, known = parts
    head.reason = reason or b""
    head.known = known
    if len(known) == 1 and head.minor == 1 and known[0][0] == b"content-length":
        value = known[0][1]
        head.length = (
            int(value)
            if value.isdigit() and len(value) <= _LENGTH_DIGITS
            else content_length([value.rstrip(b"\t ")], errors.BAD_RESPONSE, "upstream")
        )
        head.keep_alive = True
        head.plain = True
    else:
        _read_known_response(head, known)
    if reason is None or head.status < 200 or head.status == 204:
        head.plain = False  # section 4 wants the space even before an empty phrase: written anew
    return head


def _read_known_response(head: ResponseHead, known: list[tuple[bytes, bytes]]) -> None:
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection = b""
    plain = head.minor == 1
    for name, value in known:
        if name == b"content-length":
            lengths.append(value.rstrip(b"\t "))
        elif name == b"transfer-encoding":
            codings.append(value.rstrip(b"\t "))
        else:
            plain = False
            if name == b"connection":
                connection = connection + b"," + value if connection else value
    head.plain = plain
    head.keep_alive = _keeps_alive(head.minor, connection)
    head.length = _response_length(head.minor, lengths, codings)
    if head.length == UNTIL_CLOSE:
        head.plain = False


def _response_length(minor: int, lengths: list[bytes], codings: list[bytes]) -> int:
    """RFC 9112 section 6.3 for responses; a pair that might hide a second response is refused."""
    if codings:
        if lengths:
            raise ProxyError(
                errors.BAD_RESPONSE, side="upstream", detail="Transfer-Encoding with Content-Length"
            )
        if codings != [b"chunked"] or minor == 0:
            raise ProxyError(errors.BAD_RESPONSE, side="upstream", detail="unknown transfer coding")
        return CHUNKED
    if not lengths:
        return UNTIL_CLOSE
    return content_length(lengths, errors.BAD_RESPONSE, "upstream")


_RESPONSE_START: Final = b"HTTP/1."


def _explain_response(buffer: Buffer, start: int, end: int) -> None:
    begin = bytes(buffer[start : min(end, start + len(_RESPONSE_START))])
    if begin != _RESPONSE_START[: len(begin)]:
        raise ProxyError(errors.BAD_RESPONSE, side="upstream", detail="not HTTP/1")
    if buffer.find(b"\r\n\r\n", start, end) >= 0:
        raise ProxyError(errors.BAD_RESPONSE, side="upstream", detail="malformed head")
    _refuse_bare_line_feed(buffer, start, end, errors.BAD_RESPONSE, "upstream")
