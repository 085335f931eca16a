"""Tables of the configuration: frozen structs whose annotations say how each key is decoded.

    class Drain(Table):
        hard_stop: Annotated[float, Key(Duration("0s"), "After this, what is left is closed.")] = 600.0

That one line is the source of the key's default, validation and documentation.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from lb.config.kinds import INVALID, Invalid, Kind, Planned
from lb.config.positions import Path
from lb.config.problems import Report, did_you_mean
from lb.config.text import Wrong


class Key(NamedTuple):
    """How a key is decoded and what it means. `live` says whether a reload can change it."""

    kind: Kind
    doc: str
    live: bool = True


class Conflict(NamedTuple):
    """Values that are fine alone and wrong together. It is reported at the first of `keys`, and only
    where none of them has a problem of its own."""

    keys: tuple[str, ...]
    message: str
    hint: str = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all tables. Fields without a `Key` are not part of the file."""

    def conflicts(self) -> Iterator[Conflict]:
        """The rules that concern more than one key of this table."""
        yield from ()


class Partial(Table, frozen=True, kw_only=True):
    """Base of tables of which another one may override some keys: `given` are those in the file, in a table
    that overrides; empty in the one that is overridden."""

    given: tuple[str, ...] = ()


AnyTable = TypeVar("AnyTable", bound=Table)


class Entry(NamedTuple):
    """One key of a table. `default` is `msgspec.NODEFAULT` where the key is required. `field` is the
    attribute, which has a "_" at its end where the key is a word of Python."""

    key: Key
    default: object
    field: str

    @property
    def required(self) -> bool:
        """Whether the file must have it."""
        return self.default is msgspec.NODEFAULT


@functools.cache
def entries(table: type[Table]) -> Mapping[str, Entry]:
    """The keys of `table` in the order of the schema."""
    hints = typing.get_type_hints(table, include_extras=True)
    found: dict[str, Entry] = {}
    for field in msgspec.structs.fields(table):
        for extra in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(extra, Key):
                found[field.name.rstrip("_")] = Entry(extra, _default(field), field.name)
    return found


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def decode_table(
    table: type[AnyTable], values: Mapping[str, object], at: Path, report: Report, **extra: object
) -> AnyTable:
    """`values` as a `table`, whose problems are reported at `at`. Wrong keys have their default (or an
    empty value), so that the rest is checked as well. `extra` sets fields that don't come from the file."""
    known = entries(table)
    for name, value in values.items():
        if name not in known:
            report.add((*at, name), "unknown key", value=value, hint=did_you_mean(name, _usable(table)))
    fields: dict[str, Any] = dict(extra)
    for name, entry in known.items():
        decoded: object = INVALID
        if name in values:
            decoded = entry.key.kind.decode(values[name], (*at, name), report)
        elif entry.required:
            report.add((*at, name), f"is missing: {entry.key.doc}")
        if decoded is not INVALID:
            fields[entry.field] = decoded
        elif entry.required:
            fields[entry.field] = entry.key.kind.empty
    decoded_table = table(**fields)
    _check(decoded_table, at, report)
    return decoded_table


def _table_or_invalid(
    table: type[AnyTable], value: object, at: Path, report: Report, **extra: object
) -> AnyTable | Invalid:
    if isinstance(value, dict):
        return decode_table(table, value, at, report, **extra)
    report.add(at, "expected a table", value=value)
    return INVALID


def _usable(table: type[Table]) -> list[str]:
    return [name for name, entry in entries(table).items() if not isinstance(entry.key.kind, Planned)]


def _check(table: Table, at: Path, report: Report) -> None:
    for conflict in table.conflicts():
        if not any(report.broken((*at, key)) for key in conflict.keys):
            report.add((*at, conflict.keys[0]), conflict.message, hint=conflict.hint)


class TableOf(Kind):
    """A table, written `[name]`, inline or with dotted keys. `off` allows "off", which is None."""

    def __init__(self, table: type[Table], *, off: bool = False) -> None:
        self.table = table
        self._off = off
        self.type_name = 'table, or "off"' if off else "table"

    def decode(self, value: object, at: Path, report: Report) -> Any:
        if self._off and value == "off":
            return None
        return _table_or_invalid(self.table, value, at, report)


class Override(Kind):
    """Keys of `table` that differ from those of another one, or "off"."""

    def __init__(self, table: type[Partial], type_name: str) -> None:
        self._table = table
        self.type_name = type_name

    def decode(self, value: object, at: Path, report: Report) -> Any:
        if value == "off":
            return value
        given = tuple(sorted(value)) if isinstance(value, dict) else ()
        known = tuple(key for key in given if key in entries(self._table))
        return _table_or_invalid(self._table, value, at, report, given=known)

    def show(self, value: Any) -> str:
        return inline(value, value.given) if isinstance(value, Partial) else super().show(value)


def inline(table: Table, names: Iterable[str] | None = None) -> str:
    """`table` as one line of TOML: the keys `names`, else those that are not at their default."""
    known = entries(type(table))
    if names is None:
        names = [name for name, entry in known.items() if getattr(table, entry.field) != entry.default]
    shown = [f"{name} = {_inline_value(known[name], table)}" for name in names]
    return f"{{ {', '.join(shown)} }}" if shown else "{}"


def _inline_value(entry: Entry, table: Table) -> str:
    kind, value = entry.key.kind, getattr(table, entry.field)
    if isinstance(kind, TableOf):
        return inline(value)
    if isinstance(kind, ArrayOfTables):
        return f"[{', '.join(map(inline, value))}]"
    return kind.show(value)


class ArrayOfTables(Kind):
    """Tables in file order, written `[[name]]`."""

    type_name = "array of tables"
    empty = ()

    def __init__(self, table: type[Table]) -> None:
        self.table = table

    def decode(self, value: object, at: Path, report: Report) -> Any:
        if not isinstance(value, list):
            hint = f"write [[{at[-1]}]] with double brackets" if isinstance(value, dict) else ""
            report.add(at, "expected an array of tables", hint=hint)
            return INVALID
        decoded = [
            _table_or_invalid(self.table, item, (*at, index), report) for index, item in enumerate(value)
        ]
        return tuple(item for item in decoded if item is not INVALID)


class NamedTables(Kind):
    """Tables under names of the operator's choice, written `[listen.NAME]`. The struct's field `name`
    holds the name."""

    type_name = "named tables"
    empty = ()

    def __init__(self, table: type[Table], name: Kind) -> None:
        self.table = table
        self._name = name

    def decode(self, value: object, at: Path, report: Report) -> Any:
        if not isinstance(value, dict):
            report.add(at, f"expected tables [{at[-1]}.NAME]", value=value)
            return INVALID
        decoded: list[Table] = []
        for name, item in value.items():
            here = (*at, name)
            if not isinstance(item, dict) and name in entries(self.table):
                report.add(here, f"belongs into a named table, such as [{at[-1]}.main]", value=item)
                continue
            self._check_name(name, here, report)
            one = _table_or_invalid(self.table, item, here, report, name=name)
            if not isinstance(one, Invalid):
                decoded.append(one)
        return tuple(decoded)

    def _check_name(self, name: str, at: Path, report: Report) -> None:
        try:
            self._name.convert(name)
        except Wrong as wrong:
            report.add(at, wrong.message, hint=wrong.hint)
