"""The lines of keys, tables and array elements in all shapes that TOML has."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lb.config.positions import Path, Positions

TEXT = '''\
# comment with [brackets] and "quotes"
top = 1   # trailing

[process]
workers = "auto"
rebalance.pace = 200
"quoted key" = 'literal # no comment'
"esc\\u0061ped" = """
[not.a.table]
x = 1 \\" """

[listen."a.b"]   # a dot in a name
bind = [
  ":80",  # first
  # between
  "[::1]:80",
  [1, 2, [
    3]],
]
tls = { certs = ["a", "b"], deep = { x = 1, y.z = [true] } }

[[route]]
pool = \'\'\'
[[route]]
it''s\'\'\'
[route.headers.request_set]
X-Edge = "1"
[[route]]
pool = "b"
[[route.rule]]
n = 1
[[route.rule]]
n = 1979-05-27T07:32:00Z
["pool".'chat']
servers = [{ address = "a" }, { address = "b"}
]
a . b . "c" = -1.5e3
'''


def lines(text: str) -> Positions:
    return Positions(text)


def test_every_shape() -> None:
    tomllib.loads(TEXT)
    positions = lines(TEXT)
    expected: dict[Path, int] = {
        ("top",): 2,
        ("process",): 4,
        ("process", "workers"): 5,
        ("process", "rebalance"): 6,
        ("process", "rebalance", "pace"): 6,
        ("process", "quoted key"): 7,
        ("process", "escaped"): 8,
        ("listen",): 12,
        ("listen", "a.b"): 12,
        ("listen", "a.b", "bind"): 13,
        ("listen", "a.b", "bind", 0): 14,
        ("listen", "a.b", "bind", 1): 16,
        ("listen", "a.b", "bind", 2): 17,
        ("listen", "a.b", "bind", 2, 2): 17,
        ("listen", "a.b", "bind", 2, 2, 0): 18,
        ("listen", "a.b", "tls", "certs", 1): 20,
        ("listen", "a.b", "tls", "deep", "y", "z", 0): 20,
        ("route",): 22,
        ("route", 0): 22,
        ("route", 0, "pool"): 23,
        ("route", 0, "headers"): 26,
        ("route", 0, "headers", "request_set", "X-Edge"): 27,
        ("route", 1): 28,
        ("route", 1, "pool"): 29,
        ("route", 1, "rule"): 30,
        ("route", 1, "rule", 0, "n"): 31,
        ("route", 1, "rule", 1): 32,
        ("route", 1, "rule", 1, "n"): 33,
        ("pool", "chat"): 34,
        ("pool", "chat", "servers", 1, "address"): 35,
        ("pool", "chat", "a", "b", "c"): 37,
    }
    assert {path: positions.line(path) for path in expected} == expected


def test_an_absent_key_stands_at_its_table() -> None:
    positions = lines("\n[pool.chat]\nbalance = 1\n")
    assert positions.line(("pool", "chat", "servers", 3)) == 2
    assert positions.line(("listen",)) == 0
    assert positions.line(()) == 0


def test_carriage_returns() -> None:
    positions = lines('a = 1\r\n[b]\r\nc = [\r\n1,\r\n"x"]\r\n')
    assert positions.line(("b", "c", 1)) == 5


def test_quotes_at_the_end_of_multi_line_strings() -> None:
    text = 'a = """x"""""\nb = \'\'\'y\'\'\'\'\'\nc = ""\nd = """"""\ne = 1\n'
    assert tomllib.loads(text)["a"] == 'x""'
    assert [lines(text).line((key,)) for key in "abcde"] == [1, 2, 3, 4, 5]


_SCALARS = st.one_of(
    st.booleans(), st.integers(-9, 9), st.text(max_size=8).filter(lambda text: "\x7f" not in text)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _paths(value: Any, at: Path) -> list[Path]:
    found = [at]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _paths(item, (*at, key))
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += _paths(item, (*at, index))
    return found


@given(st.dictionaries(st.text(max_size=5), _VALUES, max_size=4))
def test_every_path_of_any_file_has_a_line(data: dict[str, Any]) -> None:
    def clean(text: str) -> bool:
        try:
            return tomllib.loads(text) == data
        except tomllib.TOMLDecodeError:
            return False  # characters that JSON escapes in another way

    text = "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in data.items())
    if clean(text):
        positions = Positions(text)
        known = positions._lines
        for key, value in data.items():
            for path in _paths(value, (key,)):
                assert path in known
