"""The commands for the whole of a running instance: reload, status and stop."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any, Final

import msgspec

from lb.admin.views import ReloadView, StatusView
from lb.cli import address
from lb.cli.api import RELOAD_TIMEOUT, Api, Refused
from lb.cli.client import Unreachable, ask
from lb.cli.output import EXIT_FAILED, print_error, print_json
from lb.cli.show import outcome_text, report_of, status_text
from lb.master.failures import EXIT_USAGE
from lb.master.report import Outcome, Reply, Request, StatusReport

# At most the longest shutdown_timeout that anybody sets; the connection ends with the process.
_STOP_TIMEOUT: Final = 3600.0
# A status is wanted at once, with the control process or without.
_STATUS_TIMEOUT: Final = 3.0
# What the admin API adds to the master's report.
_ADDED: Final = ("ready", "problems", "routes", "pools", "migrations")


def reload(arguments: argparse.Namespace) -> int:
    """`lb reload`: 0 when the new configuration is served, 1 when the old one still is."""
    try:
        outcome = _reload(arguments)
    except (Unreachable, Refused) as error:
        return print_error(error)
    if arguments.json:
        print_json(outcome)
    else:
        print(outcome_text(outcome), file=sys.stdout if outcome.ok else sys.stderr)
    return 0 if outcome.ok else EXIT_FAILED


def _reload(arguments: argparse.Namespace) -> Outcome:
    if arguments.admin is None or address.is_command_socket(arguments.admin):
        reply = _ask(Request(command="reload"), arguments)
        if reply.outcome is None:
            raise Unreachable("lb told nothing of how the reload ended; lb status shows it")
        return reply.outcome
    api = Api(address.find(arguments.config, arguments.admin, arguments.token_file))
    view = api.send("POST", "reload", {}, ReloadView, RELOAD_TIMEOUT)
    return msgspec.convert(view, Outcome, from_attributes=True)


def status(arguments: argparse.Namespace) -> int:
    """`lb status`: what runs. The master tells of itself and its workers, the admin API of pools and
    problems; when the control process does not answer, the rest is shown."""
    try:
        if arguments.admin is None or address.is_command_socket(arguments.admin):
            report = _master_report(arguments)
            view, note = _view_of(report, arguments)
        else:
            view, note = _view(arguments.config, arguments), ""
            report = report_of(view)
    except (Unreachable, Refused) as error:
        return print_error(error)
    if arguments.json:
        print_json(_merged(report, view, note))
    else:
        print(status_text(report, view, note))
    return 0


def _master_report(arguments: argparse.Namespace) -> StatusReport:
    reply = _ask(Request(command="status"), arguments)
    if reply.status is None:
        raise Unreachable("lb gave an answer without a status; is it of another version?")
    return reply.status


def _view_of(report: StatusReport, arguments: argparse.Namespace) -> tuple[StatusView | None, str]:
    """What the admin API of the instance that `report` is from says, or why it says nothing."""
    try:
        return _view(arguments.config or pathlib.Path(report.config), arguments), ""
    except address.Switched as error:
        return None, f"no figures of pools: {error}"
    except (Unreachable, Refused) as error:
        return None, f"no figures of pools: {error} (traffic is served without the control process)"


def _view(config: pathlib.Path | None, arguments: argparse.Namespace) -> StatusView:
    api = Api(address.find(config, arguments.admin, arguments.token_file), _STATUS_TIMEOUT)
    return api.get("status", StatusView)


def _merged(report: StatusReport, view: StatusView | None, note: str) -> dict[str, Any]:
    """The master's report with what the admin API adds: keys of their own, and more about each worker
    and listener. Without an answer the keys are there and null, and `problems` says why."""
    merged: dict[str, Any] = msgspec.to_builtins(report)
    seen: dict[str, Any] = msgspec.to_builtins(view) if view is not None else {"problems": [note]}
    merged |= {name: seen.get(name) for name in _ADDED}
    if view is None:
        return merged
    workers = {(worker["slot"], worker["pid"]): worker for worker in seen["workers"]}
    listeners = {listener["name"]: listener for listener in seen["listeners"]}
    for worker in merged["workers"]:
        _add(worker, workers.get((worker["slot"], worker["pid"]), {}))
    for listener in merged["listeners"]:
        _add(listener, listeners.get(listener["name"], {}))
    return merged


def _add(known: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        known.setdefault(name, value)


def stop(arguments: argparse.Namespace) -> int:
    """`lb stop`: returns when it has ended."""
    if arguments.admin is not None and not address.is_command_socket(arguments.admin):
        print(
            f"lb: --admin {arguments.admin}: lb stop wants the command socket, unix:/path/command.sock;"
            " the admin API can't stop lb",
            file=sys.stderr,
        )
        return EXIT_USAGE
    try:
        reply = _ask(Request(command="stop", now=arguments.now), arguments, _STOP_TIMEOUT)
    except Unreachable as error:
        return print_error(error)
    print(f"lb (pid {reply.pid}) has stopped")
    return 0


def _ask(request: Request, arguments: argparse.Namespace, timeout: float | None = None) -> Reply:
    """Asks the command socket. Raises `Unreachable`, also with what the master has against the request."""
    if timeout is None:
        reply = ask(request, arguments.config, arguments.admin)
    else:
        reply = ask(request, arguments.config, arguments.admin, timeout)
    if reply.error:
        raise Unreachable(reply.error)
    return reply
