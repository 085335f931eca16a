"""Fixtures of the interop tests: other people's programs, skipped with the reason where they are absent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import eventually, processes
from tests.harness.ports import free_port

HERE = Path(__file__).parent
RunNode = Callable[..., dict[str, Any]]
StartServer = Callable[..., int]


def program(name: str) -> str:
    """The path of `name`; skips the test where it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed; .ci/run installs it")
    return path


@pytest.fixture
def node() -> RunNode:
    """Runs a script of this folder with Node.js and returns the JSON that it prints last."""
    path = program("node")
    if not (HERE / "node_modules").is_dir():
        pytest.skip("tests/interop/node_modules is absent; run npm install there, as .ci/run does")

    def run(script: str, *arguments: str, timeout: float = 60.0) -> dict[str, Any]:
        done = subprocess.run(
            [path, str(HERE / script), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


@pytest.fixture
def python_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts a script of this folder as a server: it gets a port and its arguments, and prints a line when
    it listens."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str, *arguments: str) -> int:
        port = free_port()
        output = tmp_path / f"{script}-{port}.log"
        with output.open("wb") as stream:
            command = [sys.executable, str(HERE / script), str(port), *arguments]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        started.append(process)

        def listening() -> bool:
            assert processes.alive(process.pid), output.read_text()
            return b"listening" in output.read_bytes()

        eventually(listening, f"{script} listens", 20)
        return port

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
