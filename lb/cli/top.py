"""`lb top`: the load balancer live in a terminal."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Final

import msgspec
from rich.console import Console
from rich.live import Live

from lb.admin.views import EventView, StatusView
from lb.cli import address
from lb.cli.api import Api, Refused
from lb.cli.client import Unreachable
from lb.cli.frame import Shown, draw
from lb.cli.output import EXIT_FAILED, print_error
from lb.cli.rates import Rates
from lb.cli.terminal import ENDED, Keys
from lb.cli.text import duration
from lb.master.failures import EXIT_USAGE

# The keyboard waits for an answer, so none is waited for long.
_TIMEOUT: Final = 2.0
_EVENTS: Final = 20
_RESIZE_LOOK: Final = 0.25
_QUIT: Final = ("q", "Q", "\x1b", ENDED)
_SVG_SIZE: Final = (124, 30)
_FOREIGN: Final = re.compile(r"@font-face\s*\{[^}]*\}\s*|<!--.*?-->\s*")
# A frame that is printed has all lines.
_ENDLESS: Final = 100_000


class Watch:
    """What was last seen, and what of it changed a second."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._events: tuple[EventView, ...] = ()
        self._rates: Rates | None = None
        self._answered = time.monotonic()
        self._trouble = ""
        self.view: StatusView | None = None

    def look(self) -> bool:
        """Asks the API; whether it answered. What was seen before stays otherwise."""
        try:
            view = self._api.get("status", StatusView)
            events = self._api.get("events/recent", tuple[EventView, ...], {"limit": _EVENTS})
        except (Unreachable, Refused) as error:
            self._trouble = str(error)
            return False
        self._rates = Rates(self.view, view)
        self.view, self._events = view, events
        self._answered = time.monotonic()
        self._trouble = ""
        return True

    @property
    def trouble(self) -> str:
        """Since when there is no answer, and why; empty while there is one."""
        if not self._trouble:
            return ""
        since = duration(time.monotonic() - self._answered)
        return f"no answer from {self._api.address} since {since}: {self._trouble}"

    def shown(self) -> Shown:
        """What to draw, once `look` was answered."""
        assert self.view is not None and self._rates is not None
        return Shown(self.view, self._rates, self._events, self.trouble)


def top(arguments: argparse.Namespace) -> int:
    """`lb top`: until q or Ctrl-C; 1 when nobody answers at the start."""
    live = not arguments.json and not arguments.once
    if live and not sys.stdout.isatty():
        print_error("lb top needs a terminal; --once prints one frame, --json a line every interval")
        return EXIT_USAGE
    try:
        watch = Watch(Api(address.find(arguments.config, arguments.admin, arguments.token_file), _TIMEOUT))
        if not watch.look():
            return print_error(watch.trouble.partition(": ")[2])
        if arguments.json:
            return _lines(watch, arguments)
        return _once(watch, arguments) if arguments.once else _live(watch, arguments.interval)
    except Unreachable as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Whoever read the lines has enough, and the flush at the end shall not fail for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _live(watch: Watch, interval: float) -> int:
    console = Console(highlight=False)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            size = console.size
            live.update(draw(watch.shown(), size.width, size.height), refresh=True)
            for key in _until(keys, time.monotonic() + interval):
                if key in _QUIT:
                    return 0
                if console.size != size:
                    break
            else:
                watch.look()


def _until(keys: Keys, deadline: float) -> Iterator[str]:
    """Keys, and "" every now and then, until `deadline`."""
    while (left := deadline - time.monotonic()) > 0:
        yield keys.wait(min(left, _RESIZE_LOOK))


def _once(watch: Watch, arguments: argparse.Namespace) -> int:
    """One frame, with the rates of one interval."""
    time.sleep(arguments.interval)
    watch.look()
    if arguments.svg is not None:
        width, height = _SVG_SIZE
        console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False)
        console.print(draw(watch.shown(), width, height))
        # Whoever looks at the picture shall not have to ask other people's servers for fonts.
        picture = _FOREIGN.sub("", console.export_svg(title="lb top")).rstrip() + "\n"
        arguments.svg.write_text(picture, encoding="utf-8")
        return 0
    console = Console(highlight=False)
    height = console.size.height - 1 if console.is_terminal else _ENDLESS
    console.print(draw(watch.shown(), console.size.width, height))
    return EXIT_FAILED if watch.trouble else 0


def _lines(watch: Watch, arguments: argparse.Namespace) -> int:
    """One status a line; what does not answer is told on standard error, once each time."""
    told = False
    while True:
        if not watch.trouble:
            print(msgspec.json.encode(watch.view).decode(), flush=True)
            told = False
        elif not told:
            print_error(watch.trouble)
            told = True
        if arguments.once:
            return 0
        time.sleep(arguments.interval)
        watch.look()
