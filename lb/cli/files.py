"""The commands that only read or write configuration files: init, check and diff."""

from __future__ import annotations

import argparse
import pathlib
import sys

import msgspec

from lb import config as configuration
from lb.config import ConfigErrors
from lb.config.starter import starter
from lb.master.failures import EXIT_CONFIG


def init(arguments: argparse.Namespace) -> int:
    """`lb init`: writes a starter file."""
    path: pathlib.Path = arguments.file
    try:
        with path.open("w" if arguments.force else "x", encoding="utf-8") as file:
            file.write(starter())
    except FileExistsError:
        print(f"lb: {path} is there already; --force overwrites it", file=sys.stderr)
        return EXIT_CONFIG
    except OSError as error:
        print(f"lb: {path} can't be written: {error.strerror}", file=sys.stderr)
        return EXIT_CONFIG
    print(f"wrote {path}; next: lb check {path} && lb run -c {path}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """`lb check`: 0 when the file can be used, 1 with every error when it can't."""
    try:
        config = configuration.check(arguments.file)
    except ConfigErrors as errors:
        if arguments.json:
            _print_json({"ok": False, "problems": errors.problems, "warnings": ()})
        else:
            print(errors, file=sys.stderr)
        return EXIT_CONFIG
    if arguments.json:
        _print_json({"ok": True, "problems": (), "warnings": config.warnings})
        return 0
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.file}: ok")
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """`lb diff`: what a reload would touch. 0 with or without differences, 1 when a file is wrong."""
    try:
        changes = configuration.diff(configuration.load(arguments.old), configuration.load(arguments.new))
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return EXIT_CONFIG
    if arguments.json:
        _print_json(changes)
        return 0
    for change in changes:
        print(change)
    if not changes:
        print("no differences")
    return 0


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
