"""`make bench` itself, with whatever of nginx and HAProxy is installed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import machine
from tests.bench.cost import Meter, cpu, memory, tree
from tests.bench.machine import cores, pinned
from tests.harness import eventually
from tests.harness.balancer import ROOT

pytestmark = pytest.mark.scenario
MARK = "SHARDLB_BENCH_TEST"


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The bench, in an environment that its processes are found by."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=ROOT,
        env={**os.environ, MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left(tmp_path: Path) -> list[int]:
    """Processes that the bench started, or their children, and that still run."""
    mark = f"{MARK}={tmp_path}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "result.md"
    chosen = "http-small,ws-small"
    bench = start(
        tmp_path, "--quick", "--only", chosen, "--rounds", "1", "--seconds", "0.2", "--out", str(out)
    )
    text, progress = bench.communicate(timeout=90)
    assert bench.returncode == 0, progress
    assert out.read_text() == text.rstrip("\n") + "\n"
    result = json.loads(out.with_suffix(".json").read_text())
    proxies = ["lb", *(peer for peer in machine.PACKAGES if machine.version(peer))]
    measured = [(row["workload"], row["proxy"]) for row in result["rows"]]
    assert measured == [(name, proxy) for name in chosen.split(",") for proxy in proxies], result["notes"]
    for row in result["rows"]:
        assert not row["failed"] and not row["errors"], row
        assert row["operations"] > 10 and 1 < row["cpu_us"] < 10_000, row
        assert 0 <= row["user_us"] <= row["cpu_us"], row
    assert result["machine"]["cores"] == len(os.sched_getaffinity(0))
    eventually(lambda: not left(tmp_path), "no process is left over")


def test_ctrl_c_leaves_no_process_and_says_what_was_measured(tmp_path: Path) -> None:
    bench = start(tmp_path, "--only", "http-small", "--seconds", "30")
    eventually(lambda: len(left(tmp_path)) > 4, "the bench is at work")
    os.killpg(bench.pid, signal.SIGINT)  # as a terminal does
    text, progress = bench.communicate(timeout=60)
    assert bench.returncode == 130, progress
    assert "interrupted" in text
    assert "Traceback" not in progress
    eventually(lambda: not left(tmp_path), "no process is left over")


def test_an_unknown_workload_is_named(tmp_path: Path) -> None:
    bench = start(tmp_path, "--only", "http-smal")
    _, said = bench.communicate(timeout=30)
    assert bench.returncode == 2
    assert "http-smal: there are http-small" in said


BURN = "import os, sys; os.fork(); print(flush=True)\nwhile sys.stdin.fileno() is not None: pass"


def test_the_cost_of_a_tree_is_that_of_all_its_processes() -> None:
    """A process and its child that both compute, on one core: together they get all of it."""
    with pinned(cores().proxy):
        burning = subprocess.Popen(
            [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    try:
        assert burning.stdout is not None
        burning.stdout.readline()
        burning.stdout.readline()
        both = tree(burning.pid)
        assert len(both) == 2
        meter = Meter(burning.pid, cores().proxy)
        before = sum(map(cpu, both))
        eventually(lambda: sum(map(cpu, both)) > before + 0.1, "both compute")
        spent = meter.read()
        assert 0.1 < spent.total <= spent.seconds * 1.05
        assert memory(both) > 2**20
    finally:
        for pid in reversed(tree(burning.pid)):
            os.kill(pid, signal.SIGKILL)
        burning.communicate()
