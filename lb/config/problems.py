"""What is wrong with a configuration, where, and what would be right."""

from __future__ import annotations

import difflib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from lb.config.positions import Path, Positions

_LONGEST_VALUE: Final = 80
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+\Z")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One error or warning. `line` and `column` count from 1; 0 is "not known". `value` is printed as
    TOML, empty where there is none. `str()` is the line that is shown."""

    file: str
    message: str
    line: int = 0
    column: int = 0
    path: str = ""
    value: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
        if self.column:
            place += f":{self.column}"
        subject = self.path
        if self.value:
            subject += f" = {self.value}"
        text = f"{place}: {subject}: {self.message}" if subject else f"{place}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class ConfigErrors(Exception):
    """A configuration that can't be used. `problems` holds everything that is wrong with it, in file
    order; `str()` is the printed report, one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class Source:
    """The file that a configuration came from: its name, the folder that its relative paths start in,
    its text, and the lines of its keys."""

    __slots__ = ("base", "file", "positions", "text")

    def __init__(self, file: str, base: pathlib.Path, text: str) -> None:
        self.file = file
        self.base = base
        self.text = text
        self.positions = Positions(text)

    def problem(self, at: Path, message: str, *, value: str = "", hint: str = "") -> Problem:
        """A problem at `at`."""
        line = self.positions.line(at)
        return Problem(
            file=self.file, line=line, path=format_path(at), value=value, message=message, hint=hint
        )


class Report:
    """Collects the problems of one decoding."""

    __slots__ = ("_broken", "problems", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self._broken: set[Path] = set()

    def add(self, at: Path, message: str, *, value: object = None, hint: str = "") -> None:
        """Reports `message` at `at`. `value` is the TOML value there; None prints none."""
        shown = "" if value is None else format_value(value)
        self.problems.append(self.source.problem(at, message, value=shown, hint=hint))
        for length in range(len(at) + 1):
            self._broken.add(at[:length])

    def broken(self, at: Path) -> bool:
        """Whether anything at `at` or below it was reported, so that rules over it would only repeat it."""
        return at in self._broken


def format_path(path: Path) -> str:
    """`pool.chat.servers[1]`; keys that TOML would quote are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        key = part if _BARE_KEY.match(part) else json.dumps(part)
        text += f".{key}" if text else key
    return text


def format_value(value: object) -> str:
    """A TOML value on one line, cut to what a message bears."""
    text = _toml(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict) and value:
        return f"{{ {', '.join(f'{format_path((key,))} = {_toml(item)}' for key, item in value.items())} }}"
    return "{}" if value == {} else str(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest of `known`, else with all of them; empty where none is known."""
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    nearest = difflib.get_close_matches(word.lower(), folded, n=1)
    if nearest:
        return f'did you mean "{folded[nearest[0]]}"?'
    if not names:
        return ""
    shown = ", ".join(names[:20])
    return f"known: {shown}" if len(names) <= 20 else f"known: {shown}, ..."
