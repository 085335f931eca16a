"""`lb server`: shows a server, and sets what the operator wants of it."""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from lb.admin.views import AdminState, PoolView, ServerChange, ServerView
from lb.cli import address
from lb.cli.api import Api, Refused, quoted
from lb.cli.client import Unreachable
from lb.cli.output import print_error, print_json
from lb.cli.show import pools_text
from lb.cli.text import clean, clock, duration, number
from lb.master.failures import EXIT_USAGE

_STATES: Final[Mapping[str, AdminState]] = {"ready": "ready", "drain": "drain", "maint": "maint"}
_CONFIGURED: Final = -1  # a weight, to the API
_ACTIONS: Final = "ready, drain, maint, weight=N or weight=default"


class WrongAction(Exception):
    """An action is unknown or contradicts another; `str()` says which."""


class Unknown(Exception):
    """There is no such pool or server; `str()` names the nearest."""


def server(arguments: argparse.Namespace) -> int:
    """`lb server`: 0 when it is shown or changed, 1 when it can't be, 2 when the actions are wrong."""
    try:
        change = change_of(arguments.actions, arguments.spread, keep_tunnels=arguments.keep_tunnels)
    except WrongAction as error:
        print_error(error)
        return EXIT_USAGE
    try:
        api = Api(address.find(arguments.config, arguments.admin, arguments.token_file))
        if "/" not in (arguments.server or ""):
            return _list(api, arguments)
        _show(_changed(api, arguments.server, change), arguments)
    except (Unreachable, Refused, Unknown, WrongAction) as error:
        return print_error(error)
    return 0


def change_of(
    actions: Sequence[str], spread: float | None = None, *, keep_tunnels: bool = False
) -> ServerChange | None:
    """What `actions` say together; `None` when there are none. `spread` (seconds) and `keep_tunnels` go with
    a drain. Raises `WrongAction`."""
    admin: AdminState | None = None
    weight: int | None = None
    for action in actions:
        if action in _STATES:
            if admin not in (None, action):
                raise WrongAction(f"{admin} and {action} contradict each other")
            admin = _STATES[action]
        elif action.startswith("weight="):
            given = _weight(action.removeprefix("weight="))
            if weight not in (None, given):
                raise WrongAction("two weights contradict each other")
            weight = given
        else:
            near = difflib.get_close_matches(action, [*_STATES, "weight="], 1)
            hint = f"did you mean {near[0]}?" if near else f"expected {_ACTIONS}"
            raise WrongAction(f"unknown action {action!r}; {hint}")
    if (spread is not None or keep_tunnels) and admin != "drain":
        raise WrongAction("--spread and --keep-tunnels go with drain")
    if spread is not None and keep_tunnels:
        raise WrongAction("--keep-tunnels leaves the tunnels alone: leave out one of it and --spread")
    if not actions:
        return None
    wanted = {"admin": admin, "weight": weight, "spread": spread, "keep_tunnels": keep_tunnels}
    try:
        return msgspec.convert(wanted, ServerChange)
    except msgspec.ValidationError as error:
        if "spread" in str(error):
            raise WrongAction("--spread: at most 24h") from error
        raise WrongAction(f"weight={weight}: {str(error).partition(' - at')[0].lower()}") from error


def _weight(text: str) -> int:
    if text == "default":
        return _CONFIGURED
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise WrongAction(f"weight={text}: expected a whole number, or weight=default for the configured")
    return int(text)


def _list(api: Api, arguments: argparse.Namespace) -> int:
    if arguments.actions:
        raise WrongAction(f"{arguments.server}: name one server to change, as POOL/SERVER")
    pools = api.get("pools", tuple[PoolView, ...])
    if arguments.server:
        pools = tuple(pool for pool in pools if pool.name == arguments.server)
        if not pools:
            raise _unknown(api, arguments.server)
    if arguments.json:
        print_json([server for pool in pools for server in pool.servers])
    else:
        print("\n".join(pools_text(pools, every=True)))
    return 0


def _changed(api: Api, name: str, change: ServerChange | None) -> ServerView:
    pool, _, member = name.partition("/")
    path = f"pools/{quoted(pool)}/servers/{quoted(member)}"
    try:
        if change is None:
            return api.get(path, ServerView)
        return api.send("PATCH", path, change, ServerView)
    except Refused as error:
        if error.status != 404:
            raise
        raise _unknown(api, name) from error


def _unknown(api: Api, name: str) -> Unknown:
    pools = api.get("pools", tuple[PoolView, ...])
    known = [f"{pool.name}/{server.name}" for pool in pools for server in pool.servers]
    kind = "server" if "/" in name else "pool"
    near = difflib.get_close_matches(name, known if kind == "server" else [pool.name for pool in pools], 1)
    hint = f"did you mean {clean(near[0])}?" if near else "lb server lists all"
    return Unknown(f"there is no {kind} {name!r}; {hint}")


def _show(view: ServerView, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(view)
    else:
        print("\n".join(server_text(view, time.time())))


def server_text(view: ServerView, now: float) -> list[str]:
    """One server in detail: the verdict first. `now` is Unix time."""
    head = f"{view.pool}/{view.name}: {view.state}"
    if view.since:
        head += f" for {duration(max(0.0, now - view.since))}"
    if view.why:
        head += f" ({clean(view.why)})"
    lines = [head, f"operator     {view.admin}"]
    if view.ejected_until > now:
        lines.append(f"ejected      for another {duration(view.ejected_until - now)}")
    resolved = ", ".join(view.addresses)
    shown = f"{view.address} ({resolved})" if resolved not in ("", view.address) else view.address
    limit = "no limit" if view.max_connections is None else f"at most {view.max_connections}"
    lines += [
        f"address      {shown}{', backup' if view.backup else ''}",
        f"weight       {view.weight} configured, {number(view.effective_weight)} now",
        f"health       {view.health}; {view.checks_ok} checks passed, {view.checks_failed} failed",
        f"last check   {_last_check(view, now)}",
        f"now          {view.active} active ({limit}), {view.tunnels} tunnels,"
        f" {view.connections} connections, {view.idle} of them idle",
        f"since start  {view.requests} requests, {view.errors} errors, {view.retries} retries,"
        f" {view.ejections} ejections",
    ]
    spread = ", ".join(f"worker {slot}: {count}" for slot, count in view.tunnels_by_worker.items() if count)
    return [*lines, f"tunnels      {spread}"] if spread else lines


def _last_check(view: ServerView, now: float) -> str:
    check = view.last_check
    if check is None:
        return "none"
    said = f": {clean(check.detail)}" if check.detail else ""
    ago = duration(max(0.0, now - check.at))
    return f"{check.result}{said} ({check.seconds * 1000:.0f} ms, {ago} ago, at {clock(check.at)})"
