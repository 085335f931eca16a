"""`lb upgrade`: the code on disk takes the place of the running one."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from lb.cli import address
from lb.cli.client import Unreachable, ask
from lb.cli.output import EXIT_FAILED, print_error, print_json
from lb.master.failures import EXIT_USAGE
from lb.master.report import Request, UpgradeOutcome

# Two times to come to rest, the trial, and the new workers, each with a deadline of its own.
_TIMEOUT: Final = 180.0


def upgrade(arguments: argparse.Namespace) -> int:
    """`lb upgrade`: 0 when the new release serves what the file says, 1 when anything is otherwise."""
    if arguments.admin is not None and not address.is_command_socket(arguments.admin):
        print(
            f"lb: --admin {arguments.admin}: lb upgrade wants the command socket, unix:/path/command.sock",
            file=sys.stderr,
        )
        return EXIT_USAGE
    try:
        outcome, pid = _ask(arguments)
    except Unreachable as error:
        return print_error(error)
    if arguments.json:
        print_json(outcome)
    else:
        print(outcome_text(outcome, pid), file=sys.stdout if outcome.ok else sys.stderr)
    return 0 if outcome.ok else EXIT_FAILED


def _ask(arguments: argparse.Namespace) -> tuple[UpgradeOutcome, int]:
    reply = ask(Request(command="upgrade"), arguments.config, arguments.admin, _TIMEOUT)
    if reply.error:
        raise Unreachable(reply.error)
    if reply.upgrade is None:
        raise Unreachable("lb told nothing of how the upgrade ended; lb status shows what runs")
    return reply.upgrade, reply.pid


def outcome_text(outcome: UpgradeOutcome, pid: int) -> str:
    """What runs now, or why it is what ran before."""
    if outcome.ok:
        head = f"upgraded from {outcome.before} to {outcome.after} in {outcome.seconds:.2f}s"
        return f"{head}; pid {pid} as before, the old workers leave when their connections have ended"
    if outcome.executed:
        return f"{outcome.after} has taken the place of {outcome.before}, but {outcome.error}"
    return f"upgrade failed, nothing has changed and {outcome.before} serves on: {outcome.error}"
