"""The commands that stay in the foreground: run and demo."""

from __future__ import annotations

import argparse
import pathlib
import sys

from lb.cli.defaults import DEFAULT_FILES, default_file
from lb.cli.version import version
from lb.config import ConfigErrors
from lb.master.failures import EXIT_CONFIG, StartError
from lb.master.master import Master


def run(arguments: argparse.Namespace) -> int:
    """`lb run`: serves until it is told to stop."""
    path: pathlib.Path | None = arguments.config or default_file()
    if path is None:
        places = ", ".join(map(str, DEFAULT_FILES))
        print(
            f"lb: no configuration file ({places}); name one with -c or write one with lb init",
            file=sys.stderr,
        )
        return EXIT_CONFIG
    try:
        master = Master(path, version())
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return EXIT_CONFIG
    except StartError as error:
        print(f"lb: {error}", file=sys.stderr)
        return error.code
    return master.run()


def demo(arguments: argparse.Namespace) -> int:
    """`lb demo`: the proxy over servers of its own, on loopback."""
    # Imported here: the demo needs aiohttp, which `lb run` shall not load before it forks.
    from lb.demo import run as run_demo

    config: pathlib.Path | None = arguments.config
    return run_demo(config, [])
