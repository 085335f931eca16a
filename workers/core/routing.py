"""Which route a request takes: the first match in file order, found by tables and not by a scan.

Patterns
    host  `"a.example.com"` matches that name; `"*.example.com"` matches one or more labels below it and
          never `example.com` itself; no host matches every request, one without a Host field too.
    path  `"/chat"` matches that path alone; `"/ws/*"` matches `/ws/` and all below it, and not `/ws`
          (as `location /ws/` in nginx and `/ws/*` in Caddy: name `/ws` in a route of its own where it
          is served); `"/*"` or no path matches all.

Paths are matched as a server behind would read them (RFC 3986 section 6.2.2): percent-encoded octets are
decoded, dot segments resolved and repeated slashes merged, so no spelling of a path slips past a route.
The request itself is forwarded as it was written. A path that two servers could read as two different
ones (see `normalise_for_match`) is refused, since whichever route it took could be the wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from workers.contract.errors import BAD_REQUEST_LINE, ProxyError
from workers.contract.snapshot import RouteSpec

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
_SLASHES: Final = re.compile(rb"//+")
_ENCODED_SLASH: Final = re.compile(rb"%2[Ff]")
# ";" starts a parameter that servlet containers drop before they resolve dots: "/..;/" is "/../" there.
_DOT_PARAMETER: Final = re.compile(rb"/\.\.?;")
_DOT_SEGMENT: Final = re.compile(rb"/\.\.?(?:[/;]|$)")
_PERCENT: Final = 0x25
_HOST_BYTES: Final = 255  # longer ones are no domain names (RFC 1035 section 2.3.4) and match no wildcard
# pchar of RFC 3986 section 3.3 and "/"; letters, digits and "_.-~" are safe anyway.
_PATH_SAFE: Final = "/!$&'()*+,;=:@"


def normalise_for_match(path: bytes) -> bytes | None:
    """`path` (without query) as servers read it, or `None` where they would not agree on it.

    `None`: a malformed escape or `%00`; a path that climbs above the root; dot segments whose meaning
    depends on whether `%2F` is a slash or on whether empty segments count; `/..;`. An encoded slash that
    changes no dot segment is read as a slash, the choice of nginx.
    """
    if b"%" in path:
        if _BAD_ESCAPE.search(path):
            return None
        return _resolve_encoded(path)
    return _resolve(path)


def _resolve_encoded(path: bytes) -> bytes | None:
    resolved = _resolve(unquote_to_bytes(path))
    if resolved is None or not _ENCODED_SLASH.search(path):
        return resolved
    # Read %2F as data: escaped once more, it survives decoding, and dots beside it are no segments.
    as_data = _resolve(unquote_to_bytes(_ENCODED_SLASH.sub(b"%252F", path)))
    if as_data is None or _SLASHES.sub(b"/", as_data.replace(b"%2F", b"/")) != resolved:
        # A client's own "%252F" makes the readings differ too; it is rare beside a %2F, and refused.
        return None
    return resolved


def _resolve(path: bytes) -> bytes | None:
    if _DOT_SEGMENT.search(path):
        return None if _DOT_PARAMETER.search(path) else _remove_dots(path)
    return _SLASHES.sub(b"/", path) if b"//" in path else path


def _remove_dots(path: bytes) -> bytes | None:
    """RFC 3986 section 5.2.4, and `None` where it would climb above the root, or where merging slashes
    before or after it makes a difference (`/a//../b`)."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if not kept or not kept.pop():
                return None
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return _SLASHES.sub(b"/", b"/" + b"/".join(kept))


def strip_prefix(pattern: str, path: bytes) -> bytes:
    """The path that a route with `strip_prefix` sends on: `path`, which matched `pattern`, without the
    prefix. `"/ws/*"` makes `/ws/chat` into `/chat`; an exact pattern leaves `/`.

    What follows the prefix stays as the client wrote it, unless the prefix was spelled in another way
    or dots reach into it: then the normalised path is stripped and encoded anew.
    """
    if pattern == "/*":
        return path  # matched unseen, so it may be one that can't be normalised
    if not pattern.endswith("/*"):
        return b"/"
    prefix = pattern[:-1].encode()
    rest = path[len(prefix) - 1 :]
    if path.startswith(prefix) and normalise_for_match(rest) is not None:
        return rest
    normal = normalise_for_match(path)
    normal_prefix = normalise_for_match(prefix)
    if normal is None or normal_prefix is None or not normal.startswith(normal_prefix):
        raise ValueError(f"{path!r} does not match {pattern!r}")
    return quote_from_bytes(normal[len(normal_prefix) - 1 :], _PATH_SAFE).encode()


class _Entry:
    """A route and its place in the file."""

    __slots__ = ("index", "route")

    def __init__(self, index: int, route: RouteSpec) -> None:
        self.index = index
        self.route = route


class _Node:
    """A path prefix: the first route in the file among those of this prefix and of the shorter ones."""

    __slots__ = ("below", "entry")

    def __init__(self) -> None:
        self.below: dict[bytes, _Node] = {}
        self.entry: _Entry | None = None


