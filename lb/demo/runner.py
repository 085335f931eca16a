"""Starts the demo servers, says what to try, and runs the load balancer in front of them."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import pathlib
import select
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Final

from lb.config import Config, ConfigErrors, load
from lb.config.controlspec import admin_token
from lb.master import places
from lb.master.failures import StartError, reason

POOL: Final = "demo"
NAMES: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight")
_HERE: Final = pathlib.Path(__file__).parent
_START_TIMEOUT: Final = 15.0  # seconds for a demo server to listen
_STOP_TIMEOUT: Final = 3.0
_EXIT_CONFIG: Final = 1
_EXIT_START: Final = 3
_EXIT_INTERRUPTED: Final = 130


class DemoError(Exception):
    """The demo can't run. `str()` is the line for the user, `code` the exit code."""

    def __init__(self, message: str, code: int = _EXIT_START) -> None:
        super().__init__(message)
        self.code = code


def run(config: pathlib.Path | None, arguments: Sequence[str] = ()) -> int:
    """Runs the demo in the foreground until it is interrupted; returns the exit code.

    Without `config` it is ./config/lb.toml, or a fresh copy of this package's. `arguments` is for callers
    that hand a command line through; the demo has none of its own.
    """
    argparse.ArgumentParser(prog="lb demo").parse_args(list(arguments))
    try:
        path = config or own_copy(default_file())
        settings = load(path)
        addresses = demo_addresses(settings, path)
        require_loopback(settings, path)
        token = admin_token(settings)
        with servers(addresses, path):
            print(invitation(settings, addresses, token), file=sys.stderr, flush=True)
            return _balance(path)
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return _EXIT_CONFIG
    except DemoError as error:
        print(f"lb demo: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def default_file() -> pathlib.Path:
    """The configuration that the demo runs on when none is named."""
    local = pathlib.Path("config/lb.toml")
    return local if local.is_file() else _HERE / "lb.toml"


def own_copy(path: pathlib.Path) -> pathlib.Path:
    """`path`; of this package's file a copy, made anew: what a user changes, and the files that it names, are
    not for the package's folder. Raises `DemoError`."""
    if path.parent != _HERE:
        return path
    folder = places.folder() / "demo"
    copy = folder / path.name
    try:
        places.make_folder(places.folder())
        places.make_folder(folder)
        copy.write_bytes(path.read_bytes())
    except StartError as error:
        raise DemoError(str(error)) from error
    except OSError as error:
        raise DemoError(f"{copy} can't be written: {reason(error)}") from error
    return copy


def _balance(path: pathlib.Path) -> int:
    # Imported here: the command line imports the demo.
    from lb.cli import serve

    # An upgrade would execute the demo anew, servers and all.
    return serve.run(argparse.Namespace(config=path), upgradable=False)


# --- what the configuration asks for -----------------------------------------------------------------


def _is_loopback(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def demo_addresses(config: Config, path: pathlib.Path) -> list[str]:
    """Where the demo servers shall listen: the addresses of the pool "demo". Raises `DemoError`."""
    pool = next((pool for pool in config.pool if pool.name == POOL), None)
    if pool is None:
        raise DemoError(
            f"{path} has no pool {POOL!r} for the demo servers; use lb run to run it as it is", _EXIT_CONFIG
        )
    addresses = [server.address for server in (*pool.servers, *pool.server)]
    for address in addresses:
        if not _is_loopback(address) or address.startswith("unix:"):
            raise DemoError(
                f"{path}: pool.{POOL} names {address}; demo servers listen on 127.0.0.1 or [::1] alone",
                _EXIT_CONFIG,
            )
    if len(addresses) > len(NAMES):
        raise DemoError(f"{path}: pool.{POOL} has more than {len(NAMES)} servers", _EXIT_CONFIG)
    return addresses


def require_loopback(config: Config, path: pathlib.Path) -> None:
    """Raises `DemoError` when anything here can be reached from another machine."""
    bound = [(f"listen.{listener.name}", address) for listener in config.listen for address in listener.bind]
    if config.metrics is not None:
        bound.append(("metrics", config.metrics.listen))
    if config.admin.listen not in (None, "off"):
        bound.append(("admin", str(config.admin.listen)))
    for key, address in bound:
        if not _is_loopback(address):
            raise DemoError(
                f"{path}: {key} binds {address}, which others can reach; the demo is for"
                f' this machine alone: write "127.0.0.1:PORT", or use lb run',
                _EXIT_CONFIG,
            )


# --- the servers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def servers(addresses: Sequence[str], path: pathlib.Path) -> Iterator[None]:
    """Demo servers on `addresses`, listening. At the end they are told to stop, by the end of their
    standard input, which comes too when this process is killed."""
    started: list[subprocess.Popen[str]] = []
    try:
        for name, address in zip(NAMES, addresses, strict=False):
            started.append(_start(name, address))
        deadline = time.monotonic() + _START_TIMEOUT
        for process, address in zip(started, addresses, strict=True):
            _await_ready(process, address, path, deadline)
        yield
    finally:
        _stop(started)


def _start(name: str, address: str) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C in the terminal is for the load balancer, the servers end after it.
    return subprocess.Popen(
        [sys.executable, "-m", "lb.demo.server", name, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _await_ready(process: subprocess.Popen[str], address: str, path: pathlib.Path, deadline: float) -> None:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
    said = process.stdout.readline().strip() if readable else "did not start in time"
    if said != "ready":
        raise DemoError(
            f"the demo server for {address} can't listen: {said or 'it ended'}."
            f" Free the port, or change it in pool.{POOL} of {path}"
        )


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


# --- what to try -------------------------------------------------------------------------------------


def _shown(path: str) -> str:
    """`path` as somebody would type it here: bare where the shell finds it, relative where that works."""
    found = pathlib.Path(path).absolute()
    on_path = shutil.which(found.name)
    if on_path and pathlib.Path(on_path).absolute() == found:
        return found.name
    here = pathlib.Path.cwd()
    return str(found.relative_to(here)) if found.is_relative_to(here) else str(found)


def _metrics(config: Config) -> str:
    """A line about the metrics, where TCP leads to them."""
    if config.metrics is None or config.metrics.listen.startswith("unix:"):
        return ""
    return f"\n         curl http://{config.metrics.listen}/metrics"


def _dashboard(config: Config, token: str) -> str:
    """A line about the dashboard, where TCP leads to it. A browser sends nobody what stands after the #."""
    if not token:
        return ""
    return f"\n  dashboard  http://{config.admin.listen}/#token={urllib.parse.quote(token, safe='')}\n"


def invitation(config: Config, addresses: Sequence[str], token: str) -> str:
    """What to open and what to try, for the terminal. `token` is the admin API's, empty where it has none."""
    listener = next((one for one in config.listen if not one.bind[0].startswith("unix:")), None)
    servers = " and ".join(addresses)
    if listener is None:
        return f"demo servers: {servers}"
    at, s = listener.bind[0], "s" if listener.tls else ""
    curl = "curl -k" if s else "curl"
    python = _shown(sys.executable)
    lb = _shown(sys.argv[0]) if pathlib.Path(sys.argv[0]).name == "lb" else f"{python} -m lb"
    file = config.source.file
    return f"""demo servers: {servers}

  open   http{s}://{at}/       who answers, and a WebSocket to play with
         http{s}://{at}/chat   a chat room; open it twice
{_dashboard(config, token)}
  try    {curl} -i http{s}://{at}/api/hello
         for i in 1 2 3 4; do {curl} -s http{s}://{at}/api/ | grep server; done
         {python} -m pip install websockets; {python} -m websockets ws{s}://{at}/ws/echo

  watch  {lb} top -c {file}{_metrics(config)}

  then   change {file} and run: {lb} reload -c {file}
         the open WebSockets stay. Ctrl-C ends everything, a second one at once.
"""
