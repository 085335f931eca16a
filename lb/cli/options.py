"""The arguments of each command."""

from __future__ import annotations

import argparse
import pathlib
from typing import Final

LIMIT: Final = 100  # tunnels that are listed unless told otherwise


def demo(parser: argparse.ArgumentParser) -> None:
    """`demo`."""
    parser.add_argument(
        "what",
        nargs="?",
        choices=("chaos",),
        metavar="chaos",
        help="instead, watch WebSockets stay up while workers are killed, reloaded, scaled and upgraded",
    )
    parser.add_argument(
        "--for", dest="span", metavar="TIME", type=seconds, default=60.0, help="chaos: so long (default: 60s)"
    )
    parser.add_argument(
        "--tunnels", metavar="N", type=_positive, default=200, help="chaos: so many (default: 200)"
    )
    config(parser)


def config(parser: argparse.ArgumentParser) -> None:
    """`run` and `demo`."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=pathlib.Path,
        help="configuration file (default: lb.toml, config/lb.toml or /etc/lb/lb.toml, whichever is there)",
    )


def _running(parser: argparse.ArgumentParser, admin: str) -> None:
    parser.add_argument(
        "-c", "--config", metavar="FILE", type=pathlib.Path, help="the configuration file that it runs on"
    )
    parser.add_argument("--admin", metavar="ADDRESS", help=f"{admin} (default: found by FILE)")


def _token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=pathlib.Path,
        help="file with the token of an admin API on TCP"
        " (default: $LB_ADMIN_TOKEN_FILE, else admin.token_file of the configuration)",
    )


def _api(parser: argparse.ArgumentParser) -> None:
    _running(parser, "its admin API: unix:/path, host:port or http://host:port")
    _token(parser)


def _both(parser: argparse.ArgumentParser) -> None:
    _running(parser, "its command socket, unix:/path/command.sock, or its admin API, unix:/path or host:port")
    _token(parser)


def _json(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def init(parser: argparse.ArgumentParser) -> None:
    """`init`."""
    parser.add_argument("file", nargs="?", type=pathlib.Path, default=pathlib.Path("lb.toml"), metavar="FILE")
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def check(parser: argparse.ArgumentParser) -> None:
    """`check`."""
    parser.add_argument("file", type=pathlib.Path, metavar="FILE")
    _json(parser)


def diff(parser: argparse.ArgumentParser) -> None:
    """`diff`."""
    parser.add_argument("old", type=pathlib.Path, metavar="OLD")
    parser.add_argument("new", type=pathlib.Path, metavar="NEW")
    _json(parser)


def data(parser: argparse.ArgumentParser) -> None:
    """`reload` and `status`."""
    _both(parser)
    _json(parser)


def stop(parser: argparse.ArgumentParser) -> None:
    """`stop`."""
    _running(parser, "its command socket, unix:/path/command.sock")
    parser.add_argument("--now", action="store_true", help="don't wait for what is in flight")


def upgrade(parser: argparse.ArgumentParser) -> None:
    """`upgrade`."""
    _running(parser, "its command socket, unix:/path/command.sock")
    _json(parser)


def server(parser: argparse.ArgumentParser) -> None:
    """`server`."""
    parser.add_argument(
        "server",
        nargs="?",
        metavar="POOL/SERVER",
        help="which; with POOL alone, or nothing, all are listed",
    )
    parser.add_argument(
        "actions",
        nargs="*",
        metavar="ACTION",
        help="ready, drain (gets no new sessions, its WebSockets are asked to move), maint (gets nothing),"
        " weight=N or weight=default; several are done at once; without one the server is shown",
    )
    parser.add_argument(
        "--spread", metavar="TIME", type=seconds, help="drain: over which time (default: drain.spread)"
    )
    parser.add_argument("--keep-tunnels", action="store_true", help="drain: don't ask WebSockets to move")
    _api(parser)
    _json(parser)


def tunnels(parser: argparse.ArgumentParser) -> None:
    """`tunnels`."""
    parser.add_argument("action", nargs="?", default="list", metavar="list|close|move", help="default: list")
    parser.add_argument("ids", nargs="*", metavar="ID", help="close these, as lb tunnels lists them")
    parser.add_argument("--route", metavar="NAME", type=_name, help="those of this route")
    parser.add_argument("--pool", metavar="NAME", type=_name, help="those of this pool")
    parser.add_argument(
        "--server", metavar="NAME", type=_name, help="those of the server of this name; move: only from it"
    )
    parser.add_argument("--to", metavar="NAME", type=_name, help="move: to this server")
    parser.add_argument(
        "--count", metavar="N", type=_positive, help="move: so many (default: what makes the servers even)"
    )
    parser.add_argument(
        "--spread",
        metavar="TIME",
        type=seconds,
        help="close: evenly over this time (default: at once); move: the same (default: drain.spread)",
    )
    parser.add_argument("--client", metavar="ADDRESS", type=_name, help="those of this client")
    parser.add_argument("--older", metavar="TIME", type=seconds, help='open for longer than this, as "5m"')
    parser.add_argument("--idle", metavar="TIME", type=seconds, help="without a byte for longer than this")
    parser.add_argument("--worker", metavar="N", type=_count, help="list: those in this worker")
    parser.add_argument(
        "--limit", metavar="N", type=_positive, help=f"list: at most so many (default: {LIMIT})"
    )
    parser.add_argument("--all", action="store_true", help="list: without a limit; close: every tunnel")
    parser.add_argument(
        "--code", metavar="N", type=_count, help="with this code (default: close 1001, move drain.close_code)"
    )
    parser.add_argument("--reason", metavar="TEXT", default="", help="close, move: with this reason")
    parser.add_argument("--yes", action="store_true", help="close: don't ask")
    _api(parser)
    _json(parser)


def top(parser: argparse.ArgumentParser) -> None:
    """`top`."""
    parser.add_argument(
        "--interval", metavar="TIME", type=_interval, default=1.0, help="between two looks (default: 1s)"
    )
    parser.add_argument("--once", action="store_true", help="print one frame, after one interval, and exit")
    parser.add_argument("--svg", metavar="FILE", type=pathlib.Path, help=argparse.SUPPRESS)
    _api(parser)
    _json(parser, "print one status as a line of JSON every interval")


def seconds(text: str) -> float:
    """A duration on the command line, for argparse."""
    from lb.config.units import parse_duration  # here, as it brings all of the configuration with it

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _interval(text: str) -> float:
    value = seconds(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("expected a time from 100ms to 1h")
    return value


def _name(text: str) -> str:
    if not text:  # a shell's unset variable shall not become "all"
        raise argparse.ArgumentTypeError("expected a name")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _positive(text: str) -> int:
    value = _count(text)
    if not value:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value