class _PathTable:
    """The routes of one host pattern."""

    __slots__ = ("_root", "everything", "exact", "first")

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._root = _Node()
        self.exact: dict[bytes, _Entry] = {}
        self.first = entries[0].index
        for entry in entries:
            self._add(entry)
        _inherit(self._root, None)
        for path, entry in self.exact.items():
            wider = self.prefix(path)
            if wider is not None and wider.index < entry.index:
                self.exact[path] = wider
        # Set where the path makes no difference: the first route takes all.
        root = self._root.entry
        self.everything = root if root is not None and root.index == self.first else None

    def _add(self, entry: _Entry) -> None:
        pattern = entry.route.path or "/*"
        path = normalise_for_match(pattern.encode())
        if path is None or not path.startswith(b"/"):
            raise ValueError(f"route {entry.route.name!r}: path {pattern!r} can't be matched")
        if not path.endswith(b"/*"):
            self.exact.setdefault(path, entry)
            return
        node = self._root
        for segment in path.split(b"/")[1:-1]:
            node = node.below.setdefault(segment, _Node())
        if node.entry is None:
            node.entry = entry

    def prefix(self, path: bytes) -> _Entry | None:
        """The first route among those whose prefix the normalised `path` has. Only where `exact` has no
        entry for it: those are the first of all already."""
        node = self._root
        start = 1
        # At most as many turns as the deepest prefix has segments, whatever a client sends.
        while node.below:
            end = path.find(b"/", start)
            if end < 0:
                break
            deeper = node.below.get(path[start:end])
            if deeper is None:
                break
            node = deeper
            start = end + 1
        return node.entry


def _inherit(root: _Node, entry: _Entry | None) -> None:
    pending = [(root, entry)]
    while pending:
        node, wider = pending.pop()
        if node.entry is None or (wider is not None and wider.index < node.entry.index):
            node.entry = wider
        pending.extend((child, node.entry) for child in node.below.values())


class _Host:
    """The path tables that can match a host name, the one with the earliest route first."""

    __slots__ = ("_tables", "everything", "table")

    def __init__(self, tables: Sequence[_PathTable]) -> None:
        self._tables = tuple(sorted(tables, key=lambda table: table.first))
        self.table = tables[0] if len(tables) == 1 else None
        first = self._tables[0].everything if tables else None
        self.everything = first.route if first is not None else None

    def find(self, path: bytes) -> RouteSpec | None:
        best: _Entry | None = None
        for table in self._tables:
            if best is not None and best.index < table.first:
                break
            found = table.exact.get(path) or table.prefix(path)
            if found is not None and (best is None or found.index < best.index):
                best = found
        return best.route if best is not None else None


class Router:
    """All routes of a configuration. Memory grows with the number of routes, not with its square; a
    lookup costs the depth of the host and of the deepest prefix, not the number of routes."""

    __slots__ = ("_any", "_hosts", "_named", "_suffixes")

    def __init__(self, routes: Sequence[RouteSpec]) -> None:
        by_pattern: dict[str, list[_Entry]] = {}
        for index, route in enumerate(routes):
            by_pattern.setdefault(route.host or "*", []).append(_Entry(index, route))
        tables = {pattern: _PathTable(entries) for pattern, entries in by_pattern.items()}
        self._any = _Host([tables["*"]] if "*" in tables else [])
        self._hosts: dict[bytes, _Host] = {}
        self._suffixes: dict[bytes, _Host] = {}  # b".example.com"
        for pattern in tables:
            host = _Host([tables[wider] for wider in _covering(pattern) if wider in tables])
            if pattern.startswith("*."):
                self._suffixes[pattern[1:].encode()] = host
            elif pattern != "*":
                self._hosts[pattern.encode()] = host
        self._named = bool(self._hosts or self._suffixes)

    def find(self, host: bytes, path: bytes) -> RouteSpec | None:
        """The route for `host` (lower case, without port; empty when there was none) and `path` (as in
        the request target, without query), or `None`.

        Raises `ProxyError` (bad_request_line) where `path` is ambiguous and the path decides.
        """
        tables = self._hosts.get(host) or (self._wider(host) if self._named else self._any)
        if tables.everything is not None:
            return tables.everything
        # An int in bytes, and find: "bytes in bytes" costs twice as much, as it tries for an int first.
        if _PERCENT in path or path.find(b"//") >= 0 or path.find(b"/.") >= 0:
            normal = normalise_for_match(path)
            if normal is None:
                raise ProxyError(BAD_REQUEST_LINE, detail="ambiguous path")
            path = normal
        table = tables.table
        if table is None:
            return tables.find(path)
        found = table.exact.get(path) or table.prefix(path)
        return found.route if found is not None else None

    def _wider(self, host: bytes) -> _Host:
        """The tables of a host that no route names: of the longest wildcard above it, if any."""
        if host.endswith(b"."):  # the root's dot (RFC 1034 section 3.1) makes no other name
            host = host[:-1]
            if host in self._hosts:
                return self._hosts[host]
        dot = host.find(b".", 1) if len(host) <= _HOST_BYTES else -1
        while dot > 0:
            found = self._suffixes.get(host[dot:])
            if found is not None:
                return found
            dot = host.find(b".", dot + 1)
        return self._any


def _covering(pattern: str) -> list[str]:
    """`pattern` and every pattern that matches all that it matches."""
    labels = pattern.removeprefix("*.").split(".")
    first = 0 if pattern.startswith("*.") else 1
    wildcards = ["*." + ".".join(labels[at:]) for at in range(first, len(labels))]
    exact = [] if pattern.startswith("*") else [pattern]
    return [*exact, *wildcards, "*"]
