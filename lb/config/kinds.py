"""The kinds of values in the configuration: how each is decoded, described and printed.

A kind decodes one TOML value. It reports every problem that it finds and returns `INVALID` where
nothing usable is left, so that one run finds all errors.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

from lb.config.positions import Path
from lb.config.problems import Report, did_you_mean, format_value
from lb.config.text import Wrong
from lb.config.units import format_duration, format_size, parse_duration, parse_size


class Invalid(enum.Enum):
    """The type of `INVALID`."""

    INVALID = "invalid"


INVALID: Final = Invalid.INVALID


class Kind:
    """Base of all kinds. `expected` completes "expected ..."; `type_name` is what the reference prints;
    `empty` stands in for a required value that is missing or wrong, so that the rest can be checked."""

    expected = "something else"
    type_name = ""
    empty: Any = None

    def decode(self, value: object, at: Path, report: Report) -> Any:
        """The decoded value, or `INVALID` after reporting why not."""
        try:
            return self.convert(value)
        except Wrong as wrong:
            report.add(at, wrong.message, value=value, hint=wrong.hint)
        return INVALID

    def convert(self, value: object) -> Any:
        """Decodes a value without parts. Raises `Wrong`."""
        raise Wrong(f"expected {self.expected}")

    def show(self, value: Any) -> str:
        """A decoded value as TOML text."""
        return format_value(value)


class Boolean(Kind):
    """true or false."""

    expected = "true or false"
    type_name = "boolean"

    def convert(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise Wrong(f"expected {self.expected}")


class Integer(Kind):
    """A whole number from `least` to `most`. `word` is a string that stands for None."""

    empty = 0

    def __init__(self, least: int, most: int, *, word: str = "") -> None:
        self._least = least
        self._most = most
        self._word = word
        self.type_name = f"integer, {least} to {most}" + (f', or "{word}"' if word else "")
        self.expected = f'"{word}" or a whole number' if word else "a whole number"

    def convert(self, value: object) -> int | None:
        if self._word and value == self._word:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"expected {self.expected}", _word_hint(value, self._word))
        if not self._least <= value <= self._most:
            raise Wrong(f"must be from {self._least} to {self._most}")
        return value

    def show(self, value: int | None) -> str:
        return format_value(self._word) if value is None and self._word else str(value)


class CloseCode(Integer):
    """A status code that a WebSocket endpoint may send in a Close frame (RFC 6455, 7.4; IANA's registry)."""

    _NEVER_SENT: Final = (1004, 1005, 1006, 1015)

    def __init__(self) -> None:
        super().__init__(1000, 4999)
        self.type_name = "integer, 1000 to 1014 or 3000 to 4999"

    def convert(self, value: object) -> int | None:
        code = super().convert(value)
        if code in self._NEVER_SENT:
            raise Wrong("is a code that no Close frame carries", "1012 asks clients to come again")
        if code is not None and 1014 < code < 3000:
            raise Wrong("must be from 1000 to 1014 or from 3000 to 4999")
        return code


class Fraction(Kind):
    """A number from 0 to 1."""

    expected = "a number from 0 to 1"
    type_name = "number, 0 to 1"

    def convert(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise Wrong(f"expected {self.expected}")
        return float(value)


class Duration(Kind):
    """Seconds, written with a unit. `off` allows "off", which is None."""

    empty = 0.0

    def __init__(self, least: str = "1ms", most: str = "365d", *, off: bool = False) -> None:
        self._least = parse_duration(least)
        self._most = parse_duration(most)
        self._off = off
        self.expected = 'a duration such as "250ms" or "10s"' + (', or "off"' if off else "")
        self.type_name = f"duration, {least} to {most}" + (', or "off"' if off else "")

    def convert(self, value: object) -> float | None:
        if self._off and value == "off":
            return None
        if not isinstance(value, str):
            raise Wrong(f"expected {self.expected}", _unit_hint(value, "s"))
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise Wrong(str(error)) from error
        if not self._least <= seconds <= self._most:
            raise Wrong(f"must be from {format_duration(self._least)} to {format_duration(self._most)}")
        return seconds

    def show(self, value: float | None) -> str:
        return format_value("off" if value is None else format_duration(value))


class Size(Kind):
    """Bytes, written with a unit."""

    expected = 'a size such as "32KiB" or "100MiB"'
    empty = 0

    def __init__(self, least: str, most: str) -> None:
        self._least = parse_size(least)
        self._most = parse_size(most)
        self.type_name = f"size, {least} to {most}"

    def convert(self, value: object) -> int:
        if not isinstance(value, str):
            raise Wrong(f"expected {self.expected}", _unit_hint(value, "B"))
        try:
            size = parse_size(value)
        except ValueError as error:
            raise Wrong(str(error)) from error
        if not self._least <= size <= self._most:
            raise Wrong(f"must be from {format_size(self._least)} to {format_size(self._most)}")
        return size

    def show(self, value: int) -> str:
        return format_value(format_size(value))


def _unit_hint(value: object, unit: str) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'write "{value}{unit}"' if is_number else ""


class Text(Kind):
    """A string that `check` brings into its canonical form. `type_name` is for the reference."""

    expected = "a string"
    empty = ""

    def __init__(self, check: Callable[[str], str], type_name: str) -> None:
        self._check = check
        self.type_name = type_name

    def convert(self, value: object) -> str:
        if not isinstance(value, str):
            raise Wrong(f"expected a string: {self.type_name}")
        return self._check(value)


class Choice(Kind):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self.type_name = " or ".join(f'"{word}"' for word in words)
        self.empty = words[0]

    def convert(self, value: object) -> str:
        if isinstance(value, str) and value in self._words:
            return value
        raise Wrong(f"expected {self.type_name}", _word_hint(value, *self._words))


def _word_hint(value: object, *words: str) -> str:
    """Names the nearest of `words`, where one is near."""
    hint = did_you_mean(value, words) if isinstance(value, str) else ""
    return hint if hint.startswith("did") else ""


class Planned(Kind):
    """A key that is named already and whose feature isn't built yet: refused by name, never ignored.
    `accepted` is the value that means "not used"."""

    type_name = "not supported yet"

    def __init__(self, accepted: str | bool | None = None) -> None:
        self._accepted = accepted

    def convert(self, value: object) -> None:
        if self._accepted is None:
            raise Wrong("is not supported yet")
        if type(value) is not type(self._accepted) or value != self._accepted:
            raise Wrong(f"is not supported yet; only {format_value(self._accepted)} is")


class ListOf(Kind):
    """An array whose elements are of one kind, each different from the others."""

    empty = ()

    def __init__(self, element: Kind, *, least: int = 0) -> None:
        self._element = element
        self._least = least
        self.type_name = f"array of: {element.type_name}"

    def decode(self, value: object, at: Path, report: Report) -> Any:
        if not isinstance(value, list):
            hint = f"write [{format_value(value)}]" if isinstance(value, str) else ""
            report.add(at, "expected an array", value=value, hint=hint)
            return INVALID
        if len(value) < self._least:
            report.add(at, f"needs {self._least} or more", value=value)
        decoded: list[Any] = []
        for index, item in enumerate(value):
            one = self._element.decode(item, (*at, index), report)
            if one is INVALID:
                continue
            if one in decoded:
                report.add((*at, index), "stands in this array already", value=item)
            else:
                decoded.append(one)
        return tuple(decoded)

    def show(self, value: tuple[Any, ...]) -> str:
        return f"[{', '.join(map(self._element.show, value))}]"


class HeaderMap(Kind):
    """A table of header names and values, as pairs in file order."""

    type_name = "table of header names and values"
    empty = ()

    def __init__(self, name: Kind, value: Kind) -> None:
        self._name = name
        self._value = value

    def decode(self, value: object, at: Path, report: Report) -> Any:
        if not isinstance(value, dict):
            report.add(at, 'expected a table such as { X-Edge = "1" }', value=value)
            return INVALID
        pairs: list[tuple[str, str]] = []
        seen: set[str] = set()
        for key, item in value.items():
            name = self._name.decode(key, (*at, key), report)
            text = self._value.decode(item, (*at, key), report)
            if key.lower() in seen:
                report.add((*at, key), "is set twice: the case of a header's name does not matter")
            elif name is not INVALID and text is not INVALID:
                pairs.append((name, text))
            seen.add(key.lower())
        return tuple(pairs)

    def show(self, value: tuple[tuple[str, str], ...]) -> str:
        return format_value(dict(value))
