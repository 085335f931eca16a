"""Imports run one way, the core is pure, and every module can be imported alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = "lb.master.spawn"  # the one that runs the children's code
ENTRIES = ("workers.main", "workers.keeper", "lb.control.main")
IMPORTED_AS = {"pyyaml": "yaml"}  # packages that are imported by another name
IMPURE = {
    "asyncio",
    "socket",
    "time",
    "os",
    "random",
    "logging",
    "select",
    "selectors",
    "threading",
}
# What each package may import of ours.
ALLOWED = {
    "workers.contract": ("workers.contract",),
    "workers.core": ("workers.contract", "workers.core"),
    "workers.io": ("workers.contract", "workers.core", "workers.io"),
    "workers.main": ("workers.contract", "workers.core", "workers.io"),
    "workers.keeper": ("workers.contract", "workers.core", "workers.io"),
    "lb": ("lb", "workers.contract", "workers.core"),
}


def modules() -> dict[str, Path]:
    """Every module of ours, by its name."""
    found = {}
    for package in ("lb", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of all that is imported in `source`, in functions and for types alone too, also by
    `importlib.import_module` with a constant."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module
                for alias in node.names:
                    if f"{module}.{alias.name}" in MODULES:
                        yield node.lineno, f"{module}.{alias.name}"
            case ast.ImportFrom():
                yield node.lineno, "." * node.level
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield node.lineno, name


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offences(module: str, source: str) -> list[str]:
    """What in `source`, as the module `module`, breaks the rules."""
    home = next((package for package in ALLOWED if within(module, (package,))), None)
    if home is None:
        return []
    allowed = ALLOWED[home]
    if module == LAUNCHER:
        allowed = (*allowed, *ENTRIES)
    found = []
    for line, name in imports(source):
        ours = within(name, ("lb", "workers"))
        # A bare package on the way to an allowed one holds nothing.
        if (ours and name != "workers" and not within(name, allowed)) or name.startswith("."):
            found.append(f"{module}:{line} imports {name}")
        if within(name, ENTRIES) and module not in (LAUNCHER, *ENTRIES):
            found.append(f"{module}:{line} imports {name}: only the launcher runs it")
        if home == "workers.core" and name.partition(".")[0] in IMPURE:
            found.append(f"{module}:{line} imports {name}: the core is pure")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert offences(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("workers.io.worker", "import lb.config"),
        ("workers.contract.errors", "from workers.core import heads"),
        ("workers.core.heads", "from workers.io.worker import Worker"),
        ("workers.core.heads", "import time"),
        ("workers.core.heads", "def f():\n    from os import path"),
        ("workers.core.heads", "import asyncio.events"),
        ("lb.master.loop", "from workers import main"),
        ("lb.master.loop", "from workers import io"),
        ("lb.cli.main", "import importlib\nimportlib.import_module('workers.main')"),
        ("lb.master.loop", "from . import spawn"),
        ("lb.master.master", "from lb.control import main"),
    ],
)
def test_the_check_sees_what_is_forbidden(module: str, source: str) -> None:
    assert offences(module, source)


def test_what_the_core_takes_from_the_contract_is_pure_too() -> None:
    needed: set[str] = set()
    for module, path in MODULES.items():
        if within(module, ("workers.core",)):
            needed.update(name for _, name in imports(path.read_text()) if name in MODULES)
    for module in sorted(name for name in needed if within(name, ("workers.contract",))):
        impure = [name for _, name in imports(MODULES[module].read_text()) if name in IMPURE]
        assert not impure, f"{module} imports {impure}, and the core imports {module}"


def test_what_is_imported_is_declared() -> None:
    """A package that only the test tools bring is missing on every user's machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for line in project["dependencies"]}
    declared = {IMPORTED_AS.get(package, package.replace("-", "_")) for package in packages}
    known = declared | set(sys.stdlib_module_names) | {"lb", "workers"}
    for module, path in MODULES.items():
        foreign = {name.partition(".")[0] for _, name in imports(path.read_text())} - known
        assert not foreign, f"{module} imports {foreign}, which pyproject.toml does not declare"


# Each module is imported in a fork of its own, of a process that has the third-party packages, and the
# patterns that ours compile, already.
ALONE = """
import contextlib, gc, os, sys, traceback
import aiohttp.web, asyncio, msgspec, ssl
for name in sys.argv[1:]:
    with contextlib.suppress(Exception):
        __import__(name)
for name in list(sys.modules):
    if name.partition(".")[0] in ("lb", "workers"):
        del sys.modules[name]
gc.disable()
gc.freeze()
for name in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        try:
            __import__(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        print(name)
"""


def test_every_module_can_be_imported_alone() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# What is imported before anybody is served takes time from each start, and from each command.
EARLY = """
import sys
from lb.cli import main
first = set(sys.modules)
import lb.cli.serve
from lb.master import spawn
spawn.preload_workers()
second = set(sys.modules)
spawn.preload()
print(*({"lb.config", "workers.io.worker", "msgspec", "ssl"} & first))
print(*({"aiohttp", "asyncio", "cryptography", "prometheus_client", "yaml", "lb.admin.app"} & second))
print(*({"aiohttp.web", "lb.admin.app", "lb.config.certificates", "yaml"} - set(sys.modules)))
"""


def test_what_takes_long_to_import_is_imported_late() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["", "", "", ""]), done.stderr
