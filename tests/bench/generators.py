"""Starts and drives the bench's other processes: load generators and servers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any, Final

from tests.bench import compiled, machine
from tests.bench.engine import Options
from tests.harness.balancer import ROOT

_SLACK: Final = 60.0  # seconds that a load may take beyond its own time


class LoadError(Exception):
    """A load that could not be driven, or whose answers were wrong: what it said."""


def _start(module: str, argument: str, cores: set[int]) -> subprocess.Popen[str]:
    program = f"from tests.bench.{module} import main; main()"  # -m can't start a compiled module
    code = compiled.folder() or ROOT
    with machine.pinned(cores):
        return subprocess.Popen(
            [sys.executable, "-c", program, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=code,
            env={**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{ROOT}"},
            start_new_session=True,
        )


def _line(process: subprocess.Popen[str], within: float) -> str:
    """The next line that it prints; empty where it ends first. Raises `LoadError` when that takes long."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], within)[0]:
        process.kill()
        raise LoadError(f"nothing was heard for {within:.0f} s")
    return process.stdout.readline().strip()


def _end(process: subprocess.Popen[str]) -> None:
    """Both kinds end with their stdin."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


class Load:
    """A load generator whose connections stand; leaving the block closes them."""

    def __init__(self, options: Options, cores: set[int]) -> None:
        self._within = options.seconds + _SLACK
        self._process = _start("load", json.dumps(asdict(options)), cores)

    def __enter__(self) -> Load:
        """Waits until its connections stand. Raises `LoadError`."""
        try:
            said = _line(self._process, self._within)
            if said != "READY":
                raise LoadError(said or "the load generator ended")
        except BaseException:
            _end(self._process)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self._process)

    def begin(self) -> None:
        """Lets it drive its load."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it measured, when it has ended. Raises `LoadError` where nothing was done."""
        said = _line(self._process, self._within)
        if not said:
            raise LoadError("the load generator ended")
        found: dict[str, Any] = json.loads(said)
        if not found["operations"]:
            raise LoadError(f"nothing was done: {found['errors']}")
        return found


@contextlib.contextmanager
def server(cores: set[int], listeners: int = 1) -> Iterator[list[int]]:
    """A running server; yields its ports."""
    process = _start("server", str(listeners), cores)
    try:
        said = _line(process, _SLACK)
        if not said:
            raise LoadError("the server did not start")
        yield json.loads(said)
    finally:
        _end(process)
