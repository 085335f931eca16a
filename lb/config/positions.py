"""Where each key and array element of a TOML file stands.

`tomllib` gives no positions. This scan runs over text that `tomllib` has accepted already, so it needs
to find the borders of keys and values, not to judge them.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from typing import Final

# Keys and array indexes from the root: ("pool", "chat", "servers", 1).
Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


class Positions:
    """Lines (from 1) of the keys, tables and array elements in a valid TOML `text`."""

    def __init__(self, text: str) -> None:
        self._lines = _Scanner(text).run()

    def line(self, path: Path) -> int:
        """The line where `path` stands; for an absent one, that of the nearest table around it. 0 where
        nothing of it is in the file."""
        while path:
            line = self._lines.get(path)
            if line is not None:
                return line
            path = path[:-1]
        return 0


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Path, int] = {}
        self._array_tables: dict[Path, int] = {}  # number of tables so far

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self._blank():
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._key_value(table)
        return self._lines

    def _blank(self) -> bool:
        """Skips space, line ends and comments; False at the end of the file."""
        self._skip(_BLANK)
        return self._at < len(self._text)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _record(self, path: Path, offset: int) -> None:
        self._lines.setdefault(path, bisect.bisect_left(self._newlines, offset) + 1)

    def _header(self) -> Path:
        start = self._at
        brackets = 2 if self._text.startswith("[[", start) else 1
        self._at += brackets
        self._skip(_SPACE)
        keys = self._keys()
        self._at += brackets
        path: Path = ()
        for key in keys:
            # A name that stands for an array of tables means its latest table.
            if path in self._array_tables:
                path = (*path, self._array_tables[path] - 1)
            path = (*path, key)
            self._record(path, start)
        if brackets == 2:
            index = self._array_tables.get(path, 0)
            self._array_tables[path] = index + 1
            path = (*path, index)
            self._record(path, start)
        return path

    def _keys(self) -> list[str]:
        """A dotted key and the space after it."""
        keys: list[str] = []
        while True:
            keys.append(self._key())
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1
            self._skip(_SPACE)

    def _key(self) -> str:
        bare = self._skip(_BARE_KEY)
        if bare:
            return bare
        quoted = self._skip(_STRING)
        if "\\" in quoted:
            return str(tomllib.loads(f"key = {quoted}")["key"])
        return quoted[1:-1]

    def _key_value(self, table: Path) -> None:
        start = self._at
        path = table
        for key in self._keys():
            path = (*path, key)
            self._record(path, start)
        self._at += 1  # "="
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self._text[self._at : self._at + 1]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        elif opening and opening in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._blank() and not self._text.startswith("]", self._at):
            self._record((*path, index), self._at)
            self._value((*path, index))
            index += 1
            self._blank()
            self._comma()
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._blank() and not self._text.startswith("}", self._at):
            self._key_value(path)
            self._blank()
            self._comma()
        self._at += 1

    def _comma(self) -> None:
        if self._text.startswith(",", self._at):
            self._at += 1
