"""What the server is told about the client: X-Forwarded-*, Forwarded (RFC 7239) and X-Request-ID.

A peer that is no trusted proxy says nothing about itself: its fields are replaced by ours, made by a
`ForwardedPrefix` that is built once per client connection. What a trusted proxy says is kept where it is
valid, and appended to, by `believed_lines`.

Addresses are texts without a port, as the socket gives them; a client on a Unix socket has none: `""`,
told to the server as `unknown` (RFC 7239 section 6.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

_MEMO_LIMIT: Final = 4096
_NODE_BYTES: Final = 64  # longer than any address with brackets, port and white space around it
_HOPS: Final = 64  # addresses of a list that are looked at, from the right
# As numbers: bytes are looked for in bytes by way of an exception.
_COLON: Final = 0x3A
_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_SCHEMES: Final = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~+/=-]{1,128}")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
# RFC 7239 section 4: pairs joined by ";" are an element, elements by "," the list. Bare colons and brackets
# should be quoted and often are not.
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_VALUE: Final = rb'(?:[!#$%&\'*+.^_`|~0-9A-Za-z:\[\]-]++|"(?:[^"\\]|\\.)*+")'
_PAIR: Final = _TOKEN + rb"=" + _VALUE
_FORWARDED: Final = re.compile(rb"(?:[ \t]*+(?:" + _PAIR + rb")?+[ \t]*+(?:[;,]|$))++")
_PIECES: Final = re.compile(rb"(" + _TOKEN + rb")=(" + _VALUE + rb")|,")


class RequestIds:
    """Request ids without end: `prefix` (random, at least 16 characters, another one in every worker and
    start) and a counter."""

    __slots__ = ("_head", "_number", "_prefix")

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._number = 0
        self._head = b""

    def following(self) -> bytes:
        """The next one."""
        number = self._number = self._number + 1
        low = number & 0xFF
        if low == 0 or not self._head:  # all but the last two digits change once in 256 requests
            self._head = b"%b-%04x" % (self._prefix, number >> 8)
        return self._head + _BYTES[low]


_BYTES: Final = [b"%02x" % byte for byte in range(256)]


class TrustedProxies:
    """The networks whose word about the client is taken (`trusted_proxies` of a listener)."""

    __slots__ = ("_memo", "_networks")

    def __init__(self, cidrs: Sequence[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(cidr, strict=False) for cidr in cidrs]
        self._memo: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Whether `address` lies in one of the networks. IPv4 in IPv6 (`::ffff:a.b.c.d`) is IPv4; a Unix
        socket's peer and what is no address are never trusted."""
        if not self._networks:
            return False
        known = self._memo.get(address)
        if known is None:
            if len(self._memo) >= _MEMO_LIMIT:
                self._memo.clear()
            parsed = _parse(address)
            known = parsed is not None and any(parsed in network for network in self._networks)
            self._memo[address] = known
        return known

    def client_ip(self, peer: str, forwarded_for: bytes, forwarded: bytes = b"") -> str:
        """The client's address: the rightmost one that is no trusted proxy of `peer` and those that
        X-Forwarded-For lists (where there is none: Forwarded). What stands left of it, anybody may have
        written. Where all are trusted it is the leftmost; what is no address ends the search."""
        client = peer
        if not self.trusts(peer):
            return client
        if forwarded_for:
            nodes = forwarded_for.rsplit(b",", _HOPS)[-_HOPS:]
        else:
            nodes = [element.get(b"for", b"") for element in _elements(forwarded)]
        for node in reversed(nodes):
            address = _node_address(node)
            if address is None:
                break
            client = address
            if not self.trusts(address):
                break
        return client


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return parsed.ipv4_mapped or parsed if isinstance(parsed, IPv6Address) else parsed


def _elements(forwarded: bytes) -> list[dict[bytes, bytes]]:
    """The elements of a Forwarded value, the last few, as lower-case names and unquoted values; none where
    it is malformed."""
    if not forwarded or not _FORWARDED.fullmatch(forwarded):
        return []
    elements: list[dict[bytes, bytes]] = [{}]
    for piece in _PIECES.finditer(forwarded):
        name, value = piece.groups()
        if name is None:
            elements.append({})
        else:
            elements[-1][name.lower()] = (
                re.sub(rb"\\(.)", rb"\1", value[1:-1]) if value[:1] == b'"' else value
            )
    return elements[-_HOPS:]


def _node_address(node: bytes) -> str | None:
    """The address in an entry of X-Forwarded-For or a `for=`; both come with a port, and IPv6 with
    brackets, sometimes. Written in the canonical way, so that it can be compared."""
    return _read_node(node) if len(node) <= _NODE_BYTES else None


@lru_cache(maxsize=_MEMO_LIMIT)  # clients behind a proxy come again and again; parsing costs 2 us
def _read_node(node: bytes) -> str | None:
    text = node.strip(b" \t").decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    parsed = _parse(text)
    return None if parsed is None else str(parsed)


def plain_address(address: str) -> str:
    """A socket's peer address as it is told and logged: IPv4 that came over an IPv6 socket
    (`::ffff:192.0.2.1`) as IPv4, and no scope behind a link-local address."""
    if ":" not in address:
        return address
    parsed = _parse(address.partition("%")[0])
    return address if parsed is None else str(parsed)


