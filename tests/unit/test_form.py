"""Which form of the hot modules is told: as they are found, without importing them."""

from __future__ import annotations

import subprocess
import sys

from lb.cli.version import named
from tests.harness.balancer import ROOT
from workers.contract.form import COMPILED, INTERPRETED, form
from workers.io import reactor


def test_it_is_that_of_the_modules_that_run() -> None:
    assert form() == (INTERPRETED if reactor.__file__.endswith(".py") else COMPILED)


def test_the_command_tells_it() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "lb", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("lb ")
    assert said.stdout.endswith(f", {form()}\n")


def test_it_is_named_where_it_is_known() -> None:
    assert named("1.2", "compiled") == "lb 1.2, compiled"
    assert named("1.2", "") == "lb 1.2"
