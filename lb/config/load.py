"""Reads a configuration file: everything that is wrong with it is found at once."""

from __future__ import annotations

import pathlib
import re
import tomllib
from typing import Any, Final

import msgspec

from lb.config.compile import file_problems, verify
from lb.config.problems import ConfigErrors, Problem, Report, Source
from lb.config.rules import apply_rules
from lb.config.schema import Config
from lb.config.tables import decode_table

# A configuration at the capacity of the scoreboard stays far below.
_MAX_BYTES: Final = 16 * 1024 * 1024
_TOML_ERROR: Final = re.compile(
    r"(?P<what>.*) \(at line (?P<line>[0-9]+), column (?P<column>[0-9]+)\)\Z", re.S
)
_TOML_END: Final = " (at end of document)"


def load(path: pathlib.Path) -> Config:
    """The configuration in the file `path`. Raises `ConfigErrors` with every problem of it."""
    return parse(_read(path), path)


def parse(text: str, path: pathlib.Path) -> Config:
    """The configuration `text`, as if it were the file `path`. Raises `ConfigErrors`."""
    config, problems = _decode(text, path)
    if problems:
        raise ConfigErrors(problems)
    return config


def check(path: pathlib.Path) -> Config:
    """Like `load`, and reads every file that the configuration names too, so that errors in both are
    found in one run. Makes nothing. Raises `ConfigErrors`."""
    config, problems = _decode(_read(path), path)
    if problems:
        raise ConfigErrors([*problems, *file_problems(config)])
    return verify(config)


def _decode(text: str, path: pathlib.Path) -> tuple[Config, list[Problem]]:
    """What can be made of `text`, and what is wrong with it. Raises `ConfigErrors` where it is no TOML."""
    data = _toml(text, str(path))
    try:
        source = Source(str(path), path.parent.absolute(), text)
        errors, warnings = Report(source), Report(source)
        config = decode_table(Config, data, (), errors, source=source)
    except RecursionError as error:
        raise _nested_too_deep(str(path)) from error
    config = apply_rules(config, data, errors, warnings)
    return msgspec.structs.replace(config, text_warnings=tuple(warnings.problems)), errors.problems


def _toml(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise _nested_too_deep(file) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigErrors([_syntax_problem(file, text, str(error))]) from error
    except ValueError as error:
        # An integer of thousands of digits: the limit is Python's own.
        raise ConfigErrors([Problem(file=file, message=f"no valid TOML: {error}")]) from error


def _nested_too_deep(file: str) -> ConfigErrors:
    return ConfigErrors([Problem(file=file, message="values are nested too deep")])


def _read(path: pathlib.Path) -> str:
    def broken(message: str, hint: str = "") -> ConfigErrors:
        return ConfigErrors([Problem(file=str(path), message=message, hint=hint)])

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise broken("there is no such file", "lb init writes a starter file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise broken(f"can't be read: {reason}") from error
    if len(content) > _MAX_BYTES:
        raise broken(f"is larger than {_MAX_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = Problem(file=str(path), line=line, message="is not UTF-8")
        raise ConfigErrors([problem]) from error


def _syntax_problem(file: str, text: str, error: str) -> Problem:
    match = _TOML_ERROR.match(error)
    if match:
        what, line, column = match["what"], int(match["line"]), int(match["column"])
    else:
        last = text.rpartition("\n")[2]
        what, line, column = error.removesuffix(_TOML_END), text.count("\n") + 1, len(last) + 1
    return Problem(file=file, line=line, column=column, message=f"no valid TOML: {what}")
