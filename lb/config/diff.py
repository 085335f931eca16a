"""What a reload would change, in the operator's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from lb.config.pool import Pool, Server
from lb.config.positions import Path
from lb.config.problems import Problem, format_path
from lb.config.route import Route
from lb.config.schema import Config
from lb.config.tables import ArrayOfTables, Entry, NamedTables, Table, TableOf, entries, inline

Kind = Literal["added", "removed", "changed"]


_REFUSALS: Final[Mapping[Kind, str]] = {
    "changed": "can't change from {0.old} in a reload",
    "added": "can't be added in a reload",
    "removed": "can't be removed in a reload",
}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference. `old` and `new` are TOML text, empty where there is none. `live` says whether a
    reload makes it, or a restart is needed. `str()` is the line that is shown."""

    path: str
    kind: Kind
    old: str = ""
    new: str = ""
    live: bool = True

    def __str__(self) -> str:
        if self.kind == "changed":
            text = f"{self.path}: {self.old} -> {self.new}"
        else:
            text = f"{self.path}: + {self.new}" if self.kind == "added" else f"{self.path}: - {self.old}"
        return text if self.live else f"{text} (needs a restart)"


def diff(old: Config, new: Config) -> list[Change]:
    """The changes that lead from `old` to `new`, in the order of the schema. Files that they name
    (certificates, keys) are not compared."""
    return list(_tables((), old, new))


def refuse_live(old: Config, new: Config) -> list[Problem]:
    """What a reload from `old` to `new` can't do: one problem for each such key, in the file of `new`."""
    return [
        Problem(
            file=new.source.file,
            line=new.source.positions.line(tuple(change.path.split("."))),
            path=change.path,
            value=change.new,
            message=_REFUSALS[change.kind].format(change),
            hint="restart to change it",
        )
        for change in diff(old, new)
        if not change.live
    ]


def _tables(at: Path, old: Table, new: Table) -> Iterator[Change]:
    for name, entry in entries(type(new)).items():
        if isinstance(new, Pool) and name in ("servers", "server"):
            continue
        before, after = getattr(old, entry.field), getattr(new, entry.field)
        if before != after:
            yield from _key((*at, name), entry, before, after)
    if isinstance(old, Pool) and isinstance(new, Pool):
        yield from _servers((*at, "servers"), old, new)


def _key(at: Path, entry: Entry, old: Any, new: Any) -> Iterator[Change]:
    kind = entry.key.kind
    if isinstance(kind, NamedTables):
        yield from _named(at, _by_name(old), _by_name(new))
    elif isinstance(kind, ArrayOfTables):
        yield from _routes(at, old, new)
    elif isinstance(kind, TableOf) and old is not None and new is not None:
        yield from _tables(at, old, new)
    elif isinstance(kind, TableOf) and entry.default is not None:
        yield _changed(at, _whole(old), _whole(new), live=entry.key.live)  # one of them is "off"
    elif isinstance(kind, TableOf):
        live = all(inner.key.live for inner in entries(kind.table).values())
        yield _added(at, new, live=live) if old is None else _removed(at, old, live=live)
    elif isinstance(old, tuple):
        yield from _elements(at, entry, old, new)
    else:
        yield _changed(at, _show(entry, old), _show(entry, new), live=entry.key.live)


def _changed(at: Path, old: str, new: str, *, live: bool = True) -> Change:
    return Change(path=format_path(at), kind="changed", old=old, new=new, live=live)


def _added(at: Path, table: Table, *, live: bool = True) -> Change:
    return Change(path=format_path(at), kind="added", new=inline(table), live=live)


def _removed(at: Path, table: Table, *, live: bool = True) -> Change:
    return Change(path=format_path(at), kind="removed", old=inline(table), live=live)


def _show(entry: Entry, value: Any) -> str:
    text = entry.key.kind.show(value)
    return "none" if text == "None" else text


def _whole(table: Table | None) -> str:
    return '"off"' if table is None else inline(table, entries(type(table)))


def _elements(at: Path, entry: Entry, old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterator[Change]:
    """Arrays and header tables: element by element, or whole where only the order differs."""
    path, show = format_path(at), entry.key.kind.show
    removed = [one for one in old if one not in new]
    added = [one for one in new if one not in old]
    for one in removed:
        yield Change(path=path, kind="removed", old=show((one,))[1:-1].strip(), live=entry.key.live)
    for one in added:
        yield Change(path=path, kind="added", new=show((one,))[1:-1].strip(), live=entry.key.live)
    if not removed and not added:
        yield _changed(at, show(old), show(new), live=entry.key.live)


def _by_name(tables: Sequence[Any]) -> dict[str, Any]:
    return {table.name: table for table in tables}


def _named(at: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Tables that are known by a name."""
    for name, table in old.items():
        if name not in new:
            yield _removed((*at, name), table)
    for name, table in new.items():
        if name not in old:
            yield _added((*at, name), table)
        else:
            yield from _tables((*at, name), old[name], table)


def _routes(at: Path, old: Sequence[Route], new: Sequence[Route]) -> Iterator[Change]:
    before, after = _by_name(old), _by_name(new)
    yield from _named(at, before, after)
    # The first match wins, so the order is part of the meaning.
    order_before = [name for name in before if name in after]
    order_after = [name for name in after if name in before]
    if order_before != order_after:
        yield _changed((*at, "order"), ", ".join(order_before), ", ".join(order_after))


def _servers(at: Path, old: Pool, new: Pool) -> Iterator[Change]:
    """Servers (and names of SRV records) by name, whichever way the file writes them."""
    before: dict[str, Server] = {server.label: server for server in old.servers + old.server}
    after: dict[str, Server] = {server.label: server for server in new.servers + new.server}
    path = format_path(at)
    for name, server in before.items():
        if name not in after:
            yield Change(path=path, kind="removed", old=_describe(server))
    for name, server in after.items():
        if name not in before:
            yield Change(path=path, kind="added", new=_describe(server))
            continue
        for key, entry in entries(Server).items():
            values = getattr(before[name], key), getattr(server, key)
            if key != "name" and values[0] != values[1]:
                shown = (_show(entry, value) for value in values)
                yield _changed((*at, name, key), *shown)


def _describe(server: Server) -> str:
    """A server as the file would write it: its address where that is all."""
    return server.address if server == Server(address=server.address) else inline(server)
