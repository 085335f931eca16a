"""What an installation compiles, and that one whose compiler fails is interpreted, whole and without a rest.

The hot modules are two small ones here, not optimised: the whole takes a minute, and is compiled alike."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.harness.balancer import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or None in map(importlib.util.find_spec, ("setuptools", "mypyc")),
    reason="no C compiler, setuptools or mypyc",
)

PACKAGES = ("lb", "workers")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
# Fails for what $FAILS matches; what it does instead of optimising is quick.
COMPILER = """#!/bin/sh
case "$*" in *$FAILS*) echo "broken on purpose" >&2; exit 1; esac
exec cc "$@" -O0
"""
NOTHING = "no such argument"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for file in FILES:
        shutil.copy(ROOT / file, folder)
    setup = folder / "setup.py"
    few = '\nHOT = ("workers/core/pacing.py", "workers/core/wheel.py")\n'
    text, found = re.subn(r"\nHOT = \(.*?\n\)\n", few, setup.read_text(), flags=re.DOTALL)
    assert found == 1
    setup.write_text(text)
    compiler = folder / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    return folder


def run(
    project: Path, *command: str, fails: str = NOTHING, wanted: str = ""
) -> subprocess.CompletedProcess[str]:
    compiler = str(project / "compiler")
    settings = {"CC": compiler, "LDSHARED": f"{compiler} -shared", "FAILS": fails, "LB_COMPILED": wanted}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "--quiet", *command],
        cwd=project,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=100,
    )


def built(project: Path) -> set[str]:
    """What is installed of this build: the files' names, without what Python adds to those of extensions."""
    (library,) = (project / "build").glob("lib*")
    return {
        re.sub(r"\.cpython-.*\.so$", ".so", str(file.relative_to(library))) for file in library.rglob("*.*")
    }


def machine_code(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith(".so")}


ALL = {f"workers/{name}.so" for name in ("contract/_native", "core/pacing", "core/wheel", "hot__mypyc")}


def test_the_hot_modules_and_the_c_module_are_compiled(project: Path) -> None:
    done = run(project, "build", wanted="1")
    assert done.returncode == 0, done.stderr
    names = built(project)
    assert machine_code(names) == ALL
    # The sources are what says what is right, and what tracebacks show; nobody reads C there.
    assert {
        "workers/core/wheel.py",
        "workers/py.typed",
        "lb/dashboard/index.html",
        "lb/config/starter.toml",
    } <= names
    assert not [name for name in names if name.endswith(".c")]


def test_it_can_be_left_out(project: Path) -> None:
    done = run(project, "build", wanted="0")
    assert done.returncode == 0, done.stderr
    assert "interpreted" not in done.stderr  # which was asked for
    assert not machine_code(built(project))


# No compiler that works; one that can't do the C module; one that can't do the others, when that is done.
FAILURES = ("probe.c", "_native.c", "__native_hot.c")


@pytest.mark.parametrize("fails", FAILURES)
def test_where_the_compiler_fails_all_is_interpreted(project: Path, fails: str) -> None:
    done = run(project, "build", fails=fails)
    assert done.returncode == 0, done.stderr
    assert "lb will be interpreted, and take more CPU time: " in done.stderr
    names = built(project)
    assert not machine_code(names)
    assert "workers/core/wheel.py" in names


@pytest.mark.parametrize("fails", FAILURES[1:])
def test_where_it_has_to_be_compiled_that_is_an_error(project: Path, fails: str) -> None:
    done = run(project, "build", fails=fails, wanted="1")
    assert done.returncode != 0
    assert "broken on purpose" in done.stderr


def test_a_source_distribution_has_all_that_a_build_needs(project: Path) -> None:
    done = run(project, "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (project / "dist").iterdir()
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    source = {
        str(file.relative_to(project))
        for package in PACKAGES
        for file in (project / package).rglob("*.*")
        if "__pycache__" not in file.parts
    }
    assert source | {"setup.py", "pyproject.toml"} <= packed
