"""Writes the reference of the configuration from the schema: `python -m lb.config.reference`."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterator
from typing import Final

from lb.config.kinds import Planned
from lb.config.schema import Config
from lb.config.tables import ArrayOfTables, Entry, NamedTables, Table, TableOf, entries

TARGET: Final = pathlib.Path("docs/reference.md")
_INTRODUCTION: Final = """\
# Configuration reference

Generated from the schema by `python -m lb.config.reference`; a test keeps it current.

The configuration is one TOML file. `lb check FILE` reports everything that is wrong with it at once.

- Durations are strings with a unit: `"250ms"`, `"10s"`, `"5m"`, `"1h"`, `"1h30m"`, `"7d"`.
- Sizes are strings with a unit: `"512B"`, `"32KiB"`, `"100MiB"`, `"1GiB"`. 1 KiB is 1024 bytes.
- Relative paths of files start in the folder of the configuration file.
- Tables can be written as `[name]`, inline (`limits = { headers = 50 }`) or with dotted keys
  (`limits.headers = 50`).
- An unknown key is an error. A key that is marked *not supported yet* is refused unless it has the value
  that means "not used".
- *Reload* says whether `lb reload` (or SIGHUP) can change the key; the others need a restart.
"""


def reference() -> str:
    """The whole reference in Markdown."""
    return "\n".join([_INTRODUCTION, *_sections("", Config)])


def _sections(path: str, table: type[Table]) -> Iterator[str]:
    for name, entry in entries(table).items():
        kind = entry.key.kind
        inner = f"{path}.{name}" if path else name
        if isinstance(kind, TableOf):
            yield from _section(inner, f"[{inner}]", kind.table)
        elif isinstance(kind, NamedTables):
            yield from _section(f"{inner}.NAME", f"[{inner}.NAME]", kind.table)
        elif isinstance(kind, ArrayOfTables):
            yield from _section(inner, f"[[{inner}]]", kind.table)
        elif not path:
            yield f"## `[{inner}]`\n\n{entry.key.doc} *Not supported yet.*\n"


def _section(path: str, heading: str, table: type[Table]) -> Iterator[str]:
    lines = [f"## `{heading}`", "", " ".join((inspect.getdoc(table) or "").split()), ""]
    lines += ["| Key | Type | Default | Reload | Meaning |", "|---|---|---|---|---|"]
    lines += [_row(name, entry) for name, entry in entries(table).items()]
    yield "\n".join([*lines, ""])
    yield from _sections(path, table)


def _row(name: str, entry: Entry) -> str:
    cells = [f"`{name}`", entry.key.kind.type_name, _default(entry), _reload(entry), entry.key.doc]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(entry: Entry) -> str:
    kind = entry.key.kind
    if entry.required:
        return "*required*"
    if isinstance(kind, Planned) or entry.default in ((), ""):
        return ""
    if isinstance(kind, TableOf | ArrayOfTables | NamedTables):
        return "" if entry.default is None else "see below"
    shown = kind.show(entry.default)
    return "" if shown == "None" else f"`{shown}`"


def _reload(entry: Entry) -> str:
    if isinstance(entry.key.kind, Planned):
        return ""
    return "yes" if entry.key.live else "restart"


if __name__ == "__main__":
    TARGET.write_text(reference())
