"""Heads written anew: what the next hop gets is made from the one parse (design, invariant 5).

Hop-by-hop fields and those that Connection names go (RFC 9110 section 7.6.1), the forwarding fields come,
the operator's rules are applied last. Fields that nobody has to know travel as one block of bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from workers.contract.snapshot import HeaderRules
from workers.core.heads import CHUNKED, RequestHead, ResponseHead, tokens

# Known fields that stay: everything else among the known ones is ours to replace or to take out.
_KEPT_REQUEST: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
_KEPT_RESPONSE: Final = frozenset((b"content-length", b"transfer-encoding"))
# Searched for one by one; more of them are looked up line by line.
_FEW_NAMES: Final = 16
_BARE: Final = (
    [(b"upgrade", b"websocket"), (b"connection", b"upgrade")],
    [(b"connection", b"upgrade"), (b"upgrade", b"websocket")],
)
# Connection may not take out what frames or routes the message.
_NOT_NOMINATED: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"close", b"keep-alive", b"upgrade", b"")
)


def cut(fields: bytes, names: Collection[bytes]) -> bytes:
    """`fields` without the lines whose (lower-case) names are given, however often they occur."""
    if len(names) > _FEW_NAMES:
        return _cut_by_line(fields, names)
    lowered = fields.lower()
    for name in names:
        needle = b"\r\n" + name + b":"
        start = lowered.find(needle)
        if start < 0:
            continue
        end = lowered.find(b"\r\n", start + 2)
        if end < 0:
            end = len(fields)
        fields = fields[:start] + fields[end:]
        lowered = lowered[:start] + lowered[end:]
        if lowered.find(needle, start) >= 0:
            return _cut_by_line(fields, names)
    return fields


def _cut_by_line(fields: bytes, names: Collection[bytes]) -> bytes:
    # Slower for a usual head, yet one pass whatever a peer thinks up.
    names = frozenset(names)
    lines = fields.split(b"\r\n")
    return b"\r\n".join([line for line in lines if line.partition(b":")[0].lower() not in names])


class Rules:
    """A route's header rules, made ready once per configuration: `remove` are lower-case names to cut,
    `lines` is what is added, each line beginning with CRLF."""

    __slots__ = ("lines", "remove")

    def __init__(self, removed: Iterable[str], added: Iterable[tuple[str, str]]) -> None:
        added = list(added)
        names = [*removed, *[name for name, _ in added]]
        self.remove = tuple(dict.fromkeys([name.lower().encode("latin-1") for name in names]))
        self.lines = b"".join([f"\r\n{name}: {value}".encode("latin-1") for name, value in added])

    def apply(self, fields: bytes) -> bytes:
        """`fields` by the rules."""
        return cut(fields, self.remove) + self.lines


def request_rules(rules: HeaderRules) -> Rules | None:
    """The rules for requests, or `None` where there are none."""
    return (
        Rules(rules.request_remove, rules.request_set) if rules.request_remove or rules.request_set else None
    )


def response_rules(rules: HeaderRules) -> Rules | None:
    """The rules for responses, or `None` where there are none."""
    if rules.response_remove or rules.response_set:
        return Rules(rules.response_remove, rules.response_set)
    return None


def is_bare_upgrade(known: list[tuple[bytes, bytes]]) -> bool:
    """Whether the known fields of a handshake, or of the 101 to it, are `Connection: Upgrade` and `Upgrade:
    websocket`, with or without a Host in front, and nothing else."""
    return (known[1:] if len(known) == 3 and known[0][0] == b"host" else known) in _BARE


def upstream_head(head: RequestHead, target: bytes, forwarded: bytes, rules: Rules | None) -> bytes:
    """The head for the server. `forwarded` are the forwarding fields, each line ending with CRLF."""
    fields = head.fields
    # A handshake's Connection and Upgrade are ours to write; mostly they stand there as we would.
    as_it_is = head.plain or (bool(head.upgrade) and not head.absolute and is_bare_upgrade(head.known))
    if as_it_is and rules is None:
        return b"".join((head.method, b" ", target, b" HTTP/1.1", fields, b"\r\n", forwarded, b"\r\n"))
    if not as_it_is:
        fields = _request_fields(head, fields)
    fields = b"".join((fields, b"\r\n", forwarded[:-2])) if forwarded else fields
    if rules is not None:
        fields = rules.apply(fields)
    if head.upgrade and not as_it_is:
        fields += b"\r\nConnection: Upgrade\r\nUpgrade: " + head.upgrade
    return b"".join((head.method, b" ", target, b" HTTP/1.1", fields, b"\r\n\r\n"))


def _request_fields(head: RequestHead, fields: bytes) -> bytes:
    if len(head.known) == 2 and not head.absolute:
        # What nearly every browser sends: Host and "Connection: keep-alive", in this spelling.
        start = fields.find(b"\r\nConnection: keep-alive")
        end = start + len(b"\r\nConnection: keep-alive")
        if start >= 0 and fields[end : end + 1] in (b"\r", b""):
            return fields[:start] + fields[end:]
    drop: list[bytes] = []
    has_host = trailers = False
    for name, value in head.known:
        if name == b"host":
            has_host = True
        elif name not in _KEPT_REQUEST or (name == b"expect" and head.minor == 0):
            # Nobody waits for a 100 in HTTP/1.0: the expectation is ignored (RFC 9110 section 10.1.1).
            drop.append(name)
            if name == b"connection" and value != b"upgrade":
                drop.extend(option for option in tokens(value) if option not in _NOT_NOMINATED)
            elif name == b"te" and b"trailers" in tokens(value):
                trailers = True
    if head.absolute or not has_host:
        # RFC 9112 section 3.2.2: the Host of an absolute-form request is that of its target.
        drop.append(b"host")
        fields = cut(fields, dict.fromkeys(drop))
        fields = b"\r\nHost: " + head.authority + fields
    elif drop:
        fields = cut(fields, dict.fromkeys(drop))
    # We pass trailers on, so we may say so for ourselves (RFC 9110 section 10.1.4).
    return fields + b"\r\nTE: trailers\r\nConnection: TE" if trailers and not head.upgrade else fields


def client_head(head: ResponseHead, extra: bytes, rules: Rules | None) -> bytes:
    """The head for the client. `extra` are lines that the exchange adds, each beginning with CRLF."""
    fields = head.fields
    if not head.plain:
        fields = _response_fields(head, fields)
    if rules is not None:
        fields = rules.apply(fields)
    return b"".join((b"HTTP/1.1 %d " % head.status, head.reason, fields, extra, b"\r\n\r\n"))


def _response_fields(head: ResponseHead, fields: bytes) -> bytes:
    drop: list[bytes] = []
    if head.status < 200 or head.status == 204:
        # RFC 9112 section 6.1 and RFC 9110 section 8.6: neither field, whatever the server says.
        drop.extend(_KEPT_RESPONSE)
    for name, value in head.known:
        if name not in _KEPT_RESPONSE:
            drop.append(name)
            if name == b"connection" and value != b"upgrade":
                drop.extend(option for option in tokens(value) if option not in _NOT_NOMINATED)
    return cut(fields, dict.fromkeys(drop)) if drop else fields


def unchunked(head: ResponseHead) -> None:
    """Takes the chunked coding off a head, for a client that does not know it (HTTP/1.0)."""
    if head.length == CHUNKED:
        head.fields = cut(head.fields, (b"transfer-encoding", b"trailer"))
