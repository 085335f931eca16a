"""The commands that talk to a running instance: reload, status and stop."""

from __future__ import annotations

import argparse
import sys
from typing import Final

import msgspec

from lb.cli.client import Unreachable, ask
from lb.cli.show import outcome_text, status_text
from lb.master.report import Reply, Request

EXIT_FAILED: Final = 1
# At most the longest shutdown_timeout that anybody sets; the connection ends with the process.
_STOP_TIMEOUT: Final = 3600.0


def reload(arguments: argparse.Namespace) -> int:
    """`lb reload`: 0 when the new configuration is served, 1 when the old one still is."""
    reply = _ask(Request(command="reload"), arguments)
    if reply is None or reply.outcome is None:
        return EXIT_FAILED
    if arguments.json:
        _print_json(reply.outcome)
    else:
        print(outcome_text(reply.outcome), file=sys.stdout if reply.outcome.ok else sys.stderr)
    return 0 if reply.outcome.ok else EXIT_FAILED


def status(arguments: argparse.Namespace) -> int:
    """`lb status`: what runs, from the scoreboard."""
    reply = _ask(Request(command="status"), arguments)
    if reply is None or reply.status is None:
        return EXIT_FAILED
    if arguments.json:
        _print_json(reply.status)
    else:
        print(status_text(reply.status))
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """`lb stop`: returns when it has ended."""
    reply = _ask(Request(command="stop", now=arguments.now), arguments, _STOP_TIMEOUT)
    if reply is None:
        return EXIT_FAILED
    print(f"lb (pid {reply.pid}) has stopped")
    return 0


def _ask(request: Request, arguments: argparse.Namespace, timeout: float | None = None) -> Reply | None:
    try:
        if timeout is None:
            reply = ask(request, arguments.config, arguments.admin)
        else:
            reply = ask(request, arguments.config, arguments.admin, timeout)
    except Unreachable as error:
        print(f"lb: {error}", file=sys.stderr)
        return None
    if reply.error:
        print(f"lb: {reply.error}", file=sys.stderr)
        return None
    return reply


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
