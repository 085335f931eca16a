"""Writes nested dictionaries as TOML: enough of it for configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dumps(tables: Mapping[str, Any]) -> str:
    """TOML text of `tables`: `[a.b]` for the dictionaries of the first two levels, inline tables below."""
    lines: list[str] = []
    for name, table in tables.items():
        if isinstance(table, list):
            for item in table:
                lines += [f"[[{name}]]", *_pairs(item), ""]
        elif table and all(isinstance(value, Mapping) for value in table.values()):
            for inner, body in table.items():
                lines += [f"[{name}.{_key(inner)}]", *_pairs(body), ""]
        else:
            lines += [f"[{name}]", *_pairs(table), ""]
    return "\n".join(lines)


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_value(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)
