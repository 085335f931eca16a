"""Parses the command line and calls the command."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from lb.cli import options
from lb.master.failures import EXIT_USAGE

Arguments = argparse.Namespace

EXIT_INTERRUPTED: Final = 130  # what a shell says of a process that SIGINT ended


class Command(NamedTuple):
    """One command: what it does, in a line; an example; its arguments; and its function, which returns
    the exit code."""

    help: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def _in(module: str, name: str) -> Callable[[Arguments], int]:
    """The function `name` of `module`, which is imported when it is called: each command waits for what it
    needs itself, and for nothing else."""

    def run(arguments: Arguments) -> int:
        code: int = getattr(importlib.import_module(module), name)(arguments)
        return code

    return run


def _run(arguments: Arguments) -> int:
    # What is imported stays, so there is nothing to collect until the first fork (`spawn.freeze`).
    gc.disable()
    return _in("lb.cli.serve", "run")(arguments)


_demo: Final = _in("lb.cli.serve", "demo")

COMMANDS: Final = {
    "run": Command("run the load balancer in the foreground", "lb run -c lb.toml", options.config, _run),
    "demo": Command("run it over embedded demo servers", "lb demo", options.demo, _demo),
    "init": Command("write a starter configuration", "lb init", options.init, _in("lb.cli.files", "init")),
    "check": Command(
        "check a configuration file and print every error",
        "lb check lb.toml",
        options.check,
        _in("lb.cli.files", "check"),
    ),
    "diff": Command(
        "show what a reload from OLD to NEW would change",
        "lb diff lb.toml new.toml",
        options.diff,
        _in("lb.cli.files", "diff"),
    ),
    "reload": Command(
        "read the configuration again, in place, and wait for the outcome",
        "lb reload -c lb.toml",
        options.data,
        _in("lb.cli.control", "reload"),
    ),
    "status": Command(
        "show the workers, listeners, pools and reloads of a running lb",
        "lb status --json",
        options.data,
        _in("lb.cli.control", "status"),
    ),
    "top": Command("watch a running lb live", "lb top --interval 2s", options.top, _in("lb.cli.top", "top")),
    "server": Command(
        "show a server, or drain it, take it out, bring it back or weigh it",
        "lb server web/10.0.0.11:8080 drain",
        options.server,
        _in("lb.cli.server", "server"),
    ),
    "tunnels": Command(
        "list the established WebSockets, close some, or move them between servers",
        "lb tunnels close --server 10.0.0.11:9000 --older 1h --code 1012 --spread 1m",
        options.tunnels,
        _in("lb.cli.tunnels", "tunnels"),
    ),
    "upgrade": Command(
        "put the release that is installed now in the place of the running one; no connection ends by it",
        "lb upgrade -c lb.toml",
        options.upgrade,
        _in("lb.cli.upgrade", "upgrade"),
    ),
    "stop": Command(
        "stop a running lb and wait for its end",
        "lb stop -c lb.toml",
        options.stop,
        _in("lb.cli.control", "stop"),
    ),
}


class _Version(argparse.Action):
    """Prints the version, which takes long to find, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> None:
        from lb.cli.version import named, version
        from workers.contract.form import form

        print(named(version(), form()))
        parser.exit()


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of the commands."""
    parser = argparse.ArgumentParser(
        prog="lb",
        description="An edge load balancer for HTTP and WebSocket.",
        epilog="example: lb init && lb check lb.toml && lb run",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name, help=command.help, description=command.help, epilog=f"example: {command.example}"
        )
        command.arguments(one)
        parsers[name] = one
    return parser, parsers


def _finish(command: Command, arguments: Arguments) -> int:
    """Runs `command`. Whoever reads what it prints may stop reading (`lb status | head -1`), and whoever has
    asked for it may have waited for long enough (Ctrl-C)."""
    try:
        code = command.run(arguments)
        sys.stdout.flush()  # here, as what fails at the exit of Python is told to the user
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if command.run in (_run, _demo):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lb` with `arguments` (default: the process's own). Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, parsers = _parsers()
    name = given[0] if given else ""
    if name in COMMANDS:
        # Intermixed: options may stand between actions or ids.
        return _finish(COMMANDS[name], parsers[name].parse_intermixed_args(given[1:]))
    if name and not name.startswith("-"):
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean lb {near[0]}?" if near else "lb --help lists the commands"
        print(f"lb: there is no command {name!r}; {hint}", file=sys.stderr)
        return EXIT_USAGE
    parser.parse_args(given)  # shows help or version, or says what is wrong
    return EXIT_USAGE
