"""`lb tunnels`: lists the established WebSockets, closes them, and moves them to other servers."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final, TypeVar

import msgspec

from lb.admin.views import Closed, Moved, TunnelClose, TunnelMove, TunnelPage, TunnelView
from lb.cli import address
from lb.cli.api import Api, Refused
from lb.cli.client import Unreachable
from lb.cli.options import LIMIT
from lb.cli.output import EXIT_FAILED, print_error, print_json
from lb.cli.text import clean, duration, size, table
from lb.config.units import format_duration
from lb.master.failures import EXIT_USAGE

_PAGE: Final = 1000
_WORDS: Final = ("route", "pool", "server", "client")
_TIMES: Final = ("older", "idle")
_ACTIONS: Final = ("list", "close", "move")
# What goes with which action; what is not here goes with all.
_GIVEN: Final = {
    "ids": ("close",),
    "route": ("list", "close"),
    "client": ("list", "close"),
    "older": ("list", "close"),
    "idle": ("list", "close"),
    "worker": ("list",),
    "limit": ("list",),
    "all": ("list", "close"),
    "to": ("move",),
    "count": ("move",),
    "code": ("close", "move"),
    "reason": ("close", "move"),
    "spread": ("close", "move"),
}
# Workers are asked one after the other, and a stuck one is waited for.
_TIMEOUT: Final = 30.0


_What = TypeVar("_What", TunnelClose, TunnelMove)


class WrongUse(Exception):
    """The arguments don't fit together; `str()` says what to do."""


def tunnels(arguments: argparse.Namespace) -> int:
    """`lb tunnels`: 0 when done, 1 when it can't be, also when a worker did not answer, 2 on wrong use."""
    try:
        action = _action(arguments)
        api = Api(address.find(arguments.config, arguments.admin, arguments.token_file), _TIMEOUT)
        return {"close": _close, "move": _move, "list": _list}[action](api, arguments)
    except WrongUse as error:
        print_error(error)
        return EXIT_USAGE
    except (Unreachable, Refused) as error:
        return print_error(error)


def _action(arguments: argparse.Namespace) -> str:
    action = arguments.action
    if action not in _ACTIONS:
        raise WrongUse(f"unknown action {action!r}; expected list, close or move")
    wrong = [option for option in _GIVEN if _is_given(arguments, option) and action not in _GIVEN[option]]
    if wrong:
        option = wrong[0] if wrong[0] == "ids" else f"--{wrong[0]}"
        raise WrongUse(f"{option} goes with lb tunnels {' or '.join(_GIVEN[wrong[0]])}, not with {action}")
    if action == "close":
        _check_close(arguments)
    if action == "move" and arguments.pool is None:
        raise WrongUse("lb tunnels move needs --pool, whose servers it makes even")
    return str(action)


def _is_given(arguments: argparse.Namespace, option: str) -> bool:
    value = getattr(arguments, option)
    return bool(value) or (value is not None and isinstance(value, (int, float)) and value is not False)


def _check_close(arguments: argparse.Namespace) -> None:
    chosen = bool(arguments.ids or filters(arguments))
    if not chosen and not arguments.all:
        raise WrongUse("name ids or filters, or --all to close every tunnel")
    if chosen and arguments.all:
        raise WrongUse("--all closes every tunnel; leave it out, or leave the ids and filters out")


def filters(arguments: argparse.Namespace) -> dict[str, str | int | float]:
    """The filters that are given, by the API's names; durations in seconds."""
    found: dict[str, str | int | float] = {}
    for name in (*_WORDS, *_TIMES):
        if (value := getattr(arguments, name)) is not None:
            found[name] = value
    return found


# --- list ----------------------------------------------------------------------------------------------


def _list(api: Api, arguments: argparse.Namespace) -> int:
    query = filters(arguments)
    if arguments.worker is not None:
        query["worker"] = arguments.worker
    wanted = None if arguments.all else (arguments.limit or LIMIT)
    page = collect(api, query, wanted)
    if arguments.json:
        print_json(page)
    else:
        print("\n".join(_table(page)))
    return _told_missing(page.missing)


