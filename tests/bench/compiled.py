"""The load generator and the server as machine code: `python -m tests.bench.compiled` makes it.

They share what cores the proxy leaves, so on a small machine an interpreted generator is slower than what it
measures. mypyc makes machine code of the modules as they are, in a copy under `build/bench` that is used as
long as its stamp says that it is of these sources and this Python. Without it they are interpreted.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.harness.balancer import ROOT

FOLDER: Final = ROOT / "build" / "bench"
_BENCH: Final = Path("tests", "bench")
_MODULES: Final = tuple(
    str(_BENCH / f"{name}.py") for name in ("engine", "exchanges", "openings", "server", "tunnels", "wire")
)
# As setup.py: what another compiler warns of is no reason to do without.
_PROGRAM: Final = """
import os, sys
from mypyc.build import mypycify
from setuptools import setup
modules = mypycify(["--follow-imports=skip", *sys.argv[1:]], opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"))
for module in modules:
    module.extra_compile_args = [option for option in module.extra_compile_args if option != "-Werror"]
setup(name="bench", ext_modules=modules, script_args=["--quiet", "build_ext", "--inplace"])
"""
_COPIED: Final = ("__init__.py", "bench", "harness")
# What runs in those processes.
_USED: Final = (
    *_MODULES,
    "tests/bench/limits.py",
    "tests/bench/load.py",
    "tests/harness/websocket.py",
)


def _sources() -> bytes:
    """What a build is of."""
    digest = hashlib.sha256(sys.version.encode() + _PROGRAM.encode())
    for name in _USED:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest().encode()


@functools.cache
def folder(built: Path = FOLDER) -> Path | None:
    """Where the compiled form is; None where there is none of these sources."""
    try:
        made_of = (built / "stamp").read_bytes()
    except FileNotFoundError:
        return None
    return built if made_of == _sources() else None


def build(built: Path = FOLDER) -> None:
    """Makes it, which takes ten seconds. Raises `OSError` or `subprocess.CalledProcessError` with what the
    compiler said, where there is none or it fails."""
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    for name in _COPIED:
        source, copy = ROOT / "tests" / name, built / "tests" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir()
            shutil.copy(source, copy)
    sources = _sources()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, *_MODULES],
        cwd=built,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    (built / "stamp").write_bytes(sources)


def main() -> int:
    """See the module."""
    if folder.__wrapped__() is not None:
        return 0
    try:
        build()
    except subprocess.CalledProcessError as error:
        print(f"the load generator can't be compiled:\n{error.stdout[-2000:]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
