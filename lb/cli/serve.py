"""The commands that stay in the foreground: run and demo."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import traceback

from lb.cli.defaults import DEFAULT_FILES, default_file
from lb.cli.version import version
from lb.config import ConfigErrors
from lb.master import upgrade_trial as trial
from lb.master.failures import EXIT_CONFIG, EXIT_START, StartError
from lb.master.master import Master
from lb.master.upgrade_launch import Launch, LaunchError, take_order
from lb.master.upgrade_resume import Heritage
from lb.master.upgrade_state import StateError
from workers.contract.errorlog import ErrorLog
from workers.contract.ledger import LedgerError
from workers.contract.scoreboard import ScoreboardError


def run(arguments: argparse.Namespace, upgradable: bool = True) -> int:
    """`lb run`: serves until it is told to stop. `upgradable` says that the process's own command line starts
    nothing else."""
    try:
        order = take_order(os.environ)
    except LaunchError as error:
        print(f"lb: {error}", file=sys.stderr)
        return EXIT_START
    if order is not None and order.kind == "trial":
        return trial.run(order, version())
    launch = Launch.of_this_process() if upgradable else None
    if order is not None:
        return _take_over(order.state, launch)
    path: pathlib.Path | None = arguments.config or default_file()
    if path is None:
        places = ", ".join(map(str, DEFAULT_FILES))
        print(
            f"lb: no configuration file ({places}); name one with -c or write one with lb init",
            file=sys.stderr,
        )
        return EXIT_CONFIG
    try:
        master = Master(path, version(), launch=launch)
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return EXIT_CONFIG
    except StartError as error:
        print(f"lb: {error}", file=sys.stderr)
        return error.code
    return master.run()


def _take_over(packed: int, launch: Launch | None) -> int:
    """The successor in an upgrade: the trial has shown that what may fail here does not."""
    try:
        heritage = Heritage(packed, ErrorLog("master"))
        master = Master(pathlib.Path(heritage.state.config), version(), launch=launch, heritage=heritage)
    except (StateError, ScoreboardError, LedgerError, StartError, OSError) as error:
        print(f"lb: the upgrade failed half-way, a new start is needed: {error}", file=sys.stderr)
        return EXIT_START
    except Exception:
        # Not Python's own exit code, which is that of a wrong configuration: a service manager tries again.
        traceback.print_exc()
        return EXIT_START
    return master.run()


def demo(arguments: argparse.Namespace) -> int:
    """`lb demo`: the proxy over servers of its own, on loopback."""
    # Imported here: the demo needs aiohttp, which `lb run` shall not load before it forks.
    if arguments.what == "chaos":
        from lb.demo.chaos import chaos

        return chaos(arguments.span, arguments.tunnels)
    from lb.demo import run as run_demo

    config: pathlib.Path | None = arguments.config
    return run_demo(config, [])