class ForwardedPrefix:
    """The lines about one client connection, made at its first request and kept for the later ones.

    `peer` is the client's address (of `plain_address`), `scheme` `http` or `https`, `port` the
    listener's, or 0 for a Unix socket, which has none.
    """

    __slots__ = ("_host", "_lines", "_peer", "_port", "_scheme")

    def __init__(self, peer: str, scheme: bytes, port: int) -> None:
        self._peer = peer
        self._scheme = scheme
        self._port = port
        self._host: bytes | None = None
        self._lines = b""

    def lines(self, host: bytes, request_id: bytes) -> bytes:
        """The fields for the server, each line ending with CRLF. `host` is the checked value of the Host
        field; empty where there was none."""
        if host != self._host:
            self._host = host
            self._lines = self._build(host)
        return b"".join((self._lines, request_id, b"\r\n"))

    def _build(self, host: bytes) -> bytes:
        if host and self._port:
            peer = self._peer.encode()
            if peer and _COLON not in peer and _QUOTE not in host and _BACKSLASH not in host:  # nearly always
                return b"".join(
                    (
                        b"X-Forwarded-For: ",
                        peer,
                        b"\r\nX-Forwarded-Proto: ",
                        self._scheme,
                        b"\r\nX-Forwarded-Host: ",
                        host,
                        b"\r\nX-Forwarded-Port: ",
                        b"%d" % self._port,
                        b"\r\nForwarded: for=",
                        peer,
                        b";proto=",
                        self._scheme,
                        b';host="',
                        host,
                        b'"\r\nX-Request-ID: ',
                    )
                )
        fields = _Fields(_address(self._peer), self._scheme, host, b"%d" % self._port if self._port else b"")
        element = _element(self._peer, self._scheme, host)
        return _write(fields, element, b"")

    def believed_lines(self, host: bytes, request_id: bytes, received: Received) -> bytes:
        """The same for a request that a trusted proxy sent with `received`: lists are appended to; scheme,
        host, port and request id are kept where they are valid, and ours where they are not."""
        earlier = _elements(received.forwarded)
        own = earlier[-1] if earlier else {}  # what the proxy itself saw
        scheme = (received.proto or own.get(b"proto", b"")).lower()
        scheme = scheme if scheme in _SCHEMES else b""
        said_host = received.host or own.get(b"host", b"")
        said_host = said_host if _HOST.fullmatch(said_host) else b""
        fields = _Fields(
            _append(received.forwarded_for or _translated_for(earlier), _address(self._peer)),
            scheme or self._scheme,
            said_host or host,
            self._believed_port(received.port, scheme, said_host),
        )
        before = received.forwarded if earlier else _translated_list(received.forwarded_for, fields)
        elements = _append(before, _element(self._peer, self._scheme, host))
        kept_id = received.request_id if _REQUEST_ID.fullmatch(received.request_id) else request_id
        return _write(fields, elements, kept_id) + b"\r\n"

    def _believed_port(self, said: bytes, scheme: bytes, host: bytes) -> bytes:
        if said.isdigit() and len(said) <= 5 and 0 < int(said) < 65536:
            return said
        # A proxy that speaks of the scheme alone was reached at the port of its Host, or the default one:
        # ours would contradict it.
        match = _HOST.fullmatch(host)
        if match is not None and match[1]:
            return match[1]
        if scheme:
            return b"%d" % _SCHEMES[scheme]
        return b"%d" % self._port if self._port else b""


class Received(NamedTuple):
    """The forwarding fields of a request, repeated ones joined with ", "; empty where missing."""

    forwarded_for: bytes = b""
    proto: bytes = b""
    host: bytes = b""
    port: bytes = b""
    forwarded: bytes = b""
    request_id: bytes = b""


class _Fields(NamedTuple):
    forwarded_for: bytes
    proto: bytes
    host: bytes
    port: bytes


def _write(fields: _Fields, elements: bytes, request_id: bytes) -> bytes:
    forwarded_for, proto, host, port = fields
    return b"".join(
        (
            b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (forwarded_for, proto),
            b"X-Forwarded-Host: %b\r\n" % host if host else b"",
            b"X-Forwarded-Port: %b\r\n" % port if port else b"",
            b"Forwarded: %b\r\nX-Request-ID: %b" % (elements, request_id),
        )
    )


def _append(received: bytes, ours: bytes) -> bytes:
    return received + b", " + ours if received else ours


def _address(peer: str) -> bytes:
    return peer.encode() or b"unknown"


def _node(peer: str) -> bytes:
    """RFC 7239 section 6: IPv6 in brackets, and so in quotes."""
    return b'"[%b]"' % peer.encode() if ":" in peer else _address(peer)


def _element(peer: str, scheme: bytes, host: bytes) -> bytes:
    """A `forwarded-element` of RFC 7239 section 4."""
    element = b"for=%b;proto=%b" % (_node(peer), scheme)
    if not host:
        return element
    return element + b';host="%b"' % host.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _translated_for(elements: Sequence[dict[bytes, bytes]]) -> bytes:
    """The X-Forwarded-For that says what Forwarded alone said; empty where a node has no address."""
    addresses = [_node_address(element.get(b"for", b"")) for element in elements]
    return ", ".join(address or "" for address in addresses).encode() if all(addresses) else b""


def _translated_list(forwarded_for: bytes, fields: _Fields) -> bytes:
    """The Forwarded that says what X-Forwarded-For alone said (RFC 7239 section 7.4), so that readers of
    either field see the same client; empty where a node has no address."""
    addresses = [_node_address(node) for node in forwarded_for.rsplit(b",", _HOPS)[-_HOPS:]]
    known = [address for address in addresses if address is not None]
    if len(known) < len(addresses):
        return b""
    # Scheme and host are those that the first proxy saw.
    first = _element(known[0], fields.proto, fields.host)
    return b", ".join([first, *[b"for=" + _node(address) for address in known[1:]]])