def collect(api: Api, query: dict[str, str | int | float], wanted: int | None) -> TunnelPage:
    """The first `wanted` tunnels (`None`: all) of as many pages as it takes, as one page."""
    found: list[TunnelView] = []
    missing: set[int] = set()
    cursor = ""
    while True:
        limit = _PAGE if wanted is None else min(_PAGE, wanted - len(found))
        page = api.get(
            "tunnels", TunnelPage, {**query, "limit": limit} | ({"cursor": cursor} if cursor else {})
        )
        found += page.tunnels
        missing.update(page.missing)
        ended = not page.cursor or page.cursor == cursor
        cursor = page.cursor
        if ended or (wanted is not None and len(found) >= wanted):
            return TunnelPage(
                tunnels=tuple(found), total=page.total, cursor=cursor, missing=tuple(sorted(missing))
            )


def _table(page: TunnelPage) -> list[str]:
    if not page.tunnels:
        return ["no tunnels"]
    rows = [
        ["age", "idle", "from client", "from server", "messages", "safe", "client", "route", "server", "id"]
    ]
    rows += [_row(tunnel) for tunnel in page.tunnels]
    lines = table(rows)
    left = page.total - len(page.tunnels)
    if left > 0:
        lines.append(f"and {left} more; --all lists all, --limit N so many")
    return lines


def _row(tunnel: TunnelView) -> list[str]:
    inspected = tunnel.client_messages >= 0
    return [
        duration(tunnel.age),
        duration(tunnel.idle),
        size(tunnel.client_bytes),
        size(tunnel.server_bytes),
        f"{tunnel.client_messages}/{tunnel.server_messages}" if inspected else "-",
        "yes" if tunnel.crash_safe else "no",
        clean(tunnel.client),
        tunnel.route,
        f"{tunnel.pool}/{clean(tunnel.server)}",
        tunnel.id,
    ]


def _told_missing(missing: tuple[int, ...]) -> int:
    if not missing:
        return 0
    slots = ", ".join(map(str, missing))
    print_error(f"worker {slots} did not answer: its tunnels are left out")
    return EXIT_FAILED


# --- close ---------------------------------------------------------------------------------------------


def _close(api: Api, arguments: argparse.Namespace) -> int:
    what = _what(arguments)
    if not arguments.yes and sys.stdin.isatty() and not _confirmed(api, arguments, what):
        print("nothing is closed", file=sys.stderr)
        return EXIT_FAILED
    closed = api.send("POST", "tunnels/close", what, Closed)
    if arguments.json:
        print_json(closed)
    else:
        within = f" within {format_duration(what.spread)}" if what.spread else ""
        print(f"{_count(closed.count)} being closed with code {what.code}{within}")
    return _told_missing(closed.missing)


def _what(arguments: argparse.Namespace) -> TunnelClose:
    given: dict[str, Any] = {**filters(arguments), "ids": tuple(arguments.ids), "all": arguments.all}
    if arguments.code is not None:
        given["code"] = arguments.code
    if arguments.reason:
        given["reason"] = arguments.reason
    if arguments.spread is not None:
        given["spread"] = arguments.spread
    return _converted(given, TunnelClose)


def _converted(given: dict[str, Any], kind: type[_What]) -> _What:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$.")
        if place.startswith("ids["):
            raise WrongUse("an id is slot-pid-number, as lb tunnels lists them") from error
        raise WrongUse(f"--{place.rstrip('`')}: {said[:1].lower()}{said[1:]}") from error


def _confirmed(api: Api, arguments: argparse.Namespace, what: TunnelClose) -> bool:
    """Whether the operator, told how many tunnels it is about, says yes."""
    if what.ids:
        count, of = len(what.ids), "named by id"
    else:
        query = filters(arguments)
        count = api.get("tunnels", TunnelPage, {**query, "limit": 1}).total
        of = ", ".join(f"{name} {_said(value)}" for name, value in query.items()) or "ALL that are open"
    print(f"close {_count(count)} ({of}) with code {what.code}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# --- move ----------------------------------------------------------------------------------------------


def _move(api: Api, arguments: argparse.Namespace) -> int:
    names = ("pool", "server", "to", "count", "spread", "code", "reason")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) not in (None, "")}
    moved = api.send("POST", "tunnels/move", _converted(given, TunnelMove), Moved)
    if arguments.json:
        print_json(moved)
    elif not moved.count:
        print("nothing to move: no server has more tunnels than its share")
    else:
        print(f"{_count(moved.count)} asked to move: " + _from_where(moved))
    return _told_missing(moved.missing)


def _from_where(moved: Moved) -> str:
    return ", ".join(f"{count} from {clean(name)}" for name, count in moved.servers.items())


def _said(value: str | float) -> str:
    return value if isinstance(value, str) else format_duration(value)


def _count(count: int) -> str:
    return "1 tunnel" if count == 1 else f"{count} tunnels"
