"""The machine that the bench runs on: its cores, what it is, and which programs are there."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.cli.version import version as lb_version
from tests.bench import compiled

PACKAGES = {"nginx": "nginx", "haproxy": "haproxy"}  # as Debian, Ubuntu, Fedora and Alpine call them


@dataclass(frozen=True)
class Cores:
    """Which cores the load and the proxies run on: apart where there are enough."""

    proxy: set[int]
    load: set[int]

    @property
    def apart(self) -> bool:
        """Whether neither takes time from the other."""
        return not self.proxy & self.load


def cores(workers: int = 1) -> Cores:
    """For so many workers, which need a core each; the load gets the others, if these are as many."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2 * workers:
        return Cores(set(usable), set(usable))
    return Cores(set(usable[-workers:]), set(usable[:-workers]))


@contextlib.contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on `cores`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def version(program: str) -> str | None:
    """The version of nginx or HAProxy; None where it is not installed."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        return None
    said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    found = re.search(r"[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*", said.stdout + said.stderr)
    return found[0] if found else "unknown"


def program_path(program: str) -> str:
    """Where a program is; raises `FileNotFoundError` with the package to install."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise FileNotFoundError(f"{program} is not installed; its package is called {PACKAGES[program]}")
    return path


def is_compiled(code: Path) -> bool:
    """Whether the lb in the folder `code` has its hot modules compiled."""
    asked = subprocess.run(
        [sys.executable, "-c", "from workers.contract.form import form; print(form())"],
        cwd=code,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout.strip() == "compiled"


def description(code: Path, file_limit: int) -> dict[str, Any]:
    """What a reader has to know about where figures come from."""
    found = re.search(r"^model name\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*([0-9]+)", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "processor": found[1].strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
        "kernel": platform.release(),
        "file_limit": file_limit,
        "lb": lb_version(),
        "compiled": is_compiled(code),
        "generator": "compiled" if compiled.folder() else "interpreted",
        "python": platform.python_version(),
        **{program: version(program) for program in PACKAGES},
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
