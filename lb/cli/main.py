"""Parses the command line and calls the command."""

from __future__ import annotations

import argparse
import difflib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from lb.cli import control, files, serve
from lb.cli.version import version
from lb.master.failures import EXIT_USAGE

Arguments = argparse.Namespace


class Command(NamedTuple):
    """One command: what it does, in a line; an example; its arguments; and its function, which returns
    the exit code."""

    help: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=pathlib.Path,
        help="configuration file (default: lb.toml, config/lb.toml or /etc/lb/lb.toml, whichever is there)",
    )


def _running_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--config", metavar="FILE", type=pathlib.Path, help="the configuration file that it runs on"
    )
    parser.add_argument(
        "--admin", metavar="ADDRESS", help="its command socket, unix:/path (default: found by FILE)"
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=pathlib.Path, default=pathlib.Path("lb.toml"), metavar="FILE")
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=pathlib.Path, metavar="FILE")
    _json_option(parser)


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=pathlib.Path, metavar="OLD")
    parser.add_argument("new", type=pathlib.Path, metavar="NEW")
    _json_option(parser)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    _running_options(parser)
    _json_option(parser)


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    _running_options(parser)
    parser.add_argument("--now", action="store_true", help="don't wait for what is in flight")


COMMANDS: Final = {
    "run": Command("run the load balancer in the foreground", "lb run -c lb.toml", _config_option, serve.run),
    "demo": Command("run it over embedded demo servers", "lb demo", _config_option, serve.demo),
    "init": Command("write a starter configuration", "lb init", _init_arguments, files.init),
    "check": Command(
        "check a configuration file and print every error", "lb check lb.toml", _check_arguments, files.check
    ),
    "diff": Command(
        "show what a reload from OLD to NEW would change",
        "lb diff lb.toml new.toml",
        _diff_arguments,
        files.diff,
    ),
    "reload": Command(
        "read the configuration again, in place, and wait for the outcome",
        "lb reload -c lb.toml",
        _data_arguments,
        control.reload,
    ),
    "status": Command(
        "show the workers, listeners and reloads of a running lb",
        "lb status --json",
        _data_arguments,
        control.status,
    ),
    "stop": Command(
        "stop a running lb and wait for its end", "lb stop -c lb.toml", _stop_arguments, control.stop
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lb",
        description="An edge load balancer for HTTP and WebSocket.",
        epilog="example: lb init && lb check lb.toml && lb run",
    )
    parser.add_argument("--version", action="version", version=f"lb {version()}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name, help=command.help, description=command.help, epilog=f"example: {command.example}"
        )
        command.arguments(one)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lb` with `arguments` (default: the process's own). Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        near = difflib.get_close_matches(given[0], COMMANDS, 1)
        hint = f"did you mean lb {near[0]}?" if near else "lb --help lists the commands"
        print(f"lb: there is no command {given[0]!r}; {hint}", file=sys.stderr)
        return EXIT_USAGE
    parsed = _parser().parse_args(given)
    return COMMANDS[parsed.command].run(parsed)
